"""``rmtools prompts``: draw solvable prompts of a task into a JSONL file."""

from pathlib import Path
from typing import Annotated

import typer

from rmtools.cli.options import Horizon, Seed, TaskName, at_least_one, generator


def command(
    n: Annotated[int, typer.Option("-n", "--count", help="How many prompts.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    task: TaskName = "crossing",
    horizon: Horizon = None,
    seed: Seed = 0,
) -> None:
    """Draw solvable prompts of a task; how many drawn ones were unsolvable and left out goes into OUT.meta.json."""
    from rmtools.data.prompts import write_prompts
    from rmtools.data.tasks import load_task
    from rmtools.files import write_json

    at_least_one(count=n)
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
