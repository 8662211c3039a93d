"""The table of compare.sh: who is right how often, at which tokens, and what SMC gains on the same prompts.

python recipes/real/compare.py runs/real-counting/compare runs/real-counting/compare/audit/audit.json
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.cli.errors import exit_on_user_error
from rmtools.errors import UserError
from rmtools.files import read_json
from rmtools.sampling.outputs import vote
from rmtools.stats.bootstrap import Interval, cluster_bootstrap

Record = dict[str, Any]
FILES = ("smc-0", "smc-1", "beam", "independent")


def read(folder: Path) -> dict[str, list[Record]]:
    """Return the records of every file; raises ``UserError`` if one is missing or of other prompts than the first."""
    found = {}
    for name in FILES:
        file = folder / f"{name}.jsonl"
        if not file.exists():
            raise UserError(f"{file} is missing", "run recipes/real/compare.sh")
        found[name] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if [r["prompt"] for r in found[name]] != [r["prompt"] for r in found[FILES[0]]]:
            raise UserError(
                f"{file} has other prompts than {FILES[0]}.jsonl", "sample it again with the same prompts"
            )
    return found


def reward(record: Record, index: int | None) -> float:
    """Return the reward of a record's solution, 0 for none."""
    return 0.0 if index is None else record["samples"][index]["reward"]


def best(record: Record, n: int) -> int:
    """Return the solution of largest value among the first n."""
    return int(np.argmax([s["log_value"] for s in record["samples"][:n]]))


def majority(record: Record, n: int, weighted: bool) -> int | None:
    """Return the solution that the first n independent ones choose by votes, or by votes weighted with their values."""
    first = record["samples"][:n]
    weight = np.asarray([s["log_value"] if weighted else 0.0 for s in first])
    return vote([s["answer"] for s in first], weight, by_weight=True)


def interval(per_prompt: np.ndarray) -> Interval:
    """Return the mean over prompts with its 95% interval."""
    return cluster_bootstrap(per_prompt[:, None], lambda m: m[:, 0], np.random.default_rng(0))


def shown(i: Interval, sign: str = "") -> str:
    """Return an interval as text."""
    if i.low is None or i.high is None:
        return f"{i.estimate:{sign}.3f}"
    return f"{i.estimate:{sign}.3f} [{i.low:{sign}.3f}, {i.high:{sign}.3f}]"


def methods(found: dict[str, list[Record]]) -> dict[str, tuple[np.ndarray, float, float]]:
    """Return by method: success of each prompt, mean tokens of the policy, and mean tokens that the value model reads.

    The prompt, read once by each model, is not counted. Both runs of SMC count, each with the tokens of one.
    """
    smc, alone = [found["smc-0"], found["smc-1"]], found["independent"]
    n = len(smc[0][0]["samples"])
    several = len(alone[0]["samples"])

    def tokens(records: list[Record]) -> float:
        return float(np.mean([r["generated_tokens"] for r in records]))

    def smc_by(choose: Callable[[Record], float]) -> np.ndarray:
        return np.mean([[choose(r) for r in run] for run in smc], axis=0)

    one = tokens(alone) / several
    of_smc, of_beam = (tokens(smc[0]) + tokens(smc[1])) / 2, tokens(found["beam"])
    rows = {
        "one sample": (np.asarray([np.mean([s["reward"] for s in r["samples"]]) for r in alone]), one, 0.0),
        f"SMC, N = {n}: draw": (smc_by(lambda r: reward(r, r["draw"])), of_smc, of_smc),
        f"SMC, N = {n}: argmax": (smc_by(lambda r: reward(r, r["argmax"])), of_smc, of_smc),
        f"SMC, N = {n}: weighted majority": (
            smc_by(lambda r: reward(r, r["weighted_majority"])),
            of_smc,
            of_smc,
        ),
        "beam": (np.asarray([reward(r, r["argmax"]) for r in found["beam"]]), of_beam, of_beam),
        f"best of {n}": (np.asarray([reward(r, best(r, n)) for r in alone]), n * one, n * one),
        f"weighted majority of {n}": (
            np.asarray([reward(r, majority(r, n, True)) for r in alone]),
            n * one,
            n * one,
        ),
    }
    for k in (n, several):
        right = np.asarray([reward(r, majority(r, k, False)) for r in alone])
        rows[f"majority of {k}"] = (right, k * one, 0.0)
    return rows


def measured_cv(found: dict[str, list[Record]]) -> float:
    """Return the coefficient of variation of Z: root mean square over prompts, from the differences of two runs each."""
    log_z = np.asarray([[r["log_z"] for r in found[name]] for name in FILES[:2]], dtype=float)
    return float(np.sqrt(np.mean(2 * np.tanh((log_z[0] - log_z[1]) / 2) ** 2)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="samples of compare.sh")
    parser.add_argument("audit", type=Path, help="audit.json of the value model")
    args = parser.parse_args()
    found = read(args.folder)
    rows = methods(found)
    n = len(found["smc-0"][0]["samples"])
    ours = f"SMC, N = {n}: argmax"
    print(
        f"{len(found['smc-0'])} prompts; 95% intervals over prompts, differences on the same prompts; tokens without prompts\n"
    )
    print(f"| method | right | policy's tokens | value model's | all | {ours} minus it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (right, drawn, read_) in rows.items():
        ahead = "" if name == ours else shown(interval(rows[ours][0] - right), "+")
        print(
            f"| {name} | {shown(interval(right))} | {drawn:.0f} | {read_:.0f} | {drawn + read_:.0f} | {ahead} |"
        )
    cv = measured_cv(found)
    audit = read_json(args.audit, "the audit")
    variance = (audit["models"][0]["cost"]["best_of_n"] or {}).get("estimate")
    predicted = "not resolved"
    if variance:
        predicted = shown(Interval(**{end: float(np.sqrt(max(0.0, x) / n)) for end, x in variance.items()}))
    # What a sampler that hardly resamples should have; of another the audit of this terminal has no prediction but a pilot.
    print(
        f"\nCV of Z at N = {n}: {cv:.3f} between two runs of SMC; audited, of independent solutions: {predicted}"
    )


if __name__ == "__main__":
    with exit_on_user_error():
        main()
