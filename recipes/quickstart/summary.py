"""Every figure of a run, read from what its stages wrote.

Nothing is estimated twice: Bellman errors come from the audit, sigma^2 from the verification. Only success and its
intervals over prompts are computed here.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.auditing.report import SCHEMA_VERSION as AUDIT_VERSION
from rmtools.codec import to_json, unversioned
from rmtools.data.rollouts import SCHEMA_VERSION as ROLLOUTS_VERSION
from rmtools.errors import UserError
from rmtools.files import parse_json, read_json
from rmtools.sampling.records import SCHEMA_VERSION as SAMPLES_VERSION
from rmtools.stats.bootstrap import Interval, Statistic, bootstrap_all, cluster_sums, ratio_of_means
from rmtools.verify.language_model import VERIFICATION_VERSION

Values = Mapping[str, Any]

SCHEMA_VERSION = 1
ROLES = {"model": "trained", "constant": "constant", "untrained": "untrained"}
ROLLOUTS = ("train", "heldout", "audit")
CURVES = ("step", "loss", "eval_rms_log_bellman", "eval_mean_square_log_bellman", "eval_brier")
# What the stages leave, with its schema version where it has one.
FILES = {
    "policy/gate.json": None,
    **{f"rollouts/{name}/metadata.json": ROLLOUTS_VERSION for name in ROLLOUTS},
    "prm/training_log.json": None,
    "audit/audit.json": AUDIT_VERSION,
    "samples/prompts.meta.json": 1,
    "samples/best_of_n.jsonl": SAMPLES_VERSION,
    "samples/smc.jsonl": SAMPLES_VERSION,
    "verify/verify.json": VERIFICATION_VERSION,
    "stages.json": None,
}


def summarise(run: Path) -> dict[str, Any]:
    """Return every figure of a run as JSON values.

    Parameters
    ----------
    run : Path
        Folder with the files of ``FILES``.

    Raises
    ------
    UserError
        If a file is missing, is broken, has another schema version, or does not fit the others.
    """
    files = {name: _read(run, name) for name in FILES}
    audit, verify = files["audit/audit.json"], files["verify/verify.json"]
    drawn = {name: files[f"rollouts/{name}/metadata.json"] for name in ROLLOUTS}
    removed = {name: metadata["removed_prompts"] for name, metadata in drawn.items()}
    curve = [{key: row[key] for key in CURVES if key in row} for row in files["prm/training_log.json"]]
    out = {
        "schema_version": SCHEMA_VERSION,
        **_bellman(audit),
        "audit": audit,
        **_success(files["samples/best_of_n.jsonl"], files["samples/smc.jsonl"]),
        "removed_prompts": removed | {"sampling": files["samples/prompts.meta.json"]["removed_prompts"]},
        "rollout_tokens": {name: metadata["generated_tokens"] for name, metadata in drawn.items()},
        **_cost(verify),
        "verify": verify,
        "training_curve": [row for row in curve if "step" in row and len(row) > 1],
        **_stages(files["stages.json"]["stages"]),
        "gate": files["policy/gate.json"],
    }
    return out | {"checks": _checks(out)}


def _read(run: Path, name: str) -> Any:
    path, version = run / name, FILES[name]
    again = (
        f"delete {path.parent if '/' in name else path} and run `python recipes/quickstart --out {run}` again"
    )
    if not path.is_file():
        raise UserError(f"{path} is missing", again)
    if not name.endswith(".jsonl"):
        values = read_json(path, "what a stage wrote")
        if version is not None:
            unversioned(values, str(path), version, again)
        return values
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(parse_json(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not valid JSON: {error}", again) from error
        unversioned(records[-1], f"{path}, line {number}", SAMPLES_VERSION, again)
    if not records:
        raise UserError(f"{path} is empty", again)
    return records


def _bellman(audit: Values) -> dict[str, Any]:
    """Return the Bellman errors of model and controls: exact, and sampled beside them."""
    models = {ROLES.get(m["role"], m["role"]): m for m in audit["models"]}
    missing = [role for role in ROLES.values() if role not in models]
    if missing or any(m["error"]["exact"] is None for m in models.values()):
        raise UserError(
            f"the audit lacks {', '.join(missing) or 'the enumerated Bellman errors'}: the trained model is "
            "judged on exact ratios, beside both controls",
            "run `rmtools audit` with --terminal verifier on a task that lists its steps, such as crossing",
        )
    exact, sampled = ({role: m["error"][kind] for role, m in models.items()} for kind in ("exact", "sampled"))
    ratio = rms_ratios(exact)
    limits = {"at_most_0.6_of_constant": ("constant", 0.6), "at_most_0.5_of_untrained": ("untrained", 0.5)}
    return {
        "rms_log_bellman": {role: m["corrected"]["rms"] for role, m in exact.items()},
        "rms_log_bellman_sampled": {
            role: m["corrected"]["rms"]
            | {"resolved": m["resolved"], "mean_square": m["corrected"]["mean_square"]["estimate"]}
            for role, m in sampled.items()
        },
        "uncovered": audit["uncovered"],
        "rms_ratio": ratio
        | {
            name: _holds(ratio[f"trained_over_{control}"], None, limit)
            for name, (control, limit) in limits.items()
        },
        "rms_ratio_sampled": rms_ratios(sampled),
    }


def rms_ratios(summaries: Mapping[str, Values]) -> dict[str, float | None]:
    """Return the trained model's RMS over each control's; None where a mean square is not positive.

    A corrected mean square at or below zero is noise, not a small error: it may pass no check.
    """
    square = {role: s["corrected"]["mean_square"]["estimate"] for role, s in summaries.items()}
    found: dict[str, float | None] = {}
    for control in ("constant", "untrained"):
        pair = (square["trained"], square[control])
        undefined = any(x is None or x <= 0 for x in pair)
        found[f"trained_over_{control}"] = None if undefined else math.sqrt(pair[0] / pair[1])
    return found


def _success(best: Sequence[Values], smc: Sequence[Values]) -> dict[str, Any]:
    """Return success of plain sampling, best-of-n and SMC on the same prompts, with intervals over prompts."""
    _check_comparable(best, smc)
    solved = {"any": [float(any(s["reward"] == 1 for s in r["samples"])) for r in best]}
    solved["plain"] = [float(np.mean([s["reward"] for s in r["samples"]])) for r in best]
    for name, records in (("best_of_n", best), ("smc", smc)):
        solved[name] = [_chosen(r, "argmax") for r in records]
        solved[f"{name} draw"] = [_chosen(r, "draw") for r in records]
    # A prompt that occurs twice is one cluster.
    _, prompt = np.unique([r["prompt"] for r in best], return_inverse=True)
    columns = {name: (x, [1.0] * len(x)) for name, x in solved.items()}
    columns["ratio"] = (solved["smc"], solved["best_of_n"])
    problems: dict[str, tuple[np.ndarray, Statistic]] = {
        name: (cluster_sums(np.stack(pair, 1), prompt), ratio_of_means) for name, pair in columns.items()
    }
    found = bootstrap_all(problems, np.random.default_rng(0))
    ratio = to_json(found.pop("ratio"))
    rates = {name: to_json(interval.map(lambda x: min(max(x, 0.0), 1.0))) for name, interval in found.items()}
    tokens = {
        name: sum(r["generated_tokens"] for r in records)
        for name, records in (("best_of_n", best), ("smc", smc))
    }
    return {
        "success": {name: rates[name] for name in ("plain", "best_of_n", "smc")},
        "success_weighted_draw": {name: rates[f"{name} draw"] for name in ("best_of_n", "smc")},
        "success_any_of_n": rates["any"],
        "smc_over_best_of_n": ratio,
        "generated_tokens": tokens,
        "generated_tokens_ratio": tokens["smc"] / tokens["best_of_n"] if tokens["best_of_n"] else None,
        "n_prompts": int(prompt.max()) + 1,
        "n_particles": len(smc[0]["samples"]),
    }


def _chosen(record: Values, output: str) -> float:
    """Return the reward of the chosen sample; 0 where no sample has positive weight."""
    return 0.0 if record[output] is None else float(record["samples"][record[output]]["reward"])


def _check_comparable(best: Sequence[Values], smc: Sequence[Values]) -> None:
    """Raise ``UserError`` if the two sets of samples cannot be compared."""
    records = [*best, *smc]
    weights = [(r["provenance"]["model_fingerprint"], r["provenance"]["policy_fingerprint"]) for r in records]
    sizes = {len(r["samples"]) for r in records}
    independent = list(range(min(sizes)))
    facts = {
        "best-of-n and SMC have different prompts": [r["prompt"] for r in best] != [r["prompt"] for r in smc],
        "best-of-n and SMC used different weights of the model or the policy": len(set(weights)) > 1,
        "best-of-n and SMC have different numbers of samples per prompt": len(sizes) > 1,
        "the samples were drawn with the verifier at the end, so the truth would choose them": any(
            r["terminal"] != "model" for r in records
        ),
        "the samples have no rewards": any("reward" not in s for r in records for s in r["samples"]),
        "the samples come from several runs per prompt": any(r["ancestors"] is None for r in records),
        "best-of-n was resampled, so its samples are not independent": any(
            row != independent for r in best for row in r["ancestors"] or ()
        ),
    }
    for fact, wrong in facts.items():
        if wrong:
            raise UserError(
                f"samples/best_of_n.jsonl and samples/smc.jsonl cannot be compared: {fact}",
                "run both `rmtools sample` commands of the quick start again, as it prints them",
            )


def _cost(verify: Values) -> dict[str, Any]:
    """Return pooled sigma^2, predicted (exact: its interval is a point) and measured, and the law of the decoding.

    The law's ``p_value`` is the smallest of the prompts' chi-square tests times their number (Bonferroni).
    """
    law = verify["law"]
    p_values = [path["p_value"] for path in law["paths"]]
    return {
        "sigma2": {
            "predicted": to_json(Interval(*[verify["predicted"]] * 3)),
            "measured": verify["measured"],
        },
        "sigma2_ratio": verify["ratio"],
        "sigma2_prompts": len(verify["prompts"]),
        "sigma2_runs": min(p["runs"] for p in verify["prompts"]),
        "law": {
            **law,
            "well_formed_difference": abs(law["well_formed_stepwise"] - law["well_formed_generate"]),
            "p_value": min(1.0, min(p_values) * len(p_values)),
        },
    }


def _stages(stages: Sequence[Values]) -> dict[str, Any]:
    """Return seconds by stage and in total, and the largest peak of memory in GiB."""
    seconds = {s["name"]: s["seconds"] for s in stages}
    peaks = [s["peak_memory_gib"] for s in stages if s["peak_memory_gib"] is not None]
    return {
        "stages": list(stages),
        "seconds": seconds | {"total": math.fsum(s["seconds"] for s in stages)},
        "peak_memory_gib": max(peaks, default=None),
    }


def _checks(found: Values) -> list[dict[str, Any]]:
    """Return what must hold of a quick start: name, value, limit in words, and whether it holds."""
    gate, ratio, law, seconds = found["gate"], found["rms_ratio"], found["law"], found["seconds"]
    smc_ratio, tokens, sigma2 = (
        found["smc_over_best_of_n"]["estimate"],
        found["generated_tokens_ratio"],
        found["sigma2_ratio"]["estimate"],
    )
    constant, untrained = ratio["trained_over_constant"], ratio["trained_over_untrained"]
    # Attempts at the policy take equally long; the limit is for a run whose first one passes.
    repeated = seconds.get("policy", 0.0) * (1 - 1 / gate.get("attempts", 1))
    limits: tuple[tuple[str, float | None, float | None, float | None], ...] = (
        ("policy: well-formed share", gate.get("well_formed"), 0.98, None),
        ("policy: resulting row right, share of steps", gate.get("right_row"), 0.99, None),
        ("policy: success of plain sampling", gate.get("success"), 0.03, 0.10),
        ("RMS log Bellman error, trained over constant, exact", constant, None, 0.6),
        ("RMS log Bellman error, trained over untrained, exact", untrained, None, 0.5),
        ("held-out prompts sampled", found["n_prompts"], 200, None),
        ("success, SMC over best-of-n, both argmax", smc_ratio, 1.2, None),
        ("generated tokens, SMC over best-of-n", tokens, 0.95, 1.05),
        ("σ², measured over predicted, pooled", sigma2, 0.5, 2.0),
        ("σ², prompts measured", found["sigma2_prompts"], 8, None),
        ("σ², runs per prompt", found["sigma2_runs"], 200, None),
        (
            "stepwise and one-shot: difference of well-formed shares",
            law["well_formed_difference"],
            None,
            0.02,
        ),
        ("stepwise and one-shot: samples", law["samples"], 2000, None),
        ("paths of 3 steps against enumeration: p-value", law["p_value"], 0.001, None),
        ("seconds, all stages, one attempt at the policy", seconds["total"] - repeated, None, 360),
        ("peak memory (GiB)", found["peak_memory_gib"], None, 2),
    )
    return [
        {"name": name, "value": value, "limit": _limit(low, high), "holds": _holds(value, low, high)}
        for name, value, low, high in limits
    ]


def _limit(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at most {high}" if low is None else f"at least {low}"
    return f"between {low} and {high}"


def _holds(value: float | None, low: float | None, high: float | None) -> bool:
    """Return whether a value is within its limits; one that is not available is not."""
    return value is not None and (low is None or value >= low) and (high is None or value <= high)
