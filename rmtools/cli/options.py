"""Options that several verbs share: one wording, one check."""

from pathlib import Path
from typing import Annotated

import typer

# More of anything does not fit in memory.
MOST = 1_000_000
Policy = Annotated[str, typer.Option(help="Folder or hub name of the policy.")]
Model = Annotated[Path, typer.Option(help="Checkpoint of the value model.")]
TASKS = (
    "crossing, arithmetic (either -silent too: failures unwritten), gsm8k, math, answers, or your own "
    "path/to/file.py:function"
)
TaskName = Annotated[str | None, typer.Option("--task", help=f"Task: {TASKS}.")]
Horizon = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST, help="Steps of a solution; where answers are free text, the most there may be."
    ),
]
# The range that numpy's and torch's global generators take.
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random draw.")]
Trajectories = Annotated[int, typer.Option(min=1, max=MOST, help="Independent trajectories per prompt.")]
Children = Annotated[
    int, typer.Option(min=1, max=MOST, help="K: next steps at each prefix, including the trajectory's own.")
]
Completions = Annotated[
    int,
    typer.Option(min=1, max=MOST, help="R: continuations from each prefix, including the trajectory's own."),
]
Out = Annotated[Path, typer.Option(help="Output folder.")]
TerminalName = Annotated[
    str, typer.Option("--terminal", help="What a finished solution is worth: verifier or model.")
]
