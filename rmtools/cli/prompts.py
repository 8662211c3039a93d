"""``rmtools prompts``: draw solvable prompts of a task into a JSONL file."""

from pathlib import Path
from typing import Annotated

import typer

from rmtools.cli.options import MOST, Horizon, Seed, TaskName


def command(
    n: Annotated[int, typer.Option("-n", "--count", min=1, max=MOST, help="Number of prompts.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    task: TaskName = "crossing",
    horizon: Horizon = None,
    seed: Seed = 0,
) -> None:
    """Draw solvable prompts of a task; OUT.meta.json has the number of unsolvable ones that were left out."""
    from rmtools.data.prompts import write_prompts
    from rmtools.data.tasks import load_task
    from rmtools.files import write_json
    from rmtools.seeds import generator

    chosen = load_task(task or "crossing", horizon)
    found, removed = chosen.prompts(n, generator("prompts", seed))
    write_prompts(out, found)
    write_json(
        out.with_suffix(".meta.json"),
        {
            "schema_version": 1,
            "task": chosen.name,
            "horizon": chosen.horizon,
            "seed": seed,
            "prompts": len(found),
            "removed_prompts": removed,
        },
    )
    print(f"{len(found)} prompts in {out}; {removed} without a solution were drawn and left out")
