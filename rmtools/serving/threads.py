"""A bounded number of threads for work that waits: requests to a server."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def run_all(jobs: Sequence[Callable[[threading.Event], T]], concurrency: int) -> list[T]:
    """Run every job once, at most ``concurrency`` at a time; return their results in the order of the jobs.

    A job gets an event that is set when its result is no longer needed. The first exception of a job, or an interrupt,
    is raised at once: no further job starts, and nobody waits for the running ones.
    """
    todo: queue.SimpleQueue[tuple[int, Callable[[threading.Event], T]]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()
    for job in enumerate(jobs):
        todo.put(job)

    def work() -> None:
        while not stop.is_set():
            try:
                i, job = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((i, job(stop), None))
            except BaseException as error:
                stop.set()
                done.put((i, None, error))

    results: list[Any] = [None] * len(jobs)
    try:
        # Daemons: a request that hangs must not keep an interrupted program alive.
        for _ in range(min(concurrency, len(jobs))):
            threading.Thread(target=work, daemon=True).start()
        for _ in jobs:
            i, results[i], error = done.get()
            if error is not None:
                raise error
    finally:
        stop.set()
    return results
