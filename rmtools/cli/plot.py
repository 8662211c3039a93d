"""``rmtools plot``: pictures of files that other verbs wrote."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Draw pictures of what other verbs wrote.", no_args_is_help=False)


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Draw pictures of what other verbs wrote."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("trace")
def trace(
    file: Annotated[Path, typer.Argument(help="Trace that `rmtools sample --trace FILE` wrote.")],
    prompt: Annotated[
        int,
        typer.Option(
            help="Which line of the file, from 0: one a prompt, more where a prompt had several runs."
        ),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Picture to write: .svg, .png or .pdf. Default: FILE with .svg.")
    ] = None,
) -> None:
    """Draw the ancestry tree of one prompt's particles with the texts of their steps, and the effective sample size."""
    from rmtools.errors import UserError
    from rmtools.files import replacing
    from rmtools.sampling.trace_file import read_traced_prompt

    if prompt < 0:
        raise UserError(f"--prompt must be at least 0, got {prompt}", "count from 0")
    if file.is_dir():
        raise UserError(
            f"the trace {file} is a folder", "name the file that `rmtools sample --trace FILE` wrote"
        )
    picture = file.with_suffix(".svg") if out is None else out
    form = form_of(picture)
    if file.exists() and picture.exists() and picture.samefile(file):
        raise UserError(f"the picture would replace the trace {file}", "name another file with --out")
    record = read_traced_prompt(file, prompt)
    from rmtools.plots import trace_picture

    drawn = trace_picture(record, form)
    with replacing(picture) as temporary:
        temporary.write_bytes(drawn)
    print(f"{picture}: {record['n_particles']} particles, {len(record['steps'])} steps")


def form_of(picture: Path) -> str:
    """Return what kind of picture a file is to be; raises ``UserError`` where it is none we draw, or has no folder."""
    from rmtools.errors import UserError
    from rmtools.plots import FORMS

    form = picture.suffix.lower().removeprefix(".")
    if form not in FORMS:
        named = ", ".join(f".{f}" for f in FORMS)
        raise UserError(
            f"cannot draw {picture}: its suffix is none of {named}", f"name a file that ends in {named}"
        )
    if picture.is_dir():
        raise UserError(f"the output {picture} is a folder", "name a file with --out")
    if not picture.parent.is_dir():
        raise UserError(
            f"there is no folder {picture.parent} for {picture.name}", "make it, or choose another with --out"
        )
    return form
