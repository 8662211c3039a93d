"""Time the sampler against the package `particles` on the same binary chain, interleaved, medians.

    pip install "rmtools[bench]" && pip install --no-deps particles==0.4
    OMP_NUM_THREADS=1 python benchmarks/smc_vs_particles.py --out docs/benchmarks/smc_vs_particles.json

`particles` 0.4 asks for numpy < 2, which nothing else here does; it runs on numpy 2, so it is installed without its
dependencies (the extra has them). Both sample T = 32 steps with N = 1000 particles and estimate the same Z, which
dynamic programming gives: every estimate is checked against it. Three regimes: systematic resampling when ESS < N/2
(the default of both), systematic at every step, multinomial at every step (the paper's). The package is repeated in a
plain loop and by its own `multiSMC`, on one process and on all cores, all without collectors. Like is compared with like:
one thread with the faster of the package's ways on one process, all cores with the fastest of all its ways, 200 runs a call.
"""

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import particles

from rmtools.core import FiniteModel, smc, solve
from rmtools.files import write_json

HORIZON, N = 32, 1000
GROUPS, PER_BLOCK = 200, 20
CORES = os.cpu_count() or 1
OURS = f"rmtools, {GROUPS} runs a call"
OURS_ALL = f"rmtools, {GROUPS} runs, all cores"
LOOP, MULTI, MULTI_ALL = (f"particles, {way}" for way in ("plain loop", "multiSMC", "multiSMC, all cores"))


@dataclass(frozen=True)
class Regime:
    """Scheme and ESS threshold."""

    scheme: str
    threshold: float


REGIMES = {
    "systematic, ESS < N/2": Regime("systematic", 0.5),
    "systematic, every step": Regime("systematic", 1.0),
    "multinomial, every step": Regime("multinomial", 1.0),
}


