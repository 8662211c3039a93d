"""A run in one file and on one page: ``summary.json`` holds every figure of ``report.html``.

`summarise` reads what the stages of a run wrote and estimates nothing twice: Bellman errors come from the audit,
sigma^2 from the verification; only success and its intervals over prompts are computed here. The page is made
from the summary alone.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.errors import UserError
from rmtools.files import read_json, write_json, write_text
from rmtools.stats.bootstrap import Interval, Statistic, bootstrap_all, cluster_sums, ratio_of_means

SCHEMA_VERSION = 1
SUMMARY_FILE, PAGE_FILE = "summary.json", "report.html"
ROLES = {"model": "trained", "constant": "constant", "untrained": "untrained"}
ROLLOUTS = ("train", "heldout", "audit")

PROMPTS = "samples/prompts.meta.json"

# Which stage writes a file, and the command that runs it alone.
STAGES = {
    "policy/gate.json": ("policy", "python recipes/train_policy.py --out {run}/policy"),
    **{
        f"rollouts/{name}/metadata.json": (
            f"rollouts of the {name} set",
            f"rmtools rollout --policy {{run}}/policy --out {{run}}/rollouts/{name}",
        )
        for name in ROLLOUTS
    },
    "prm/training_log.json": (
        "reward model training",
        "accelerate launch --config_file accelerate_config.yaml "
        "recipes/train_prm.py --config recipes/quickstart_prm.yaml --output_dir {run}/prm",
    ),
    "audit/audit.json": ("audit", "rmtools audit --model {run}/prm --out {run}/audit"),
    PROMPTS: ("prompts", "rmtools prompts -n 400 --out {run}/samples/prompts.jsonl"),
    "samples/best_of_n.jsonl": (
        "best-of-n sampling",
        "rmtools sample --model {run}/prm --prompts FILE -n 16 "
        "--resampling none --out {run}/samples/best_of_n.jsonl",
    ),
    "samples/smc.jsonl": (
        "SMC sampling",
        "rmtools sample --model {run}/prm --prompts FILE -n 16 --out {run}/samples/smc.jsonl",
    ),
    "verify/verify.json": ("verification", "rmtools verify lm --model {run}/prm --out {run}/verify"),
    "stages.json": ("quick start, which times the stages", "make quickstart"),
}


def summarise(run: Path) -> dict[str, Any]:
    """Return every figure of a run, fit for JSON.

    Parameters
    ----------
    run : Path
        Folder with ``policy``, ``rollouts``, ``prm``, ``audit``, ``samples``, ``verify`` and ``stages.json``.

    Raises
    ------
    UserError
        If a file is missing (the stage that makes it is named), is broken, or does not fit the others.
    """
    files = {name: read(Path(run), name) for name in STAGES}
    out: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    with of_schema(run, "audit/audit.json"):
        out |= bellman_figures(files["audit/audit.json"]) | {"audit": files["audit/audit.json"]}
    with of_schema(run, "samples"):
        out |= success_figures(files["samples/best_of_n.jsonl"], files["samples/smc.jsonl"])
    with of_schema(run, "rollouts"):
        counts = {name: files[f"rollouts/{name}/metadata.json"] for name in ROLLOUTS}
        out["removed_prompts"] = {name: counts[name]["removed_prompts"] for name in ROLLOUTS}
        out["removed_prompts"]["sampling"] = files[PROMPTS]["removed_prompts"]
        out["rollout_tokens"] = {name: counts[name]["generated_tokens"] for name in ROLLOUTS}
    with of_schema(run, "verify/verify.json"):
        out |= cost_figures(files["verify/verify.json"]) | {"verify": files["verify/verify.json"]}
    with of_schema(run, "prm/training_log.json"):
        out["training_curve"] = training_figures(files["prm/training_log.json"])
    with of_schema(run, "stages.json"):
        out |= stage_figures(files["stages.json"]["stages"])
    out["gate"] = files["policy/gate.json"]
    with of_schema(run, "policy/gate.json"):
        out["checks"] = checks(out)
    return out


def write_summary(run: Path) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.html`` into the folder ``run`` and return the summary; raises as `summarise`."""
    from rmtools.verify.page import run_page

    found = summarise(run)
    write_json(Path(run) / SUMMARY_FILE, found)
    write_text(Path(run) / PAGE_FILE, run_page(found))
    return found


def read(run: Path, name: str) -> Any:
    """Return the content of one file of a run; raise ``UserError`` naming the stage that makes it."""
    stage, command = STAGES[name]
    if not (run / name).is_file():
        raise UserError(
            f"{run / name} is missing: the stage `{stage}` makes it", f"run `{command.format(run=run)}`"
        )
    if name.endswith(".jsonl"):
        return read_records(run / name)
    return read_json(run / name, f"what the stage `{stage}` wrote")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of ``rmtools sample``; raise ``UserError`` naming a broken line."""
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not valid JSON: {error}", "run `rmtools sample` again"
            ) from error
    if not out:
        raise UserError(f"{path} is empty", "run `rmtools sample` again")
    return out


@contextlib.contextmanager
def of_schema(run: Path, name: str) -> Iterator[None]:
    """Turn a missing or ill-typed field into a ``UserError`` that names the file."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{Path(run) / name} is not as this release writes it: {type(error).__name__} {error}",
            "make it again with this release; docs/formats.md has the schema",
        ) from error


