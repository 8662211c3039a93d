"""``rmtools convert``: public stepwise data sets into a rollout folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rmtools.cli.options import data_option, output_option, unescaped
from rmtools.errors import UserError

if TYPE_CHECKING:
    from rmtools.data.readers import Tally
    from rmtools.data.rollouts import Rollout

MAX_STEP_TOKENS = 1024
"""Step limit of a policy that continues these rollouts: people's steps and long chains of thought are long."""

# The keys of rmtools.data.readers.READERS, which takes longer to import than `--help` may.
FormatName = Literal[
    "trl",
    "steps",
    "judged-steps",
    "versaprm",
    "rlhflow",
    "processbench",
    "prmbench",
    "math-shepherd",
    "openrlhf",
    "er-prm",
    "math-aps",
    "prm800k",
    "omegaprm",
    "rollouts",
    "best-of-n",
    "gsm8k",
    "gsm8k-solutions",
    "vgs",
]
Neutral = Annotated[
    Literal["positive", "negative", "skip"], data_option(help="Label of a neutral rating (prm800k: 0).")
]
Segment = Annotated[
    str | None,
    data_option(help="Cut whole solutions at: blank-line, newline, regex:PATTERN, or a delimiter's text."),
]
FirstStep = Annotated[
    str, data_option(help="Pattern of the first step's beginning, in formats that join question and steps.")
]

Source = Annotated[
    str,
    typer.Argument(
        metavar="IN",
        help="JSON, CSV, parquet or Arrow file, compressed or not; a folder of them; or a hub data set, owner/name.",
    ),
]
Map = Annotated[
    str,
    data_option(
        "--map",
        help="Fields under other names: prompt=question,steps=solution_steps,labels=step_labels; dots lead into objects.",
    ),
]
Inner = Annotated[
    Literal["keep", "split", "refuse"],
    data_option(
        help="A step that holds the delimiter before its end: keep it whole, split it, or refuse the row."
    ),
]
KeepExcluded = Annotated[
    bool,
    data_option(
        "--keep-excluded", help="Keep rows of prm800k that are quality control, screening or bad problems."
    ),
]


def command(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of rollouts to write.")],
    name: Annotated[
        FormatName | None, data_option("--from", help="Format. Default: detected from the fields.")
    ] = None,
    map: Map = "",
    split: Annotated[str, data_option(help="Split of a folder or a hub data set that has several.")] = "",
    neutral: Neutral = "positive",
    segment: Segment = None,
    delimiter: Annotated[
        str, data_option(help=r"Text that ends prompts and steps; \n is a newline.")
    ] = r"\n",
    first_step: FirstStep = "Step 1:",
    inner_delimiter: Inner = "keep",
    keep_excluded: KeepExcluded = False,
    tokenizer: Annotated[str | None, data_option(help="For formats that store token ids (vgs).")] = None,
    limit: Annotated[int | None, data_option(min=1, max=2**62, help="Read only this many rows.")] = None,
    skip_bad: Annotated[
        bool,
        data_option(
            "--skip-bad", help="Count rows that break the format, and lines that are no JSON, and continue."
        ),
    ] = False,
    overwrite: Annotated[
        bool, output_option("--overwrite", help="Replace converted rollouts that stand at OUT.")
    ] = False,
) -> None:
    """Convert a public data set into rollouts; report what was read and what was dropped."""
    from rmtools.data.readers import Options, Tally, parse_map, read_public
    from rmtools.data.rollouts import META_FILE, RolloutMetadata, write_rollouts
    from rmtools.files import claim_folder
    from rmtools.lm.steps import StepSettings

    claim_folder(out, META_FILE, holds="rollouts", overwrite=overwrite)
    if segment is not None and not segment.startswith("regex:"):
        segment = unescaped(segment)
    options = Options(
        neutral,
        segment,
        unescaped(delimiter),
        first_step,
        tokenizer,
        parse_map(map),
        keep_excluded,
        inner_delimiter,
    )
    # Read twice: a bad last row, or the longest solution, is known before anything is written, and no more than a
    # batch of rows is held.
    tally, found = Tally(), Summary()
    for rollout in read_public(
        source, name, options, split=split, limit=limit, skip_bad=skip_bad, tally=tally
    ):
        found.add(rollout)
    found.show(tally)
    if not found.horizon:
        raise UserError(
            f"{source} gives no trajectory: nothing was written", "see what was dropped, and --help"
        )
    metadata = RolloutMetadata(
        policy="",
        policy_fingerprint="",
        task="",
        horizon=found.horizon,
        steps=StepSettings(options.delimiter, found.horizon, MAX_STEP_TOKENS),
        temperature=None,
        seed=0,
        source=tally.format,
    )
    rows = read_public(source, tally.format, options, split=split, limit=limit, skip_bad=skip_bad)
    write_rollouts(out, rows, metadata)
    print(f"rollouts in {out}")


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

    def show(self, tally: "Tally") -> None:
        """Print what was read, a line each, and what was dropped."""
        lines = [
            ("format", tally.format),
            *(("file", f"{file}: {rows} rows") for file, rows in tally.files.items()),
            ("rows", tally.rows),
            ("trajectories", self.trajectories),
            ("steps", f"{self.steps}, at most {self.horizon} a trajectory"),
            ("labelled steps", f"{self.labels}{_mean(self.label_sum, self.labels, 'label')}"),
            ("outcomes", f"{self.outcomes}{_mean(self.reward_sum, self.outcomes, 'reward')}"),
            *(("dropped", f"{n}: {reason}") for reason, n in tally.dropped.most_common()),
        ]
        lines += [] if tally.dropped else [("dropped", 0)]
        lines += [("such as", fact) for fact in tally.bad] + [("note", note) for note in tally.notes()]
        for label, value in lines:
            print(f"{label:<14}  {value}")


def _mean(total: float, count: int, name: str) -> str:
    return f", mean {name} {total / count:.4f}" if count else ""
