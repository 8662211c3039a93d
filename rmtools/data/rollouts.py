"""The dataset in the middle: branching rollouts of a policy, one row per trajectory, on disk as parquet or JSON lines.

Rollouts hold no values of a model: one dataset trains and audits many models. docs/formats.md documents the fields. A
folder holds shards, ``data/train-00000-of-00004.parquet``, and, written last, ``metadata.json``.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

from rmtools.codec import VERSION, check_ranges, load_json, to_json
from rmtools.data.shards import (
    DATA,
    FIELDS,
    FORMATS,
    PLAN_FILE,
    REMEDY,
    find_shards,
    read_rows,
    shard_name,
    write_rows,
)
from rmtools.errors import UserError
from rmtools.files import json_text, replacing
from rmtools.lm.prompt_format import RAW, PromptFormat, Turn
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.steps import StepSettings
from rmtools.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SCHEMA_VERSION = 2
META_FILE = "metadata.json"
BAD_ROW = f"repair the row ({REMEDY}), or leave such rows out: load_rollouts(..., skip_bad=True)"


@dataclass(frozen=True)
class Child:
    """An alternative next step at a prefix; ``reward`` is set when the step ends the solution; ``ids`` as in `Rollout`."""

    text: str
    ended: bool
    reward: float | None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Rollout:
    """One trajectory.

    Attributes
    ----------
    prompt_id, prompt : str
        The prompt is the text that models see.
    steps : list of str
        T steps, verbatim: prompt and steps concatenated are the text the policy saw.
    reward : float or None
        The verifier's r in [0, 1], never the potential; None only if ``labels`` are given instead.
    children : list of list of Child
        T lists: alternatives to the step at depth t. The trajectory's own step is exchangeable with them and
        counts, so K = 1 + their number.
    completions : list of list of float
        T lists: rewards of extra continuations from prefix t, so R = 1 + their number.
    labels : list of (float or None), or None
        Given labels of the T steps, hard or soft, in [0, 1]; None for a step without label.
    reference : str or None
        The right answer, if the task has one.
    question : str or None
        What the task judges solutions of, if the prompt renders it in a format; None: the prompt.
    ids : list of list of int, or None
        The token ids of the T steps as the policy emitted them; None where only the text is known.
    """

    prompt_id: str
    prompt: str
    steps: list[str]
    reward: float | None
    children: list[list[Child]] = field(default_factory=list)
    completions: list[list[float]] = field(default_factory=list)
    labels: list[float | None] | None = None
    reference: str | None = None
    question: str | None = None
    ids: list[list[int]] | None = None

    @property
    def outcome(self) -> float:
        """The reward; raises ``UserError`` if only step labels are known."""
        if self.reward is None:
            raise UserError(
                f"field reward: the rollout of prompt {self.prompt_id} has none, only step labels",
                "train on the labels (`target`: labels), or use rollouts with outcomes",
            )
        return self.reward


@dataclass(frozen=True)
class RolloutMetadata:
    """How the rollouts were made: everything an audit must know to identify the policy.

    Attributes
    ----------
    policy, policy_fingerprint : str
        Folder or hub name, and hash of the weights; "" if unknown (converted data).
    task : str
    horizon : int
        Largest number of steps of a solution.
    steps : StepSettings
    temperature : float or None
        Sampling temperature of the policy; None if unknown.
    top_k, top_p, min_p : int, float, float
        The rest of its sampling law (`rmtools.lm.sampling_law`).
    seed : int
    removed_prompts : int
        Prompts drawn without a solution and left out.
    generated_tokens, truncated_steps : int
        Tokens drawn, including branches; steps cut at the length limit or at the end of the context.
    source : str
        Name of the reader, for converted data; "" for rollouts drawn by rmtools.
    branching : dict
        Trajectories, children, completions, depths; {} for converted data.
    rows, shards : int
        Number of rows and shards; ``write_rollouts`` counts them itself.
    prompt_format : PromptFormat
        How the prompts were rendered.
    dtype : str
        Precision of the policy's weights; "" if unknown.
    server : dict
        Of a policy behind servers: their addresses, the model, and what was found out about them (docs/servers.md); else {}.
    """

    policy: str
    policy_fingerprint: str
    task: str
    horizon: int
    steps: StepSettings
    temperature: float | None
    seed: int
    removed_prompts: int = 0
    generated_tokens: int = 0
    truncated_steps: int = 0
    source: str = ""
    branching: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    shards: int = 0
    prompt_format: PromptFormat = RAW
    dtype: str = ""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    server: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hot = self.temperature
        check_ranges(
            self,
            horizon=(self.horizon == self.steps.max_steps, f"steps.max_steps, {self.steps.max_steps}"),
            temperature=(hot is None or 0 < hot < math.inf, "positive and finite"),
            seed=(0 <= self.seed < 2**32, "at least 0 and below 2^32"),
        )

    @property
    def format_known(self) -> bool:
        """Whether the format is that of the prompts: rows of a public file do not tell theirs."""
        return bool(self.policy) or self.prompt_format != RAW

    @property
    def law(self) -> SamplingLaw:
        """The law that the policy was sampled from; at temperature 1 if that is unknown."""
        return SamplingLaw(self.temperature or 1.0, self.top_k, self.top_p, self.min_p)

    @classmethod
    def unknown(cls, rows: Sequence[Rollout], delimiter: str = "\n") -> Self:
        """Return the metadata of rows whose policy is not known: steps end with ``delimiter``, as many as the longest has."""
        horizon = max(len(r.steps) for r in rows)
        return cls("", "", "", horizon, StepSettings(delimiter, horizon), temperature=None, seed=0)


@dataclass(frozen=True, repr=False)
class Rollouts(Sequence[Rollout]):
    """Rows with their metadata: a sequence of `Rollout`, whose slices are `Rollouts` too.

    Attributes
    ----------
    rows : list of Rollout
    metadata : RolloutMetadata
        That of the whole folder, also for a slice; of rows from elsewhere what `RolloutMetadata.unknown` says.
    source : str
        Folder, file or hub data set they were read from; "" for rows in memory.
    turns : mapping
        Chat messages of prompts that are not rendered yet, by prompt (what the user says last).

    Examples
    --------
    >>> import rmtools as rm
    >>> rollouts: rm.Rollouts = rm.load_rollouts("rollouts")
    >>> print(rollouts[:8])  # doctest: +ELLIPSIS
    8 rows of 2 prompts, rollouts
    policy       ...
    task         crossing, up to 3 steps
    children     3 per prefix with the trajectory's own
    completions  2 per prefix with the trajectory's own
    mean reward  ...
    """

    rows: list[Rollout]
    metadata: RolloutMetadata
    source: str = ""
    turns: Mapping[str, tuple[Turn, ...]] = field(default_factory=dict)

    @overload
    def __getitem__(self, index: int) -> Rollout: ...
    @overload
    def __getitem__(self, index: slice) -> "Rollouts": ...
    def __getitem__(self, index: int | slice) -> "Rollout | Rollouts":
        """Return a row, or the rows of a slice with the same metadata."""
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index])
        return self.rows[index]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def to_frame(self) -> "DataFrame":
        """Return one row per trajectory: prompt_id, prompt, text, steps, reward, children and completions drawn."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "prompt_id": r.prompt_id,
                    "prompt": r.prompt,
                    "text": "".join(r.steps),
                    "steps": len(r.steps),
                    "reward": r.reward,
                    "children": sum(map(len, r.children)),
                    "completions": sum(map(len, r.completions)),
                }
                for r in self.rows
            ]
        )

    def plot(self) -> "Figure":
        """Draw how often the prompts are solved, and how long the trajectories are."""
        from rmtools.plots.samples import rewards_and_lengths

        rewards: dict[str, list[float]] = {}
        for row in self.rows:
            if row.reward is not None:
                rewards.setdefault(row.prompt_id, []).append(row.reward)
        means = [sum(own) / len(own) for own in rewards.values()]
        return rewards_and_lengths(means, [len(r.steps) for r in self.rows])

    def summary(self) -> Summary:
        """Return where the rows come from, how they branch, and the mean reward."""
        known, rewards = self.metadata, [r.reward for r in self.rows if r.reward is not None]
        figures = {"policy": known.policy or "unknown", "task": known.task or "unknown"}
        figures["task"] += f", up to {known.horizon} steps"
        if known.prompt_format != RAW:
            figures["prompts"] = str(known.prompt_format)
        for name in ("children", "completions"):
            most = 1 + max((len(at) for r in self.rows for at in getattr(r, name)), default=0)
            figures[name] = (
                f"{most} per prefix with the trajectory's own"
                if most > 1
                else "none beside the trajectory's own"
            )
        figures["mean reward"] = (
            f"{sum(rewards) / len(rewards):.3g}" if rewards else "no rewards, only step labels"
        )
        where = f", {self.source}" if self.source else ""
        return Summary(f"{len(self)} rows of {len({r.prompt for r in self.rows})} prompts{where}", figures)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary().html()

    def __repr__(self) -> str:
        made = [x for x in (self.metadata.policy, self.metadata.task) if x]
        what = f"{len(self)} rows of {len({r.prompt for r in self.rows})} prompts"
        return f"Rollouts({what}{f', {self.source}' if self.source else ''}{': ' if made else ''}{', '.join(made)})"


