"""Samples of many prompts as a job (rmtools.jobs.job): blocks in a hidden folder beside the file, joined into it.

Each block of prompts is drawn whole by one process from the block's own generator, so the file is the same, but for seconds,
whatever the number of processes and however often they were killed. Once all blocks are there the main process joins
them, moves the file into place in one rename, and removes the folder.

A record's ``provenance.run`` is the hash of the plan; a file with all records of a plan is finished.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.codec import to_json
from rmtools.data.shards import DATA
from rmtools.errors import UserError
from rmtools.files import replacing
from rmtools.jobs.job import TALLY, Bar, Blocks, Job, Tick, differences, read_plan
from rmtools.jobs.lock import PARTIAL, is_free, remove
from rmtools.jobs.processes import Process
from rmtools.lm.prompt_format import RAW, PromptFormat
from rmtools.lm.steps import StepSettings
from rmtools.sampling.settings import SamplerSettings
from rmtools.seeds import block_generator

# In a block the lines of a record's traces follow it, marked.
TRACE_MARK = b"\t"

Record = dict[str, Any]
Draw = Callable[[Sequence[str], np.random.Generator], Iterable[tuple[Record, Sequence[Record]]]]


@dataclass(frozen=True)
class SamplePlan:
    """Everything the records depend on; what is not listed is as in `rmtools.jobs.rollouts.RolloutSettings`.

    Attributes
    ----------
    model, model_fingerprint : str
        Name and hash of the weights of the value model.
    dtype, model_dtype : str
        Precision of the weights of policy and value model; "" for a policy behind a server.
    floor : float
        Of the tilt.
    accuracy : dict or None
        Where N comes from.
    block_size : int
        Prompts that are drawn together and from one generator.
    traced : bool
        Whether the blocks hold traces too.
    rmtools : str
        Version.
    prompt_format : PromptFormat
    """

    model: str
    model_fingerprint: str
    policy: str
    policy_fingerprint: str
    device: str
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    floor: float
    task: str
    task_sha256: str
    horizon: int
    steps: StepSettings
    sampler: SamplerSettings
    accuracy: dict[str, Any] | None
    seed: int
    prompts: int
    prompts_sha256: str
    block_size: int
    traced: bool = False
    rmtools: str = ""
    prompt_format: PromptFormat = RAW
    dtype: str = ""
    model_dtype: str = ""

    @property
    def blocks(self) -> Blocks:
        """The prompts of each block."""
        return Blocks(self.prompts, self.block_size, lambda i, count: f"block-{i:05d}.jsonl")

    @property
    def run(self) -> str:
        """A short hash of the plan."""
        return hashlib.sha256(json.dumps(to_json(self), sort_keys=True).encode()).hexdigest()[:16]

    def provenance(self) -> dict[str, Any]:
        """Return what every record says about where it comes from."""
        names = (
            *("model", "model_fingerprint", "model_dtype", "policy", "policy_fingerprint", "dtype"),
            *("task", "seed", "block_size"),
        )
        return {name: getattr(self, name) for name in names} | {"accuracy": self.accuracy, "run": self.run}


@dataclass(frozen=True)
class BlockCounts:
    """Counts of one block."""

    records: int


class SampleFile:
    """A file of samples in the making, and one of traces if the plan has any.

    ``server`` is what was found out about the servers that draw, for the records; it may change between the starts of a run.
    """

    def __init__(
        self,
        out: Path,
        plan: SamplePlan,
        process: Process,
        trace: Path | None = None,
        server: dict[str, Any] | None = None,
    ) -> None:
        self.out, self.plan, self.process, self.trace = out, plan, process, trace
        self.server = server
        self.folder = out.parent / f".{out.name}.parts"
        what = f"samples for {out}"
        self.job = Job(self.folder, plan, plan.blocks, BlockCounts, process, what, over=lambda: self.finished)

    @property
    def finished(self) -> bool:
        """Whether the file holds every record of the plan; it is only ever moved into place whole."""
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
        traced = self.trace is None or self._begins_own(self.trace)
        return traced and count == self.plan.prompts and self._is_own(last)

    def _begins_own(self, path: Path) -> bool:
        with contextlib.suppress(OSError, StopIteration), path.open("rb") as lines:
            return self._is_own(next(lines))
        return False

    def _is_own(self, line: bytes) -> bool:
        try:
            return bool(json.loads(line)["provenance"]["run"] == self.plan.run)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    def _changed_line(self, prompts: Sequence[str]) -> int:
        """Return the first line of the finished file that is damaged or has another prompt, from 1; 0 without any."""
        with self.out.open("rb") as lines:
            for number, (line, prompt) in enumerate(zip(lines, prompts, strict=False), 1):
                if not self._is_own(line) or json.loads(line).get("prompt") != prompt:
                    return number
        return 0

    def make(self, prompts: Sequence[str], draw: Draw, bar: Bar, overwrite: bool = False) -> bool:
        """Draw this process's missing blocks; the main process also waits for the others' and joins them.

        Parameters
        ----------
        prompts : sequence of str
        draw : callable
            (prompts, generator) to their records, each with the lines of its traces.
        bar : callable
            (label, total) to a context that yields a tick.
        overwrite : bool
            Replace what was made or begun with other arguments, instead of refusing.

        Returns False if the file was finished already. Raises ``UserError`` if a file or blocks of other arguments are there,
        another run is at work, or the folder cannot be written.
        """
        if self.finished:
            changed = self._changed_line(prompts)
            if not changed:
                if self.process.main:
                    self._tidy(claimed=False)
                return False
            if not overwrite:
                raise UserError(
                    f"{self.out}, line {changed} was changed since it was written",
                    "put the file back, or pass `overwrite` to draw all of it again",
                )
            if self.process.main:
                remove(self.out)
        for name, path in (("out", self.out), ("trace", self.trace)):
            if not overwrite and path is not None and path.exists() and not self._begins_own(path):
                raise UserError(
                    f"{path} is there already, and was not made with these arguments",
                    f"name another `{name}`, or pass `overwrite` to replace it",
                )
        if self.process.rank >= self.plan.blocks.count and not self.process.main:
            return True
        claimed = False
        try:
            empty = not any(self.folder.glob(f"{DATA}/*"))
            with self.job.claimed(self.process.main and (overwrite or empty)) as needed:
                claimed = True
                if needed:
                    self._run(prompts, draw, bar)
        finally:
            self._tidy(claimed)
        return True

    def _run(self, prompts: Sequence[str], draw: Draw, bar: Bar) -> None:
        provenance = self.plan.provenance() | ({} if self.server is None else {"server": self.server})

        def compute(index: int, tick: Tick) -> tuple[BlockCounts, Callable[[Path], object]]:
            of_block = self.plan.blocks.of(index)
            drawn = draw(prompts[of_block], block_generator("sample", self.plan.seed, index))
            lines, count = [], 0
            for record, traces in drawn:
                lines.append(json.dumps({**record, "provenance": provenance}, allow_nan=False))
                own = {"provenance": {"run": self.plan.run, "record": of_block.start + count}}
                lines += [TRACE_MARK.decode() + json.dumps({**t, **own}, allow_nan=False) for t in traces]
                count += 1
                tick(1)
            text = "".join(line + "\n" for line in lines)
            return BlockCounts(count), lambda path: path.write_text(text, encoding="utf-8")

        self.job.run(compute, f"sampling {self.plan.prompts} prompts", bar)
        if self.process.main:
            # The trace first: a finished file of samples has its trace.
            if self.trace is not None:
                self._join(self.trace, traces=True)
            self._join(self.out, traces=False)
            self.job.discard()

    def _join(self, path: Path, traces: bool) -> None:
        """Move the lines of all blocks into place in one rename."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.job.scratch
        # Unfinished files in the scratch folder are swept after a kill; a rename needs the same file system.
        if scratch is not None and path.parent.stat().st_dev != scratch.stat().st_dev:
            scratch = None
        with replacing(path, scratch) as temporary, temporary.open("wb") as whole:
            for index in range(self.plan.blocks.count):
                with self.job.file(index).open("rb") as lines:
                    chosen = (line for line in lines if line.startswith(TRACE_MARK) == traces)
                    whole.writelines(line.removeprefix(TRACE_MARK) for line in chosen)

    def _tidy(self, claimed: bool) -> None:
        """Remove the folder, unless it has blocks to resume from, belongs to another plan, or a process works in it.

        If it was ``claimed``, blocks without a plan are removed too: they were finished after the file was joined.
        """
        with contextlib.suppress(UserError, OSError):
            if not all(is_free(lock) for lock in self.folder.glob(f"{PARTIAL}/*.lock")):
                return
            plan = read_plan(self.folder)
            empty = not any(self.folder.glob(f"{DATA}/*"))
            if plan is None:
                # A kill behind the end of the work leaves unfinished files alone.
                over = claimed or empty
            else:
                over = (self.finished or empty) and not differences(plan, self.job.plan)
            if over:
                remove(self.folder / PARTIAL)
                self.job.discard()
        # Folders that are not empty stay: another process has just begun.
        for name in (PARTIAL, TALLY, DATA, ""):
            with contextlib.suppress(OSError):
                (self.folder / name).rmdir()