def tables(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return stay probabilities (T, 2) of state 1 and log values (T + 1, 2) of a chain with states 0 and 1."""
    return rng.uniform(0.2, 0.8, (HORIZON, 2)), rng.normal(0, 1.0, (HORIZON + 1, 2))


def finite_model(to_one: np.ndarray, log_value: np.ndarray) -> FiniteModel:
    policy = [np.stack([1 - p, p], axis=1) for p in to_one]
    policy[0] = policy[0][:1]
    children = [np.tile([0, 1], (len(p), 1)) for p in policy]
    return FiniteModel(policy, [np.zeros(1), *log_value[1:]], children)


class Chain(particles.FeynmanKac):
    """The same model for the package: states 0 and 1, ratios of values as potentials, table lookups throughout."""

    def __init__(
        self, to_one: np.ndarray, log_value: np.ndarray, uniform: Callable[[int], np.ndarray]
    ) -> None:
        super().__init__(HORIZON)
        self.to_one, self.uniform = to_one, uniform
        self.increment = log_value[1:, None, :] - log_value[:-1, :, None]
        self.first = log_value[1]

    def M0(self, n: int) -> np.ndarray:  # noqa: N802
        return (self.uniform(n) < self.to_one[0, 0]).astype(np.intp)

    def M(self, t: int, xp: np.ndarray) -> np.ndarray:  # noqa: N802
        return (self.uniform(len(xp)) < self.to_one[t].take(xp)).astype(np.intp)

    def logG(self, t: int, xp: np.ndarray | None, x: np.ndarray) -> np.ndarray:  # noqa: N802
        return self.first.take(x) if xp is None else self.increment[t].ravel().take(2 * xp + x)


def bare(to_one: np.ndarray, log_value: np.ndarray, regime: Regime, rng: np.random.Generator) -> float:
    """One run in bare numpy, nothing checked and nothing kept: the limit of one run."""
    state, log_z, log_w = np.zeros(N, dtype=np.intp), 0.0, np.zeros(N)
    comb = np.arange(N)
    for t in range(HORIZON):
        child = (rng.random(N) < to_one[t].take(state)).astype(np.intp)
        log_w += log_value[t + 1].take(child) - (log_value[t].take(state) if t else 0.0)
        top = log_w.max()
        w = np.exp(log_w - top)
        total = w.sum()
        state = child
        if t + 1 < HORIZON and total**2 <= regime.threshold * N * (w @ w) * (1 + 1e-9):
            log_z += top + np.log(total / N)
            points = comb + rng.random() if regime.scheme == "systematic" else N * rng.random(N)
            index = np.searchsorted(np.cumsum(w) * (N / total), points)
            state, log_w = child.take(np.minimum(index, N - 1)), np.zeros(N)
    top = log_w.max()
    return float(log_z + top + np.log(np.exp(log_w - top).mean()))


def contestants(regime: Regime, seed: int) -> tuple[dict[str, tuple[Callable[[], Any], int]], float]:
    """Return name -> (function returning log Z estimates, runs per call), and log Z."""
    rng = np.random.default_rng(seed)
    to_one, log_value = tables(rng)
    model = finite_model(to_one, log_value)
    # multiSMC seeds numpy's global generator in every run, so there the model must draw from it.
    looped, multiple = Chain(to_one, log_value, rng.random), Chain(to_one, log_value, np.random.random_sample)
    settings: dict[str, Any] = {
        "resampling": regime.scheme,
        "ESSrmin": 1.001 * regime.threshold,
        "collect": "off",
    }

    def package() -> list[float]:
        run = particles.SMC(fk=looped, N=N, **settings)
        run.run()
        return [run.logLt]

    def multi(nruns: int, nprocs: int) -> list[float]:
        done = particles.multiSMC(
            nruns=nruns, nprocs=nprocs, out_func=log_likelihood, fk=multiple, N=N, **settings
        )
        return [row["output"] for row in done]

    def ours(groups: int, rng: np.random.Generator) -> np.ndarray:
        root = model.particles(groups)
        result = smc(root, N, 1, regime.scheme, regime.threshold, rng, history=False, islands=1)
        assert result.log_z is not None
        return result.log_z

    def ours_on_all_cores() -> np.ndarray:
        with ThreadPoolExecutor(CORES) as threads:
            return np.concatenate(list(threads.map(ours, [GROUPS // CORES] * CORES, rng.spawn(CORES))))

    found: dict[str, tuple[Callable[[], Any], int]] = {
        LOOP: (package, 1),
        MULTI: (lambda: multi(PER_BLOCK, 1), PER_BLOCK),
        OURS: (lambda: ours(GROUPS, rng), GROUPS),
        OURS_ALL: (ours_on_all_cores, GROUPS // CORES * CORES),
        "rmtools, one run a call": (lambda: ours(1, rng), 1),
        "bare numpy, one run": (lambda: [bare(to_one, log_value, regime, rng)], 1),
        # Last, because after a fork every page that is written to again costs a fault.
        MULTI_ALL: (lambda: multi(GROUPS, 0), GROUPS),
    }
    return found, float(solve(model).log_z)


def log_likelihood(run: Any) -> float:
    return run.logLt


def compare(regime: Regime, seed: int, blocks: int) -> dict[str, dict[str, float]]:
    """Return milliseconds a run (median over blocks) and the mean of Zhat / Z of every contestant."""
    found, log_z = contestants(regime, seed)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    ratios: dict[str, list[float]] = {name: [] for name in found}
    for call, _ in found.values():
        call()  # the package compiles at its first call
    for _ in range(blocks):
        for name, (call, runs) in found.items():
            for _ in range(max(1, PER_BLOCK // runs)):
                start = time.perf_counter()
                estimate = call()
                seconds[name].append((time.perf_counter() - start) / runs)
                ratios[name].extend(np.exp(np.asarray(estimate) - log_z).tolist())
    return {name: row(seconds[name], ratios[name]) for name in found}


def row(seconds: list[float], ratio: list[float]) -> dict[str, float]:
    error = float(np.std(ratio, ddof=1) / np.sqrt(len(ratio)))
    return {
        "milliseconds": 1000 * float(np.median(seconds)),
        "runs": len(ratio),
        "mean_z_ratio": float(np.mean(ratio)),
        "z_score": (float(np.mean(ratio)) - 1) / error,
    }


def speedups(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return how many times as long a run of the package takes, on one core and on all."""
    ms = {who: row["milliseconds"] for who, row in found.items()}
    one_core = min(ms[LOOP], ms[MULTI])
    return {"one core": one_core / ms[OURS], "all cores": min(one_core, ms[MULTI_ALL]) / ms[OURS_ALL]}


def table(name: str, found: dict[str, dict[str, float]]) -> str:
    lines = [f"{name:<34}{'ms a run':>9}{'runs':>7}{'mean Z-hat/Z':>14}{'z':>7}"]
    lines += [
        f"  {who:<32}{r['milliseconds']:>9.3f}{r['runs']:>7}{r['mean_z_ratio']:>14.4f}{r['z_score']:>7.2f}"
        for who, r in found.items()
    ]
    times = ", ".join(f"{ratio:.2f} on {where}" for where, ratio in speedups(found).items())
    return "\n".join([*lines, f"  rmtools is so many times as fast: {times}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--blocks", type=int, default=10, help="20 runs of each contestant a block, interleaved"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    np.random.seed(args.seed)  # noqa: NPY002, the package draws from the global generator
    everything: dict[str, Any] = {"cores": CORES}
    for name, regime in REGIMES.items():
        found = compare(regime, args.seed, args.blocks)
        print(table(name, found), flush=True)
        everything[name] = {"times_as_fast": speedups(found), "contestants": found}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, everything)


if __name__ == "__main__":
    main()
