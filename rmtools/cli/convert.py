"""``rmtools convert``: public stepwise data sets into a rollout folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rmtools.data.readers import Tally
    from rmtools.data.rollouts import Rollout, RolloutMetadata


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
) -> None:
    """Convert a public data set into rollouts, and say what was read and what had no place."""
    from rmtools.data.readers import Tally, read_public
    from rmtools.data.rollouts import META_FILE, write_rollouts
    from rmtools.errors import UserError
    from rmtools.files import claim_folder

    tally, closing = Tally(), unescaped(delimiter)
    rows = list(
        read_public(
            source,
            name,
            neutral=neutral,
            segment=segment if segment is None or segment.startswith("regex:") else unescaped(segment),
            delimiter=closing,
            first_step=first_step,
            tokenizer=tokenizer,
            limit=limit,
            skip_bad=skip_bad,
            tally=tally,
        )
    )
    print(summary(tally, rows))
    if not rows:
        raise UserError(
            f"{source} gives no trajectory: nothing was written", "see what was dropped, and --help"
        )
    write_rollouts(claim_folder(out, META_FILE), rows, metadata(tally.format, rows, closing))
    print(f"rollouts in {out}")


def unescaped(text: str) -> str:
    r"""Return ``text`` with \n and \t as the characters they name: a shell passes them as two."""
    return text.replace(r"\n", "\n").replace(r"\t", "\t")


def metadata(name: str, rows: "Sequence[Rollout]", delimiter: str) -> "RolloutMetadata":
    """Return what is known of how the rollouts were made: nothing of the policy."""
    from rmtools.data.rollouts import RolloutMetadata
    from rmtools.lm.steps import StepSettings

    horizon = max(len(r.steps) for r in rows)
    return RolloutMetadata(
        policy="unknown",
        policy_fingerprint="",
        task=name,
        horizon=horizon,
        steps=StepSettings(delimiter, horizon, max_step_tokens=1024),
        temperature=1.0,
        seed=0,
    )


def summary(tally: "Tally", rows: "Sequence[Rollout]") -> str:
    """Return what was read, as a table."""
    labels = [x for r in rows for x in r.labels or () if x is not None]
    rewards = [r.reward for r in rows if r.reward is not None]
    lines = [
        f"format          {tally.format}",
        f"rows            {tally.rows}",
        f"trajectories    {len(rows)}",
        f"steps           {sum(len(r.steps) for r in rows)}",
        f"labelled steps  {counted(labels, 'label')}",
        f"outcomes        {counted(rewards, 'reward')}",
    ]
    dropped = [f"dropped         {n}: {reason}" for reason, n in tally.dropped.most_common()]
    return "\n".join(lines + (dropped or ["dropped         0"]))


def counted(values: Sequence[float], name: str) -> str:
    """Return how many there are, and their mean."""
    return f"{len(values)}, mean {name} {sum(values) / len(values):.4f}" if values else "0"
