"""The dataset in the middle: branching rollouts of a policy, one row per trajectory, on disk as parquet.

A rollout dataset knows nothing of any value model: one dataset trains and audits many. The fields are
documented in docs/formats.md. A folder holds ``rollouts.parquet`` and, written last, ``metadata.json``.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rmtools.errors import UserError
from rmtools.files import read_json, replacing, write_json
from rmtools.lm.steps import StepSettings

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
ROWS_FILE = "rollouts.parquet"
META_FILE = "metadata.json"


@dataclass(frozen=True)
class Child:
    """An alternative next step at a prefix; ``reward`` is set when the step ends the solution."""

    text: str
    ended: bool
    reward: float | None


@dataclass(frozen=True)
class Rollout:
    """One trajectory.

    Attributes
    ----------
    prompt_id, prompt : str
    steps : list of str
        T steps, verbatim: prompt and steps concatenated are the text the policy saw.
    reward : float or None
        The verifier's r in [0, 1], never the potential; None only where ``labels`` are given instead.
    children : list of list of Child
        T lists: alternatives to the step at depth t. The trajectory's own step is exchangeable with them and
        counts, so K = 1 + their number.
    completions : list of list of float
        T lists: rewards of extra continuations from prefix t, so R = 1 + their number.
    labels : list of (float or None), or None
        Given labels of the T steps, hard or soft, in [0, 1]; None where a step has none.
    reference : str or None
        The right answer, where the task has one.
    """

    prompt_id: str
    prompt: str
    steps: list[str]
    reward: float | None
    children: list[list[Child]] = field(default_factory=list)
    completions: list[list[float]] = field(default_factory=list)
    labels: list[float | None] | None = None
    reference: str | None = None

    @property
    def outcome(self) -> float:
        """The reward; raises ``UserError`` where there is none."""
        if self.reward is None:
            raise UserError(
                f"field reward: the rollout of prompt {self.prompt_id} has none, only step labels",
                "train on the labels (--target labels), or use rollouts with outcomes",
            )
        return self.reward


@dataclass(frozen=True)
class RolloutMetadata:
    """How the rollouts were made: everything an audit must know to say which policy it speaks of."""

    policy: str
    policy_fingerprint: str
    task: str
    horizon: int
    steps: StepSettings
    temperature: float
    seed: int
    removed_prompts: int = 0
    generated_tokens: int = 0
    truncated_steps: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read the metadata file's content; raises ``UserError`` where a field is missing or unknown."""
        try:
            return cls(**{**values, "steps": StepSettings.from_dict(values.get("steps"))})
        except TypeError as error:
            raise UserError(
                f"rollout metadata has missing or unknown fields: {error}",
                "make the rollouts again with `rmtools rollout`",
            ) from error


def schema() -> "pa.Schema":
    """Return the arrow schema of a row."""
    import pyarrow as pa

    child = pa.struct([("text", pa.string()), ("ended", pa.bool_()), ("reward", pa.float64())])
    return pa.schema(
        [
            ("prompt_id", pa.string()),
            ("prompt", pa.string()),
            ("steps", pa.list_(pa.string())),
            ("reward", pa.float64()),
            ("children", pa.list_(pa.list_(child))),
            ("completions", pa.list_(pa.list_(pa.float64()))),
            ("labels", pa.list_(pa.float64())),
        ]
    )


def write_rollouts(folder: Path, rows: Sequence[Rollout], metadata: RolloutMetadata) -> None:
    """Write rows and metadata into ``folder``: both whole before either takes its place, the metadata last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([asdict(r) for r in rows], schema=schema())
    with replacing(Path(folder) / META_FILE) as described, replacing(Path(folder) / ROWS_FILE) as temporary:
        pq.write_table(table, temporary)
        write_json(described, {"schema_version": SCHEMA_VERSION, **asdict(metadata)})


def read_rollouts(folder: str | Path) -> tuple[list[Rollout], RolloutMetadata]:
    """Read and validate a rollout folder.

    Raises
    ------
    UserError
        If it is missing, of another schema version, unreadable, or a row breaks the schema (row and field named).
    """
    folder = Path(folder)
    if not (folder / META_FILE).exists():
        raise UserError(
            f"there are no rollouts at {folder}: no {META_FILE} in it", "make them with `rmtools rollout`"
        )
    values = read_json(folder / META_FILE, "the rollout metadata")
    version = values.pop("schema_version", None) if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{folder} has rollout schema version {version!r}, this release reads {SCHEMA_VERSION}",
            "make the rollouts again with `rmtools rollout`",
        )
    rows = [_row(i, r) for i, r in enumerate(_table(folder / ROWS_FILE))]
    if not rows:
        raise UserError(f"the rollouts at {folder} are empty", "make them with `rmtools rollout`")
    return rows, RolloutMetadata.from_dict(values)


def _table(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"the rollouts in {path} cannot be read: {str(error).splitlines()[0]}",
            "make them again with `rmtools rollout`",
        ) from error
    missing = [n for n in schema().names if n not in table.column_names]
    if missing:
        raise UserError(
            f"{path} lacks the columns {', '.join(missing)}", "see docs/formats.md for the schema"
        )
    return table.to_pylist()


def _row(index: int, row: dict[str, Any]) -> Rollout:
    def wrong(name: str, why: str) -> UserError:
        return UserError(f"row {index}, field {name}: {why}", "see docs/formats.md for the schema")

    steps, reward, labels = row["steps"], row["reward"], row["labels"]
    for name in ("prompt_id", "prompt"):
        if not row[name]:
            raise wrong(name, "is empty")
    if not steps:
        raise wrong("steps", "there is no step")
    if not all(steps):
        raise wrong("steps", "a step is empty")
    if not in_unit_interval(reward):
        raise wrong("reward", f"must be in [0, 1], got {reward}")
    for name in ("children", "completions"):
        branch = row[name]
        if branch and (len(branch) != len(steps) or any(at is None for at in branch)):
            raise wrong(name, f"has {sum(at is not None for at in branch)} depths for {len(steps)} steps")
    children = [[_child(c, wrong) for c in at] for at in row["children"] or []]
    completions = [list(at) for at in row["completions"] or []]
    if not all(in_unit_interval(r) for at in completions for r in at):
        raise wrong("completions", "a reward is outside [0, 1]")
    if labels is not None and len(labels) != len(steps):
        raise wrong("labels", f"has {len(labels)} labels for {len(steps)} steps")
    if not all(in_unit_interval(x) for x in labels or ()):
        raise wrong("labels", "a label is outside [0, 1]")
    return Rollout(row["prompt_id"], row["prompt"], list(steps), float(reward), children, completions, labels)


def _child(values: dict[str, Any] | None, wrong: Callable[[str, str], UserError]) -> Child:
    if values is None or not values["text"] or values["ended"] is None:
        raise wrong("children", "a child has no text, or does not say whether it ended")
    child = Child(**values)
    if child.ended and child.reward is None:
        raise wrong("children", "an ended child has no reward")
    if child.reward is not None and not in_unit_interval(child.reward):
        raise wrong("children", f"a reward must be in [0, 1], got {child.reward}")
    return child


def in_unit_interval(x: float | None) -> bool:
    """Return whether ``x`` is a number in [0, 1]; NaN is not."""
    return x is not None and 0 <= x <= 1
