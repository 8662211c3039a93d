"""Samples of many prompts in one file, whoever draws them: blocks of prompts, shared by processes, resumable, merged.

Prompts are cut into fixed blocks. Block i has a generator of its own (seed, verb, i) and is drawn whole by one process,
so the file is the same whatever the number of processes and however often they were killed. Blocks in the making lie in
a hidden folder beside the file (rmtools.jobs.job); once all are there the main process joins them, moves the file
into place in one rename, and removes the folder.

A record's ``provenance.run`` is the hash of the plan (rmtools.jobs.sample_plan): a file with all records of a plan is finished.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.data.shards import DATA, PLAN_FILE
from rmtools.errors import UserError
from rmtools.files import replacing
from rmtools.jobs.job import TALLY, Bar, Job, Tick, block_generator, differences, read_plan
from rmtools.jobs.lock import PARTIAL, is_free, remove
from rmtools.jobs.processes import Process
from rmtools.jobs.sample_plan import SamplePlan

VERB = "sample"

Record = dict[str, Any]
Draw = Callable[[Sequence[str], np.random.Generator], Iterable[tuple[Record, Sequence[Record]]]]
# In a block a line of a trace stands behind the record it is of.
TRACE_MARK = b"\t"


@dataclass(frozen=True)
class Block:
    """What is kept of a block."""

    records: int


class SampleFile:
    """A file of samples in the making.

    Parameters
    ----------
    out : Path
    plan : SamplePlan
    process : Process
        Which of the processes this one is.
    trace : Path, optional
        File for the traces, where the plan says that there are any.
    """

    def __init__(self, out: Path, plan: SamplePlan, process: Process, trace: Path | None = None) -> None:
        self.out = out
        self.trace = trace
        self.plan = plan
        self.folder = out.parent / f".{out.name}.parts"
        self.work = Job(
            self.folder, plan, plan.blocks, Block, process, f"samples for {out}", over=lambda: self.finished
        )

    @property
    def finished(self) -> bool:
        """Whether the file holds every record of the plan; it only ever comes into place whole."""
        try:
            with self.out.open("rb") as lines:
                last = next(lines)
                if not self._is_own(last):
                    return False
                count = 1
                for line in lines:
                    last, count = line, count + 1
        except (OSError, StopIteration):
            return False
        there = self.trace is None or self._begins_own(self.trace)
        return there and count == self.plan.prompts and self._is_own(last)

    def _begins_own(self, path: Path) -> bool:
        with contextlib.suppress(OSError, StopIteration), path.open("rb") as lines:
            return self._is_own(next(lines))
        return False

    def _check_whole(self, prompts: Sequence[str]) -> None:
        """Raise ``UserError`` where the file was changed since it was made: a record is damaged or stands elsewhere."""
        with self.out.open("rb") as lines:
            for number, (line, prompt) in enumerate(zip(lines, prompts, strict=False), 1):
                if not self._is_own(line) or json.loads(line).get("prompt") != prompt:
                    raise UserError(
                        f"{self.out}, line {number} was changed since it was written",
                        "put the file back, or pass --overwrite to draw all of it again",
                    )

    def _is_own(self, line: bytes) -> bool:
        try:
            return bool(json.loads(line)["provenance"]["run"] == self.plan.run)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    def make(self, prompts: Sequence[str], draw: Draw, bar: Bar, overwrite: bool = False) -> bool:
        """Draw this process's missing blocks; the main process also waits for the others' and joins them.

        Parameters
        ----------
        prompts : sequence of str
        draw : callable
            (prompts, generator) to their records, each with the records of its trace.
        bar : callable
            (label, total) to a context that yields a tick; seen by the main process only.
        overwrite : bool
            Replace what was made or begun with other arguments, instead of refusing.

        Returns
        -------
        bool
            False where the file was finished already.

        Raises
        ------
        UserError
            If a file or blocks of other arguments are there, another run is at work, or the place cannot be written.
        """
        if self.out.is_dir():
            raise UserError(f"the output {self.out} is a folder", "name a JSONL file with --out")
        process = self.work.process
        if self._stands(prompts, overwrite):
            if process.main:
                self._sweep()
            return False
        if not overwrite:
            self._refuse_strangers()
        if process.rank >= self.plan.blocks.count and not process.main:
            return True
        claimed = False
        try:
            nothing_left = not any(self.folder.glob(f"{DATA}/*"))
            with self.work.claimed(process.main and (overwrite or nothing_left)) as needed:
                claimed = True
                if needed:
                    self._work(prompts, draw, bar)
        finally:
            self._tidy(claimed)
        return True

    def _stands(self, prompts: Sequence[str], overwrite: bool) -> bool:
        """Whether the file is finished; a damaged one is removed where it may be, else refused."""
        if not self.finished:
            return False
        try:
            self._check_whole(prompts)
        except UserError:
            if not overwrite:
                raise
            if self.work.process.main:
                remove(self.out)
            return False
        return True

    def _refuse_strangers(self) -> None:
        """Raise ``UserError`` where a file would be replaced that this plan did not make."""
        for option, path in (("--out", self.out), ("--trace", self.trace)):
            if path is not None and path.exists() and not self._begins_own(path):
                raise UserError(
                    f"{path} is there already, and was not made with these arguments",
                    f"name another {option}, or pass --overwrite to replace it",
                )

    def _work(self, prompts: Sequence[str], draw: Draw, bar: Bar) -> None:
        def compute(block: int, tick: Tick) -> tuple[Block, Callable[[Path], object]]:
            rng = block_generator(VERB, self.plan.seed, block)
            count, text = self._lines_of(draw(prompts[self.plan.blocks.of(block)], rng), tick)
            return Block(count), lambda path: path.write_text(text, encoding="utf-8")

        self.work.run(compute, f"sampling {self.plan.prompts} prompts", bar)
        if self.work.process.main:
            self._join()

    def _lines_of(self, records: Iterable[tuple[Record, Sequence[Record]]], tick: Tick) -> tuple[int, str]:
        provenance = self.plan.provenance()
        lines = []
        count = 0
        for record, traces in records:
            lines.append(json.dumps({**record, "provenance": provenance}, allow_nan=False) + "\n")
            mark = TRACE_MARK.decode()
            own = {"provenance": {"run": self.plan.run}}
            lines += [mark + json.dumps({**t, **own}, allow_nan=False) + "\n" for t in traces]
            count += 1
            tick(1)
        return count, "".join(lines)

    def _join(self) -> None:
        """Move all records into place in one rename, and remove the blocks."""
        within = self.work.scratch
        assert within is not None
        # The trace comes into place first: a file of samples that is whole has its trace.
        if self.trace is not None:
            with replacing(self.trace, self._beside(within)) as temporary, temporary.open("wb") as whole:
                for line in self._lines():
                    if line.startswith(TRACE_MARK):
                        whole.write(line.removeprefix(TRACE_MARK))
        with replacing(self.out, within) as temporary, temporary.open("wb") as whole:
            whole.writelines(line for line in self._lines() if not line.startswith(TRACE_MARK))
        self.work.discard()

    def _beside(self, within: Path) -> Path | None:
        """Return ``within``, which is swept after a kill, where the trace is on the same file system."""
        assert self.trace is not None
        self.trace.parent.mkdir(parents=True, exist_ok=True)
        return within if self.trace.parent.stat().st_dev == within.stat().st_dev else None

    def _lines(self) -> Iterator[bytes]:
        for shard in range(self.plan.blocks.count):
            with self.work.file(shard).open("rb") as lines:
                yield from lines

    def _sweep(self) -> None:
        """Remove what a kill left after the file was in place."""
        try:
            old = read_plan(self.folder)
        except UserError:
            return
        if old is not None and differences(old, self.work.plan):
            return
        if not all(is_free(lock) for lock in self.folder.glob(f"{PARTIAL}/*.lock")):
            return
        remove(self.folder / PARTIAL)
        if old is not None:
            self.work.discard()
        self._tidy()

    def _tidy(self, orphans: bool = False) -> None:
        """Remove the folder where it holds nothing to go on with and no process is at work in it.

        With ``orphans`` also blocks without a plan: the plan goes last, so they came after the file was joined.
        """
        with contextlib.suppress(UserError, OSError):
            if any(self.folder.glob(f"{PARTIAL}/*")):
                return
            if orphans and read_plan(self.folder) is None:
                for name in (TALLY, DATA):
                    remove(self.folder / name)
            if any(self.folder.glob(f"{DATA}/*")) or not self._is_ours():
                return
            remove(self.folder / PLAN_FILE)
        # Folders that are not empty stay: another process has just begun.
        for name in (PARTIAL, TALLY, DATA, ""):
            with contextlib.suppress(OSError):
                (self.folder / name).rmdir()

    def _is_ours(self) -> bool:
        """Whether the folder has a plan, or nothing at all."""
        return read_plan(self.folder) is not None or not any(self.folder.glob("*.json"))
