"""Run the checks: all cases in worker processes, the most expensive first, then one verdict per check."""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from rmtools.errors import UserError
from rmtools.particles.arguments import check_seed
from rmtools.verify.theorems import (
    algorithm2,
    bound,
    guided,
    lower,
    output_law,
    schedule,
    transition,
    unbiased,
    variance,
)
from rmtools.verify.theorems.case import Case, Figures

CHECKS: tuple[Any, ...] = (
    unbiased,
    output_law,
    variance,
    schedule,
    guided,
    bound,
    algorithm2,
    lower,
    transition,
)


@dataclass(frozen=True)
class Check:
    """What is checked, on which models, and what must hold; the figures in one line, and those of every case.

    ``seconds`` are those of one process, summed over the cases.
    """

    name: str
    on: str
    must_show: str
    found: str
    holds: bool
    cases: list[Figures]
    seconds: float


@dataclass(frozen=True)
class ExactVerification:
    """All checks of a run, whether every one holds, and the seconds it took."""

    holds: bool
    checks: tuple[Check, ...]
    quick: bool
    seed: int
    seconds: float

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{'holds' if c.holds else 'FAILS'}  {c.name:<{width}}  {c.found}" for c in self.checks]
        kept = sum(check.holds for check in self.checks)
        kind = "quick" if self.quick else "full"
        lines.append(
            f"{kept} of {len(self.checks)} checks hold ({kind}, {self.seconds:.0f} s, seed {self.seed})"
        )
        return "\n".join(lines)


def verify_exact(
    quick: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> ExactVerification:
    """Run every check.

    Parameters
    ----------
    quick : bool
        Fewer cases and runs; the same checks and limits.
    seed : int
    workers : int, optional
        Processes; default: one per core. Figures do not depend on it.
    progress : callable, optional
        Called with 1 after each of the ``n_cases(quick)`` cases.
    """
    check_seed(seed)
    start = time.perf_counter()
    todo = {(check.NAME, case.label): case for check in CHECKS for case in check.cases(quick)}
    done: dict[tuple[str, str], Figures] = {}
    for key, found in results(todo, seed, workers or cores()):
        done[key] = found
        if progress is not None:
            progress(1)
    checks = tuple(verdict(check, [done[key] for key in todo if key[0] == check.NAME]) for check in CHECKS)
    return ExactVerification(all(c.holds for c in checks), checks, quick, seed, time.perf_counter() - start)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_cases(quick: bool) -> int:
    """Return the number of cases."""
    return sum(len(check.cases(quick)) for check in CHECKS)


def results(
    todo: dict[tuple[str, str], Case], seed: int, workers: int
) -> Iterator[tuple[tuple[str, str], Figures]]:
    """Yield (check, label) and the figures of each case, as they finish."""
    order = sorted(todo, key=lambda key: -todo[key].cost)
    if workers == 1:
        for key in order:
            yield key, timed(todo[key], seed, key[0])
        return
    context = multiprocessing.get_context("spawn")
    # Not an Event: setting one waits for its sleepers, even for one that was killed.
    stop = context.RawValue(ctypes.c_bool, False)
    pool = ProcessPoolExecutor(workers, context, live_with_parent, (os.getpid(), stop))
    try:
        started = {pool.submit(timed, todo[key], seed, key[0]): key for key in order}
        for finished in as_completed(started):
            yield started[finished], finished.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for lack of memory", "free memory, or use `workers=1`"
        ) from error
    finally:
        stop.value = True
        pool.shutdown(cancel_futures=True)


def live_with_parent(parent: int, stop: ctypes.c_bool) -> None:
    """Leave the interrupt key to the parent; end this worker if its parent was killed or asks it to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent and not stop.value:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def timed(case: Case, seed: int, check: str) -> Figures:
    """Return the figures of the case, and its seconds."""
    start = time.perf_counter()
    found = case.measure(seed, check)
    return {**found, "seconds": time.perf_counter() - start}


def verdict(check: Any, cases: Sequence[Figures]) -> Check:
    """Return the result of a check."""
    failed = [case["label"] for case in cases if not case["holds"]]
    text = f"{check.figures(cases)}; {len(cases) - len(failed)}/{len(cases)} cases"
    if failed:
        text += f", not: {'; '.join(failed[:4])}{' …' * (len(failed) > 4)}"
    seconds = sum(case["seconds"] for case in cases)
    return Check(check.NAME, check.ON, check.MUST_SHOW, text, not failed, list(cases), seconds)
