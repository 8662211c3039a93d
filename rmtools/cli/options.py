"""Options that several verbs share: one wording, one check."""

from pathlib import Path
from typing import Annotated

import typer

from rmtools.errors import UserError

Policy = Annotated[str, typer.Option(help="Folder or hub name of the policy.")]
Model = Annotated[Path, typer.Option(help="Checkpoint of the value model.")]
TaskName = Annotated[str | None, typer.Option("--task", help="Task: crossing.")]
Horizon = Annotated[
    int | None, typer.Option(min=1, help="Steps of a solution, where the task lets it be chosen.")
]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Out = Annotated[Path, typer.Option(help="Output folder.")]
TerminalName = Annotated[
    str, typer.Option("--terminal", help="What a finished solution is worth: verifier or model.")
]


def at_least_one(**values: int) -> None:
    """Raise ``UserError`` where a count is below 1."""
    for name, value in values.items():
        if value < 1:
            raise UserError(
                f"--{name.replace('_', '-')} must be at least 1, got {value}", "pass a positive count"
            )
