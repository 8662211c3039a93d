"""Progress bars for long work."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a bar on standard error; yields a function that is told how many items are newly done."""
    done = 0
    with bar(label, total) as update:

        def tick(n: int) -> None:
            nonlocal done
            done += n
            update(done, "")

        yield tick


@contextlib.contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int, str], object]]:
    """Show a bar on standard error; yields a function that is told how many items are done, and a text to put behind it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(label, total=total, figures="")
        yield lambda done, figures: shown.update(task, completed=done, figures=figures)