def metadata_text(metadata: RolloutMetadata) -> str:
    """Return the content of the metadata file."""
    return json_text({VERSION: SCHEMA_VERSION, **to_json(metadata)})


def write_rollouts(
    folder: str | Path,
    rows: Iterable[Rollout],
    metadata: RolloutMetadata,
    rows_per_shard: int = 10_000,
    form: str = "parquet",
) -> None:
    """Write rows and metadata into ``folder``: both whole before either takes its place, the metadata last.

    Parameters
    ----------
    folder : path
    rows : iterable of Rollout
        Consumed one shard at a time.
    metadata : RolloutMetadata
        Its ``rows`` and ``shards`` are filled in here.
    rows_per_shard : int
    form : {"parquet", "jsonl"}

    Raises
    ------
    UserError
        If there are no rows, the format is unknown, the place cannot be written, or an unfinished `rmtools rollout` owns it.
    """
    if form not in FORMATS:
        raise UserError(f"unknown rollout format {form!r}", f"the formats are: {', '.join(FORMATS)}")
    folder, rows, total, parts = Path(folder), iter(rows), 0, 0
    if (folder / PLAN_FILE).exists():
        raise UserError(
            f"{folder} belongs to `rmtools rollout`, which may resume there", "choose another folder"
        )
    with replacing(folder / META_FILE) as described, replacing(folder / DATA) as inside:
        inside.mkdir()
        while shard := [asdict(r) for r in itertools.islice(rows, rows_per_shard)]:
            write_rows(inside / f"{parts}.{form}", shard)
            total, parts = total + len(shard), parts + 1
        if not parts:
            raise UserError(f"there are no rollouts to write into {folder}", "give at least one")
        # How many shards there are is known, and so their names, once the last row has been seen.
        for i in range(parts):
            (inside / f"{i}.{form}").rename(inside / shard_name(i, parts, form))
        described.write_text(metadata_text(replace(metadata, rows=total, shards=parts)), encoding="utf-8")


