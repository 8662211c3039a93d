"""Running the checks: all cases in worker processes, dearest first, then one verdict a check."""

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rmtools.errors import UserError
from rmtools.verify.theorems import (
    algorithm2,
    bound,
    guided,
    lower,
    output_law,
    transition,
    unbiased,
    variance,
)
from rmtools.verify.theorems.case import Case
from rmtools.verify.theorems.result import Check, ExactVerification

CHECKS: tuple[Any, ...] = (unbiased, output_law, variance, guided, bound, algorithm2, lower, transition)


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
        Processes; default: one a core. Figures do not depend on it.
    progress : callable, optional
        Told 1 after every case; there are ``n_cases(quick)``.

    Raises
    ------
    UserError
        If ``workers`` is less than 1 or ``seed`` negative.
    """
    if seed < 0:
        raise UserError(f"`seed` must be at least 0, got {seed}", "seed=0")
    workers = cores() if workers is None else workers
    if workers < 1:
        raise UserError(
            f"`workers` must be at least 1, got {workers}: it is a number of processes", "workers=2"
        )
    start = time.perf_counter()
    todo = {(check.NAME, case.label): case for check in CHECKS for case in check.cases(quick)}
    done: dict[tuple[str, str], tuple[dict[str, Any], float]] = {}
    for key, result in results(todo, seed, workers):
        done[key] = result
        if progress is not None:
            progress(1)
    checks = tuple(verdict(check, [done[key] for key in todo if key[0] == check.NAME]) for check in CHECKS)
    return ExactVerification(checks, quick, seed, time.perf_counter() - start)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_cases(quick: bool) -> int:
    """Return how many cases there are."""
    return sum(len(check.cases(quick)) for check in CHECKS)


def results(
    todo: dict[tuple[str, str], Case], seed: int, workers: int
) -> Iterator[tuple[tuple[str, str], tuple[dict[str, Any], float]]]:
    """Yield (check, label) and what the case found, as they finish."""
    order = sorted(todo, key=lambda key: -todo[key].cost)
    if workers == 1:
        for key in order:
            yield key, timed(todo[key], seed, key[0])
        return
    context = multiprocessing.get_context("spawn")
    # Not an Event: setting one waits for its sleepers, also for one that was killed.
    stop = context.RawValue(ctypes.c_bool, False)
    pool = ProcessPoolExecutor(workers, context, live_with_parent, (os.getpid(), stop))
    try:
        started = {pool.submit(timed, todo[key], seed, key[0]): key for key in order}
        for finished in as_completed(started):
            yield started[finished], finished.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, most likely for want of memory", "free memory, or --workers 1"
        ) from error
    finally:
        stop.value = True
        pool.shutdown(cancel_futures=True)


def live_with_parent(parent: int, stop: ctypes.c_bool) -> None:
    """Leave the interrupt key to the parent, and end a worker whose parent was killed or wants to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent and not stop.value:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def timed(case: Case, seed: int, check: str) -> tuple[dict[str, Any], float]:
    """Return what the case found, and seconds."""
    start = time.perf_counter()
    found = case.measure(seed, check)
    seconds = time.perf_counter() - start
    return {**found, "seconds": seconds}, seconds


def verdict(check: Any, found: list[tuple[dict[str, Any], float]]) -> Check:
    """Return the check's row."""
    cases = [case for case, _ in found]
    holds, text = check.judge(cases)
    return Check(
        check.NAME, check.ON, check.MUST_SHOW, text, holds, cases, sum(seconds for _, seconds in found)
    )
