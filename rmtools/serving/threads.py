"""A bounded number of threads for work that waits: requests to a server."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def run_all(jobs: Sequence[Callable[[threading.Event], T]], concurrency: int) -> list[T]:
    """Run every job once, at most ``concurrency`` at a time; return their results in the order of the jobs.

    Parameters
    ----------
    jobs : sequence of callable
        Each is given an event that is set when its result is no longer wanted.
    concurrency : int

    Raises
    ------
    BaseException
        The first that a job raises, or an interrupt: jobs not yet begun are not, and nobody waits for the others.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()
    for i in range(len(jobs)):
        todo.put(i)

    def work() -> None:
        while not stop.is_set():
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((i, jobs[i](stop), None))
            except BaseException as error:
                stop.set()
                done.put((i, None, error))

    results: dict[int, T] = {}
    try:
        # Daemons: a request that hangs must not keep an interrupted program alive.
        for _ in range(min(concurrency, len(jobs))):
            threading.Thread(target=work, daemon=True).start()
        while len(results) < len(jobs):
            i, result, error = done.get()
            if error is not None:
                raise error
            results[i] = result  # type: ignore[assignment]
    finally:
        stop.set()
    return [results[i] for i in range(len(jobs))]