def read_rollouts(
    folder: str | Path, left_out: list[UserError] | None = None
) -> tuple[list[Rollout], RolloutMetadata]:
    """Read and validate a rollout folder; ``left_out``, if given, takes the errors of rows that break the schema.

    Raises
    ------
    UserError
        If it is missing or incomplete, of another schema version, unreadable, or a row breaks the schema (file, row or
        line, and field are named, see `read_rows`).
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    shards = find_shards(folder)
    rows = [r for path in shards for r in read_shard(path, left_out)]
    n = len(rows) + len(left_out or ())
    if not n:
        raise UserError(f"the rollouts at {folder} are empty", "make them with `rmtools rollout`")
    if (n, len(shards)) != (metadata.rows, metadata.shards):
        raise UserError(
            f"{folder / META_FILE} counts {metadata.rows} rows in {metadata.shards} shards, there are {n} in "
            f"{len(shards)}: files were changed or mixed",
            "make the rollouts again",
        )
    return rows, metadata


def read_metadata(folder: Path) -> RolloutMetadata:
    """Read the metadata of a rollout folder; raise ``UserError`` if it is missing or of another version."""
    if not (folder / META_FILE).exists():
        if (folder / PLAN_FILE).exists():
            raise UserError(
                f"the rollouts at {folder} are not finished: no {META_FILE} in it yet",
                "rerun the `rmtools rollout` command that began them: it resumes",
            )
        known = f"no {META_FILE} in it" if folder.is_dir() else "there is no such folder or file"
        raise UserError(f"there are no rollouts at {folder}: {known}", "make them with `rmtools rollout`")
    again = "make the rollouts again with `rmtools rollout`"
    return load_json(RolloutMetadata, folder / META_FILE, "the rollout metadata", SCHEMA_VERSION, again)


def read_shard(path: Path, left_out: list[UserError] | None = None) -> list[Rollout]:
    """Return the validated rows of one shard; raise ``UserError`` that names file, row or line, and field."""
    return list(parse_rows(read_rows(path), parse_row, left_out))


def parse_rows(
    rows: Iterable[tuple[str, Any]], parse: Callable[[Any, str], Rollout], left_out: list[UserError] | None
) -> Iterator[Rollout]:
    """Yield the rollouts of rows with their places; an error is raised, or added to ``left_out`` if that is given."""
    for place, row in rows:
        try:
            yield parse(row, place)
        except UserError as error:
            if left_out is None:
                raise
            left_out.append(error)


Wrong = Callable[[str, str], UserError]


def parse_row(row: Any, where: str) -> Rollout:
    """Return the rollout of a row as read from a file: what may be null may also be absent.

    Raises ``UserError`` if the row breaks the schema; ``where`` (file and row) and the field are named.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not an object with the fields of a rollout", BAD_ROW)
    if unknown := sorted(set(map(str, row)) - {*FIELDS}):
        raise UserError(
            f"{where} has unknown fields {', '.join(unknown)}; it has {', '.join(FIELDS)}",
            f"drop them; {REMEDY}",
        )

    def wrong(name: str, why: str) -> UserError:
        return UserError(f"{where}, field {name}: {why}", BAD_ROW)

    for name in ("prompt_id", "prompt"):
        if not _is_text(row.get(name)):
            raise wrong(name, "is empty or no text")
    steps = row.get("steps")
    if not isinstance(steps, list) or not steps:
        raise wrong("steps", "there is no step")
    if not all(_is_text(s) for s in steps):
        raise wrong("steps", "a step is empty or no text")
    for name in ("reference", "question"):
        if not isinstance(row.get(name), str | None):
            raise wrong(name, f"must be text or null, got {row[name]!r}")
    labels = _labels(row, len(steps), wrong)
    completions = _depths(row, "completions", len(steps), wrong)
    if not all(_in_unit_interval(r) for at in completions for r in at):
        raise wrong("completions", "a reward is not in [0, 1]")
    return Rollout(
        prompt_id=row["prompt_id"],
        prompt=row["prompt"],
        steps=steps,
        reward=_reward(row, labels, wrong),
        children=[[_child(c, wrong) for c in at] for at in _depths(row, "children", len(steps), wrong)],
        completions=[[float(r) for r in at] for at in completions],
        labels=labels,
        reference=row.get("reference"),
        question=row.get("question"),
        ids=_ids(row.get("ids"), len(steps), wrong),
    )


