"""Sharded, resumable work: blocks of items, computed by several processes, each file written by a rename.

A job is a folder, settings to compare, and numbered blocks:

- ``plan.json``: the settings, written before the first block. A later start with the same settings resumes; with others
  it is refused, so a folder never holds blocks of two kinds.
- ``data/NAME``: a finished block. Block i is computed by process i mod size, from its own generator (rmtools.seeds),
  so it is the same whoever computes it, and whenever.
- ``tally/00000.json``: its counts and the hash of its file, written first. A block counts as finished if the hash fits;
  whatever a kill or a bad disk left behind is computed again.
- ``.partial/RANK``: unfinished files (rmtools.jobs.lock).

The end of the work is the caller's: rmtools.jobs.rollouts writes metadata, rmtools.jobs.samples joins the blocks into one
file. To run a job::

    job = Job(folder, settings, Blocks(len(prompts), 64, lambda i, n: f"block-{i:05d}.jsonl"), Counts, process, "samples")
    with job.claimed(overwrite) as needed:
        if needed:
            job.run(compute, "sampling 100 prompts", bar)   # the main process returns once all blocks are there
            if process.main:
                finish(job.counts(), [job.file(i) for i in range(job.blocks.count)])
                job.discard()                               # where the blocks are not the result

``compute(i, tick)`` returns the counts of block i, a dataclass of the caller's, and a function that writes its file.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rmtools.codec import VERSION, from_json, to_json
from rmtools.data.shards import DATA, PLAN_FILE
from rmtools.data.tasks import Task
from rmtools.data.tasks.custom import code_hash
from rmtools.errors import UserError
from rmtools.files import claim_folder, json_text, left_as_found, read_json, replacing
from rmtools.jobs.lock import PARTIAL, held, remove, require_alone
from rmtools.jobs.processes import Process
from rmtools.lm.checkpoint import fingerprint
from rmtools.lm.precision import precision_of
from rmtools.lm.protocol import StepPolicy
from rmtools.lm.sampling_law import SamplingLaw

PLAN_VERSION = 2
TALLY = "tally"
POLL = 0.2
# How long the main process waits for the next block of another, in seconds: one of its own may have taken this long.
PATIENCE = 600.0

Tick = Callable[[int], object]
Bar = Callable[[str, int], contextlib.AbstractContextManager[Tick]]
C = TypeVar("C")


@dataclass(frozen=True)
class Blocks:
    """``items`` things cut into blocks of ``size`` consecutive ones.

    Attributes
    ----------
    items, size : int
    file_name : callable
        (index, number of blocks) to a file name.
    """

    items: int
    size: int
    file_name: Callable[[int, int], str]

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.items // self.size)

    def of(self, index: int) -> slice:
        """Return the items of a block."""
        return slice(index * self.size, min((index + 1) * self.size, self.items))

    def name(self, index: int) -> str:
        """Return the file name of a block."""
        return self.file_name(index, self.count)


def prompts_hash(prompts: Sequence[str], references: Sequence[str | None]) -> str:
    """Return a hash of prompts, their order and their right answers: other answers are other rewards."""
    return hashlib.sha256(json.dumps([list(prompts), list(references)]).encode()).hexdigest()[:16]


def drawn_from(policy: StepPolicy, task: Task | None, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """Return what a plan says of the policy, the task and the prompts that its work is drawn from."""
    return {
        "policy": policy.name,
        "policy_fingerprint": fingerprint(policy.name),
        "device": policy.device.type,
        "dtype": precision_of(policy),
        **asdict(getattr(policy, "law", None) or SamplingLaw(policy.temperature)),
        "steps": policy.steps.settings,
        "task": "" if task is None else task.name,
        "task_sha256": code_hash(task),
        "horizon": policy.steps.settings.max_steps if task is None else task.horizon,
        "seed": seed,
        "prompts": len(prompts),
        "prompts_sha256": prompts_hash(
            prompts, [None if task is None else task.reference(p) for p in prompts]
        ),
    }


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Return the settings that the job in ``folder`` was begun with, None without any.

    Raises ``UserError`` if the file cannot be read or belongs to something else.
    """
    path = folder / PLAN_FILE
    if not path.exists():
        return None
    found = read_json(path, "the plan of the work begun there")
    if not isinstance(found, dict) or "prompts_sha256" not in found:
        raise UserError(
            f"{path} is no plan of rollouts or samples",
            "choose another folder; if this one is yours to lose, delete it",
        )
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return what differs between two plans, as "temperature (1.0 there, 0.7 now)".

    The name of a policy or a model is ignored if its weights are known (the same folder has many names), and so are the
    addresses of servers.
    """
    one, two = dict(_flat(old)), dict(_flat(new))
    for values in (one, two):
        if isinstance(values.get("policy"), str):
            values["policy"] = served_model_of(values["policy"])
    for name in ("policy", "model"):
        weights = one.get(f"{name}_fingerprint")
        if weights and weights == two.get(f"{name}_fingerprint"):
            one.pop(name, None), two.pop(name, None)
    return [
        f"{key} ({_short(one.get(key))} there, {_short(two.get(key))} now)"
        for key in dict.fromkeys([*two, *one])
        if one.get(key) != two.get(key)
    ]


def served_model_of(name: str) -> str:
    """Return the name of a policy; of one behind servers without their addresses, which change when one is started again.

    >>> served_model_of("qwen at http://localhost:8000/v1, http://host/v1"), served_model_of("models/policy")
    ('qwen', 'models/policy')
    """
    return name.partition(" at http")[0]


def _flat(values: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:16] + "…"


def _never() -> bool:
    return False


class Job(Generic[C]):
    """A folder of blocks in the making; see the module for its files and its use.

    Parameters
    ----------
    folder : Path
    settings : dataclass
        Everything the blocks depend on, with a field ``prompts_sha256``; compared when a job is resumed.
    blocks : Blocks
    counts : type
        A dataclass: what is kept of a block beside its file.
    process : Process
    what : str
        What the blocks hold, in messages.
    also : sequence of str
        Further names in the folder that belong to the job, removed when other settings replace it. While the first of
        them exists, blocks without a plan are somebody's.
    over : callable
        Whether the main process has finished and discarded the folder: then there is nothing to wait for.
    """

    def __init__(
        self,
        folder: Path,
        settings: Any,
        blocks: Blocks,
        counts: type[C],
        process: Process = Process(),  # noqa: B008 - frozen
        what: str = "rollouts",
        also: Sequence[str] = (),
        over: Callable[[], bool] = _never,
    ) -> None:
        self.folder = folder
        self.blocks = blocks
        self.process = process
        self.plan: dict[str, Any] = {VERSION: PLAN_VERSION, **to_json(settings)}
        self.scratch: Path | None = None
        self._counts = counts
        self._what = what
        self._also = tuple(also)
        self._over = over
        self._done: dict[int, C] = {}

    @contextlib.contextmanager
    def claimed(self, overwrite: bool = False) -> Iterator[bool]:
        """Hold the folder for this job; yield whether there is work left for this process.

        Parameters
        ----------
        overwrite : bool
            Replace blocks of other settings instead of refusing.

        Raises
        ------
        UserError
            If the folder holds something else or blocks of other settings, another run is at work in it, or it cannot
            be written.
        """
        if self.process.main:
            claim_folder(self.folder, PLAN_FILE, PARTIAL)
        elif not self._await_plan():
            yield False
            return
        with left_as_found(self.folder), held(self.folder, self.process, self._what) as self.scratch:
            if self.process.main:
                self._begin(overwrite)
            # The main process may have discarded the folder between the wait and the lock.
            yield self.process.main or (self._plan_stands() and not self._over())

    def _begin(self, overwrite: bool) -> None:
        old = read_plan(self.folder)
        changed = differences(old, self.plan) if old is not None else []
        if changed and not overwrite:
            raise UserError(
                f"{self.folder} holds {self._what} that were begun with other arguments: {', '.join(changed)}",
                "choose another `out`, pass the same arguments to resume, or `overwrite` to replace them",
            )
        if changed:
            require_alone(self.folder, self.process, self._what)
            self.discard()
        if old is None and not any((self.folder / name).exists() for name in self._also):
            # Nobody knows the settings of blocks without a plan.
            self.discard()
        if changed or old is None:
            self.write(self.folder / PLAN_FILE, lambda path: path.write_text(json_text(self.plan), "utf-8"))

    def discard(self) -> None:
        """Remove the blocks, the plan last: a kill in between leaves a folder that is still refused or replaced."""
        for name in (*self._also, TALLY, DATA, PLAN_FILE):
            remove(self.folder / name)

    def _await_plan(self) -> bool:
        """Wait until the main process, which refuses for all, has claimed the folder; False if all is over."""
        until = time.monotonic() + PATIENCE
        while not self._plan_stands():
            if self._over():
                return False
            if time.monotonic() > until:
                raise UserError(
                    f"the main process has not begun these {self._what} in {self.folder}",
                    "see its error, and start again",
                )
            time.sleep(POLL)
        return True

    def _plan_stands(self) -> bool:
        try:
            old = read_plan(self.folder)
        except UserError:
            # The main process is replacing it.
            return False
        return old is not None and not differences(old, self.plan)

    def run(
        self, compute: Callable[[int, Tick], tuple[C, Callable[[Path], object]]], label: str, bar: Bar
    ) -> None:
        """Compute this process's missing blocks; the main process then waits for those of the others.

        Parameters
        ----------
        compute : callable
            (block, tick) to the block's counts and a function that writes its file; ``tick(n)`` reports n items.
        label : str
            Of the progress bar.
        bar : callable
            (label, total) to a context that yields a tick; the main process uses it.

        Raises
        ------
        UserError
            If the disk is full, the folder cannot be written, or the other processes write nothing for ten minutes and
            twenty times this process's slowest block.
        """
        shown = bar if self.process.main else lambda label, total: contextlib.nullcontext(lambda n: None)
        longest, size = 0.0, self.process.size
        own = self.missing(range(self.process.rank, self.blocks.count, size))
        if own and not self._over():
            total = sum(self.blocks.of(i).stop - self.blocks.of(i).start for i in own)
            with shown(label + (f", process 0 of {size}" if size > 1 else ""), total) as tick:
                for index in own:
                    start = time.monotonic()
                    self.put(index, *compute(index, tick))
                    longest = max(longest, time.monotonic() - start)
        if self.process.main and (others := self.missing()):
            with shown("waiting for blocks of other processes", len(others)) as tick:
                self._wait(others, PATIENCE + 20 * longest, tick)

    def _wait(self, missing: list[int], patience: float, tick: Tick) -> None:
        since = time.monotonic()
        while missing:
            time.sleep(POLL)
            left = self.missing(missing)
            if len(left) < len(missing):
                tick(len(missing) - len(left))
                missing, since = left, time.monotonic()
            elif time.monotonic() - since > patience:
                names = ", ".join(self.blocks.name(i) for i in missing[:3])
                raise UserError(
                    f"other processes have not written {len(missing)} blocks ({names}, …)",
                    "run the same command again: it does what is missing",
                )

    def missing(self, among: Iterable[int] | None = None) -> list[int]:
        """Return the blocks that are not there, or not whole; by default among all."""
        return [i for i in (range(self.blocks.count) if among is None else among) if not self._is_done(i)]

    def _is_done(self, index: int) -> bool:
        if index in self._done:
            return True
        try:
            tally = read_json(self._tally_file(index), "a tally")
            if not isinstance(tally, dict) or tally.pop("sha256", None) != _sha256(self.file(index)):
                return False
            self._done[index] = from_json(self._counts, tally)
        except (UserError, OSError):
            return False
        return True

    def counts(self) -> list[C]:
        """Return the counts of every block, in order; empty while one is missing."""
        return [] if self.missing() else [self._done[i] for i in range(self.blocks.count)]

    def file(self, index: int) -> Path:
        """Return the path of a block."""
        return self.folder / DATA / self.blocks.name(index)

    def _tally_file(self, index: int) -> Path:
        return self.folder / TALLY / f"{index:05d}.json"

    def put(self, index: int, counts: C, write: Callable[[Path], object]) -> None:
        """Put a block and its tally into place; raise ``UserError`` if they cannot be written."""
        with replacing(self.file(index), self.scratch) as temporary:
            write(temporary)
            tally = json_text({**to_json(counts), "sha256": _sha256(temporary)})
            self.write(self._tally_file(index), lambda path: path.write_text(tally, "utf-8"))
        self._done[index] = counts

    def write(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file of the folder in one rename; raise ``UserError`` if it cannot be written."""
        with replacing(path, self.scratch) as temporary:
            write(temporary)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
