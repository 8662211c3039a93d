"""``rmtools prompts``: draw solvable prompts of a task into a JSONL file."""

from pathlib import Path
from typing import Annotated

from rmtools.cli.options import MOST, Horizon, Seed, TaskName, data_option, output_option
from rmtools.errors import UserError


def command(
    n: Annotated[int, data_option("-n", "--count", min=1, max=MOST, help="Number of prompts.")],
    out: Annotated[Path, output_option(help="JSONL file to write.")],
    task: TaskName = "crossing",
    horizon: Horizon = None,
    overwrite: Annotated[
        bool, output_option("--overwrite", help="Replace a file that was made with other arguments.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Draw solvable prompts of a task; OUT.meta.json has the number of unsolvable ones that were left out."""
    from rmtools.data.prompts import prompts_text
    from rmtools.data.tasks import load_task
    from rmtools.files import json_text, replacing
    from rmtools.seeds import generator

    chosen = load_task(task or "crossing", horizon)
    if out.is_dir():
        raise UserError(f"the output {out} is a folder", "name a JSONL file with --out")
    found, removed = chosen.prompts(n, generator("prompts", seed))
    described = {
        "schema_version": 1,
        "task": chosen.name,
        "horizon": chosen.horizon,
        "seed": seed,
        "prompts": len(found),
        "removed_prompts": removed,
    }
    about = out.with_suffix(".meta.json")
    texts = {out: prompts_text(found), about: json_text(described)}
    for file, text in texts.items():
        if file.exists() and not overwrite and file.read_bytes() != text.encode():
            raise UserError(
                f"{file} is there already, and was not made with these arguments",
                "name another file with --out, or pass --overwrite to replace it",
            )
    with replacing(out) as rows, replacing(about) as description:
        rows.write_text(texts[out], encoding="utf-8")
        description.write_text(texts[about], encoding="utf-8")
    print(f"{len(found)} prompts in {out}; {removed} without a solution were drawn and left out")