def _ids(given: Any, n_steps: int, wrong: Wrong) -> list[list[int]] | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != n_steps or not all(map(_is_ids, given)):
        raise wrong("ids", f"must be a list of token ids for each of the {n_steps} steps")
    return given


def _is_ids(x: Any) -> bool:
    """Return whether ``x`` is the token ids of a step."""
    return isinstance(x, list | tuple) and bool(x) and all(type(i) is int and i >= 0 for i in x)


def _labels(row: Mapping[str, Any], n_steps: int, wrong: Wrong) -> list[float | None] | None:
    labels = row.get("labels")
    if labels is None:
        return None
    if not isinstance(labels, list) or len(labels) != n_steps:
        count = f"has {len(labels)} labels" if isinstance(labels, list) else "is no list of labels"
        raise wrong("labels", f"{count} for {n_steps} steps")
    if not all(x is None or _in_unit_interval(x) for x in labels):
        raise wrong("labels", "a label is not in [0, 1]")
    return [None if x is None else float(x) for x in labels]


def _reward(row: Mapping[str, Any], labels: list[float | None] | None, wrong: Wrong) -> float | None:
    reward = row.get("reward")
    if reward is None and any(x is not None for x in labels or ()):
        return None
    if not _in_unit_interval(reward):
        raise wrong("reward", f"must be in [0, 1] (null only where a step has a label), got {reward!r}")
    return float(reward)  # type: ignore[arg-type]