def bellman_figures(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Bellman errors of model and controls: exact, and sampled beside them."""
    models = {ROLES.get(m["role"], m["role"]): m for m in audit["models"]}
    missing = [role for role in ROLES.values() if role not in models]
    if missing or any(m["exact"] is None for m in models.values()):
        raise UserError(
            f"the audit lacks {', '.join(missing) or 'the enumerated Bellman errors'}: the trained model is "
            "judged on exact ratios, beside both controls",
            "run `rmtools audit` with --terminal verifier on a task that lists its steps, such as crossing",
        )
    sampled = {
        role: {
            **m["bellman"]["rms_corrected"],
            "resolved": m["bellman"]["resolved"],
            "mean_square": m["bellman"]["mean_square_corrected"]["estimate"],
        }
        for role, m in models.items()
    }
    ratio = rms_ratios({role: m["exact"] for role, m in models.items()})
    return {
        "rms_log_bellman": {role: m["exact"]["rms_corrected"] for role, m in models.items()},
        "rms_log_bellman_sampled": sampled,
        "uncovered": audit["uncovered"],
        "rms_ratio": ratio
        | {
            "at_most_0.6_of_constant": at_most(ratio["trained_over_constant"], 0.6),
            "at_most_0.5_of_untrained": at_most(ratio["trained_over_untrained"], 0.5),
        },
        "rms_ratio_sampled": rms_ratios({role: m["bellman"] for role, m in models.items()}),
    }


def rms_ratios(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the trained model's RMS over each control's; null where a mean square is not positive."""
    square = {role: s["mean_square_corrected"]["estimate"] for role, s in summaries.items()}

    def ratio(control: str) -> float | None:
        # A corrected mean square at or below zero is noise, not a small error: it may pass nothing.
        pair = (square["trained"], square[control])
        return None if any(x is None or x <= 0 for x in pair) else math.sqrt(pair[0] / pair[1])

    return {f"trained_over_{control}": ratio(control) for control in ("constant", "untrained")}


def at_most(value: float | None, limit: float) -> bool:
    """Whether ``value`` exists and is at most ``limit``."""
    return value is not None and value <= limit


def success_figures(best: Sequence[Mapping[str, Any]], smc: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return success of plain sampling, best-of-n and SMC on the same prompts, with intervals over prompts."""
    check_samples(best, smc)
    solved = {"any": [float(any(s["reward"] == 1 for s in r["samples"])) for r in best]}
    solved |= {"plain": [float(np.mean([s["reward"] for s in r["samples"]])) for r in best]}
    for name, records in (("best_of_n", best), ("smc", smc)):
        solved[name] = [chosen(r, "argmax") for r in records]
        solved[f"{name} draw"] = [chosen(r, "draw") for r in records]
    # A prompt that occurs twice is one cluster.
    _, prompt = np.unique([r["prompt"] for r in best], return_inverse=True)
    problems: dict[str, tuple[np.ndarray, Statistic]] = {
        name: (cluster_sums(np.stack([x, np.ones(len(x))], 1), prompt), ratio_of_means)
        for name, x in solved.items()
    }
    problems["ratio"] = (
        cluster_sums(np.stack([solved["smc"], solved["best_of_n"]], 1), prompt),
        ratio_of_means,
    )
    found = bootstrap_all(problems, np.random.default_rng(0))
    ratio = found.pop("ratio").to_dict()
    rates = {
        name: interval.map(lambda x: min(max(x, 0.0), 1.0)).to_dict() for name, interval in found.items()
    }
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


def chosen(record: Mapping[str, Any], how: str) -> float:
    """Return the reward of the sample that ``draw`` or ``argmax`` names; 0 where no sample has positive weight."""
    return 0.0 if record[how] is None else float(record["samples"][record[how]]["reward"])


def check_samples(best: Sequence[Mapping[str, Any]], smc: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``UserError`` where the two sets of samples cannot be compared."""
    again = "run both `rmtools sample` commands again with the same --prompts, -n and --terminal model"
    if [r["prompt"] for r in best] != [r["prompt"] for r in smc]:
        raise UserError("samples/best_of_n.jsonl and samples/smc.jsonl have different prompts", again)
    records = [*best, *smc]
    sources = {
        tuple(r["provenance"][k] for k in ("model_fingerprint", "policy_fingerprint")) for r in (*best, *smc)
    }
    if len(sources) > 1:
        raise UserError(
            "best-of-n and SMC were sampled from different weights of the model or the policy", again
        )
    if len({len(r["samples"]) for r in records}) > 1:
        raise UserError("best-of-n and SMC have different numbers of samples a prompt", again)
    if any(r["terminal"] != "model" for r in records):
        raise UserError(
            "the samples were made with the verifier at the end: success would be chosen by the truth", again
        )
    if any("reward" not in s for r in records for s in r["samples"]):
        raise UserError(
            "the samples have no rewards: success cannot be counted", "name the --task of `rmtools sample`"
        )
    if any(r["ancestors"] is None for r in records):
        raise UserError(
            "samples of several runs a prompt (mh, gibbs or a budget) cannot be compared at equal numbers of samples",
            again,
        )
    kept = list(range(len(best[0]["samples"])))
    if any(list(row) != kept for r in best for row in r["ancestors"]):
        raise UserError(
            "samples/best_of_n.jsonl was resampled: its samples are not independent",
            "make it with `rmtools sample --resampling none`",
        )


def cost_figures(verify: Mapping[str, Any]) -> dict[str, Any]:
    """Return pooled sigma^2, predicted and measured; the prediction is exact and its interval a point."""
    predicted = Interval(*[verify["predicted"]] * 3)
    return {
        "sigma2": {"predicted": predicted.to_dict(), "measured": verify["measured"]},
        "sigma2_ratio": verify["ratio"],
        "sigma2_prompts": len(verify["prompts"]),
        "sigma2_runs": min(p["runs"] for p in verify["prompts"]),
        "law": law_figures(verify["law"]),
    }


def law_figures(law: Mapping[str, Any]) -> dict[str, Any]:
    """Return how stepwise decoding compares with one-shot sampling and with enumeration.

    ``p_value`` is the smallest of the prompts' chi-square tests, times their number (Bonferroni).
    """
    p_values = [path["p_value"] for path in law["paths"]]
    return {
        **law,
        "well_formed_difference": abs(law["well_formed_stepwise"] - law["well_formed_generate"]),
        "p_value": min(1.0, min(p_values) * len(p_values)),
    }


LOGGED = ("step", "loss", "eval_rms_log_bellman", "eval_mean_square_log_bellman", "eval_brier")


def training_figures(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the curves of training: the entries of the log that have one."""
    rows = [{key: row[key] for key in LOGGED if key in row} for row in log]
    return [row for row in rows if "step" in row and len(row) > 1]


def stage_figures(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return seconds by stage and in total, and the largest peak of memory in GiB."""
    peaks = [s["peak_memory_gib"] for s in stages if s["peak_memory_gib"] is not None]
    seconds = {s["name"]: s["seconds"] for s in stages}
    return {
        "stages": list(stages),
        "seconds": seconds | {"total": math.fsum(s["seconds"] for s in stages)},
        "peak_memory_gib": max(peaks, default=None),
    }


def checks(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what must hold of a quick start: name, value, limit in words, and whether it holds."""
    gate, ratio = found["gate"], found["rms_ratio"]
    return [
        check("policy: well-formed share", gate.get("well_formed"), low=0.98),
        check("policy: resulting row right, share of steps", gate.get("right_row"), low=0.99),
        check("policy: success of plain sampling", gate.get("success"), low=0.03, high=0.10),
        check(
            "RMS log Bellman error, trained over constant, exact", ratio["trained_over_constant"], high=0.6
        ),
        check(
            "RMS log Bellman error, trained over untrained, exact", ratio["trained_over_untrained"], high=0.5
        ),
        check("held-out prompts sampled", found["n_prompts"], low=200),
        check("success, SMC over best-of-n, both argmax", found["smc_over_best_of_n"]["estimate"], low=1.2),
        check("generated tokens, SMC over best-of-n", found["generated_tokens_ratio"], low=0.95, high=1.05),
        check("σ², measured over predicted, pooled", found["sigma2_ratio"]["estimate"], low=0.5, high=2.0),
        check("σ², prompts measured", found["sigma2_prompts"], low=8),
        check("σ², runs a prompt", found["sigma2_runs"], low=200),
        check(
            "stepwise against one-shot: well-formed share apart by",
            found["law"]["well_formed_difference"],
            high=0.02,
        ),
        check("stepwise against one-shot: samples", found["law"]["samples"], low=2000),
        check("paths of 3 steps against enumeration: p-value", found["law"]["p_value"], low=0.001),
        check("seconds, all stages", found["seconds"]["total"], high=360),
        check("peak memory (GiB)", found["peak_memory_gib"], high=2),
    ]


def check(
    name: str, value: float | None, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    """Return one check; a value that is not available holds nothing."""
    holds = value is not None and (low is None or value >= low) and (high is None or value <= high)
    words = f"between {low} and {high}"
    if low is None or high is None:
        words = f"at most {high}" if low is None else f"at least {low}"
    return {"name": name, "value": value, "limit": words, "holds": holds}
