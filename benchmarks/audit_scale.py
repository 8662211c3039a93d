r"""Time and memory of an audit's figures and pages at 10^5 prefixes with 8 scored children, and no model.

    OMP_NUM_THREADS=1 python benchmarks/audit_scale.py --out docs/benchmarks/audit_scale.json

1,000 prompts, 12 trajectories each, 6 to 11 steps, 8 children and 4 completions (the trajectory's own counted) at every
prefix. The success probability of a prefix is a random walk that steps through the sigmoid; three value models see it with
noise, as an audit has a model and two controls, and every ratio is also given as if it had been enumerated. What is timed
is what `rmtools audit` does once the scores are there: every estimate with its interval, and the three files with the
plots. The rollouts are made before the clock starts; the peak memory is that of the whole process, the import of torch and
the rollouts with it. One thread.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from rmtools.auditing import AuditReport
from rmtools.auditing.model_audit import AuditOptions, Subject, audit_model
from rmtools.auditing.page import write_report
from rmtools.data.rollouts import Child, Rollout
from rmtools.data.scoring import ScoredRollouts
from rmtools.files import write_json
from rmtools.particles.tilt import Tilt

PROMPTS, TRAJECTORIES, STEPS, CHILDREN, COMPLETIONS = 1000, 12, (6, 11), 8, 4
NOISE = {"model": 0.1, "constant": 1.0, "untrained": 0.3}
SECONDS, BYTES = 60.0, 2 << 30


def walks(prompts: int, trajectories: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the log-odds of success of every trajectory, (T + 1,) each; those of a prompt share the first."""
    found = []
    for start in rng.normal(-1.5, 1.0, prompts):
        for n in rng.integers(STEPS[0], STEPS[1] + 1, trajectories):
            found.append(start + np.concatenate([[0.0], np.cumsum(rng.normal(0, 0.7, n))]))
    return found


def make_rows(odds: list[np.ndarray], trajectories: int, rng: np.random.Generator) -> list[Rollout]:
    """Draw outcomes and completions, with as much text around them as rollouts have in memory."""
    rows = []
    for i, walk in enumerate(odds):
        p, prompt = 1 / (1 + np.exp(-walk)), str(i // trajectories)
        n = len(walk) - 1
        children = [
            [Child(f"step {t}.{k} of {i}\n", False, None) for k in range(1, CHILDREN)] for t in range(n)
        ]
        completions = (rng.random((n, COMPLETIONS - 1)) < p[:-1, None]).astype(float).tolist()
        steps = [f"step {t}.0 of {i}\n" for t in range(n)]
        rows.append(Rollout(prompt, prompt, steps, float(rng.random() < p[-1]), children, completions))
    return rows


def make_scores(
    odds: list[np.ndarray], rows: list[Rollout], noise: float, tilt: Tilt, rng: np.random.Generator
) -> ScoredRollouts:
    """Value every prefix and child by its noisy log-odds; the end by the verifier."""
    steps = np.asarray([len(w) - 1 for w in odds])
    reward = np.asarray([r.outcome for r in rows])

    def value(x: np.ndarray) -> np.ndarray:
        return tilt.log_value(-np.logaddexp(0.0, -(x + rng.normal(0, noise, x.shape))))

    own = [value(w) for w in odds]
    ended = [np.append(v[:-1], phi) for v, phi in zip(own, tilt.log_potential(reward), strict=True)]
    prefix = np.concatenate([w[:-1] for w in odds])
    others = value(prefix[:, None] + rng.normal(0, 0.7, (len(prefix), CHILDREN - 1)))
    child = np.concatenate([np.concatenate([v[1:] for v in ended])[:, None], others], axis=1)
    return ScoredRollouts(
        prompt=np.asarray([int(r.prompt_id) for r in rows]),
        log_value=ended,
        own_log_value=own,
        reward=reward,
        prefix_trajectory=np.repeat(np.arange(len(odds)), steps),
        prefix_depth=np.concatenate([np.arange(n) for n in steps]),
        prefix_log_value=np.concatenate([v[:-1] for v in ended]),
        child_log_value=child,
        child_present=np.ones(child.shape, dtype=bool),
        horizon=int(steps.max()),
    )


def report_of(scored: dict[str, ScoredRollouts], rows: list[Rollout], tilt: Tilt) -> AuditReport:
    """Return the report on all models."""
    models = []
    for k, (role, scores) in enumerate(scored.items()):
        exact = scores.errors().plug_in
        models.append(
            audit_model(
                Subject(role, role, tilt), rows, scores, AuditOptions(), np.random.default_rng([0, k]), exact
            )
        )
    provenance = {
        "checkpoint": "a random walk",
        "task": "none",
        "policy": "none",
        "terminal": "verifier",
        "delta_cv": 0.25,
        "delta_tv": 0.05,
        "n_prompts": len({r.prompt_id for r in rows}),
        "n_trajectories": len(rows),
    }
    return AuditReport(tuple(models), {}, provenance, None, ())


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns, and its seconds."""
    start = time.perf_counter()
    result = what()
    return result, time.perf_counter() - start


def peak_bytes() -> int:
    """Return the largest resident size of this process so far; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(prompts: int, trajectories: int, out: Path) -> dict[str, Any]:
    """Audit synthetic scores of ``prompts`` prompts, ``trajectories`` each, and write the pages into ``out``."""
    rng, tilt = np.random.default_rng(0), Tilt(0.01)
    odds = walks(prompts, trajectories, rng)
    rows = make_rows(odds, trajectories, rng)
    scored = {role: make_scores(odds, rows, noise, tilt, rng) for role, noise in NOISE.items()}
    before = peak_bytes()
    report, estimates = timed(lambda: report_of(scored, rows, tilt))
    _, pages = timed(lambda: write_report(report, out))
    return {
        "prompts": prompts,
        "prefixes": len(scored["model"].prefix_depth),
        "children": CHILDREN,
        "models": len(scored),
        "seconds_estimates": round(estimates, 2),
        "seconds_pages": round(pages, 2),
        "seconds": round(estimates + pages, 2),
        "peak_mib": round(peak_bytes() / 2**20),
        "peak_mib_before": round(before / 2**20),
        "required": {"seconds": SECONDS, "peak_mib": BYTES >> 20},
        "holds": estimates + pages < SECONDS and peak_bytes() < BYTES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--trajectories", type=int, default=TRAJECTORIES, help="of each prompt")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args.prompts, args.trajectories, Path(folder))
    print(result)
    if args.out:
        write_json(args.out, result)
    if not result["holds"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