def _depths(row: Mapping[str, Any], name: str, n_steps: int, wrong: Wrong) -> list[list[Any]]:
    """Return the branches at each depth; null or empty if there are no branches."""
    branch = row.get(name) or []
    found = [at for at in branch if isinstance(at, list)] if isinstance(branch, list) else []
    if branch and (len(found) != n_steps or len(branch) != n_steps):
        raise wrong(name, f"has {len(found)} depths for {n_steps} steps")
    return found


def _child(values: Any, wrong: Wrong) -> Child:
    if (
        not isinstance(values, dict)
        or not _is_text(values.get("text"))
        or type(values.get("ended")) is not bool
    ):
        raise wrong("children", "a child has no text, or does not say whether it ended")
    if unknown := set(values) - {"text", "ended", "reward", "ids"}:
        raise wrong("children", f"a child has unknown fields {', '.join(sorted(unknown))}")
    reward = values.get("reward")
    if values["ended"] and reward is None:
        raise wrong("children", "an ended child has no reward")
    if reward is not None and not _in_unit_interval(reward):
        raise wrong("children", f"a reward must be in [0, 1], got {reward!r}")
    ids = values.get("ids")
    if ids is not None and not _is_ids(ids):
        raise wrong("children", "the ids of a child must be a list of token ids")
    known = None if ids is None else tuple(ids)
    return Child(values["text"], values["ended"], None if reward is None else float(reward), known)


def _is_text(x: Any) -> bool:
    """Return whether ``x`` is text and not empty."""
    return isinstance(x, str) and bool(x)


def _in_unit_interval(x: Any) -> bool:
    """Return whether ``x`` is a number in [0, 1]; NaN is not, nor is a truth value."""
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 1


def rollouts_fingerprint(rows: Sequence[Rollout]) -> str:
    """Return a short hash of everything in ``rows`` but the token ids."""
    digest = hashlib.sha256()
    for row in rows:
        known = asdict(row)
        for x in (known, *(c for at in known["children"] for c in at)):
            del x["ids"]
        if row.question is None:
            del known["question"]
        digest.update(json.dumps(known).encode())
    return digest.hexdigest()[:16]
