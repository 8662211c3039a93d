"""``rmtools convert``: public stepwise data sets into a rollout folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rmtools.data.readers import Tally
    from rmtools.data.rollouts import Rollout

MAX_STEP_TOKENS = 1024
"""Of a policy that would go on from these rollouts: steps written by people and long chains of thought are long."""


def command(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="JSON, JSONL or parquet file, or a folder of them.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of rollouts to write.")],
    name: Annotated[
        str | None, typer.Option("--from", help="Format; told from the fields where it is not given.")
    ] = None,
    neutral: Annotated[
        str, typer.Option(help="A neutral rating (prm800k: 0) is: positive, negative or skip.")
    ] = "positive",
    segment: Annotated[
        str | None,
        typer.Option(
            help="Cut whole solutions at: blank-line, newline, regex:PATTERN, or a delimiter's text."
        ),
    ] = None,
    delimiter: Annotated[
        str, typer.Option(help=r"What prompts and steps end with; \n is a newline.")
    ] = r"\n",
    first_step: Annotated[
        str, typer.Option(help="Pattern of the first step's beginning, where question and steps are joined.")
    ] = "Step 1:",
    tokenizer: Annotated[str | None, typer.Option(help="For formats that store token ids (vgs).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only this many rows.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count rows that break the format and go on.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace converted rollouts that stand at OUT.")
    ] = False,
) -> None:
    """Convert a public data set into rollouts, and say what was read and what had no place."""
    from functools import partial

    from rmtools.data.readers import Tally, read_public
    from rmtools.data.rollouts import META_FILE
    from rmtools.errors import UserError

    if (out / META_FILE).exists() and not overwrite:
        raise UserError(
            f"{out} holds rollouts already", "choose another folder, or pass --overwrite to replace them"
        )

    closing, tally = unescaped(delimiter), Tally()
    read = partial(
        read_public,
        source,
        neutral=neutral,
        segment=segment if segment is None or segment.startswith("regex:") else unescaped(segment),
        delimiter=closing,
        first_step=first_step,
        tokenizer=tokenizer,
        limit=limit,
        skip_bad=skip_bad,
    )
    # Read twice: a bad last row, or the longest solution, is known before anything is written, and no more than a
    # batch of rows is held.
    found = Summary()
    for rollout in read(name, tally=tally):
        found.add(rollout)
    print(found.table(tally))
    write(out, source, read(tally.format), tally.format, found.horizon, closing)
    print(f"rollouts in {out}")


def unescaped(text: str) -> str:
    r"""Return ``text`` with \n and \t as the characters they name: a shell passes them as two."""
    return text.replace(r"\n", "\n").replace(r"\t", "\t")


def write(
    out: Path, source: Path, rows: "Iterator[Rollout]", name: str, horizon: int, delimiter: str
) -> None:
    """Write the rollouts into ``out``; nothing is known of the policy that made them."""
    from rmtools.data.rollouts import META_FILE, RolloutMetadata, write_rollouts
    from rmtools.errors import UserError
    from rmtools.files import claim_folder
    from rmtools.lm.steps import StepSettings

    if not horizon:
        raise UserError(
            f"{source} gives no trajectory: nothing was written", "see what was dropped, and --help"
        )
    metadata = RolloutMetadata(
        policy="",
        policy_fingerprint="",
        task="",
        horizon=horizon,
        steps=StepSettings(delimiter, horizon, MAX_STEP_TOKENS),
        temperature=None,
        seed=0,
        source=name,
    )
    write_rollouts(claim_folder(out, META_FILE), rows, metadata)


@dataclass
class Summary:
    """Counts over the rollouts."""

    trajectories: int = 0
    steps: int = 0
    horizon: int = 0
    labels: int = 0
    label_sum: float = 0.0
    outcomes: int = 0
    reward_sum: float = 0.0

    def add(self, rollout: "Rollout") -> None:
        """Count one rollout."""
        known = [x for x in rollout.labels or () if x is not None]
        self.trajectories += 1
        self.steps += len(rollout.steps)
        self.horizon = max(self.horizon, len(rollout.steps))
        self.labels += len(known)
        self.label_sum += sum(known)
        self.outcomes += rollout.reward is not None
        self.reward_sum += rollout.reward or 0.0

    def table(self, tally: "Tally") -> str:
        """Return what was read, a line each, and what was dropped."""
        lines = [
            f"format          {tally.format}",
            f"rows            {tally.rows}",
            f"trajectories    {self.trajectories}",
            f"steps           {self.steps}, at most {self.horizon} a trajectory",
            f"labelled steps  {self.labels}{mean(self.label_sum, self.labels, 'label')}",
            f"outcomes        {self.outcomes}{mean(self.reward_sum, self.outcomes, 'reward')}",
        ]
        dropped = [f"dropped         {n}: {reason}" for reason, n in tally.dropped.most_common()]
        return "\n".join(lines + (dropped or ["dropped         0"]))


def mean(total: float, count: int, name: str) -> str:
    """Return the mean as the table shows it, nothing where there is none."""
    return f", mean {name} {total / count:.4f}" if count else ""
