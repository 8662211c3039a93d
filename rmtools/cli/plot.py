"""``rmtools plot``: draw what other verbs wrote."""

from pathlib import Path
from typing import Annotated

import typer

from rmtools.cli.options import data_option, help_without_verb, output_option

app = typer.Typer(
    help="Draw pictures of what other verbs wrote.", callback=help_without_verb, invoke_without_command=True
)


@app.command("trace")
def trace(
    file: Annotated[Path, typer.Argument(help="Trace that `rmtools sample --trace FILE` wrote.")],
    prompt: Annotated[
        int,
        data_option(min=0, help="Line of the file, from 0: one per run; a prompt may have several."),
    ] = 0,
    out: Annotated[
        Path | None, output_option(help="Picture to write: .svg, .png or .pdf. Default: FILE with .svg.")
    ] = None,
) -> None:
    """Draw the ancestry tree of one prompt's particles with the texts of their steps, and the effective sample size."""
    from rmtools.errors import UserError
    from rmtools.files import replacing
    from rmtools.sampling.trace import read_traced_prompt

    if file.is_dir():
        raise UserError(
            f"the trace {file} is a folder", "name the file that `rmtools sample --trace FILE` wrote"
        )
    picture = file.with_suffix(".svg") if out is None else out
    form = form_of(picture)
    if file.exists() and picture.exists() and picture.samefile(file):
        raise UserError(f"the picture would replace the trace {file}", "name another file with --out")
    found = read_traced_prompt(file, prompt)
    from rmtools.plots import trace_picture

    drawn = trace_picture(found, form)
    with replacing(picture) as temporary:
        temporary.write_bytes(drawn)
    print(f"{picture}: {found.n_particles} particles, {len(found.steps)} steps")


def form_of(picture: Path) -> str:
    """Return the format of a picture by its suffix; raises ``UserError`` for another suffix, or without its folder."""
    from rmtools.errors import UserError
    from rmtools.plots import FORMS

    form = picture.suffix.lower().removeprefix(".")
    if form not in FORMS:
        named = ", ".join(f".{f}" for f in FORMS)
        raise UserError(
            f"cannot draw {picture}: its suffix is not one of {named}", f"name a file that ends in {named}"
        )
    if picture.is_dir():
        raise UserError(f"the output {picture} is a folder", "name a file with --out")
    if not picture.parent.is_dir():
        raise UserError(
            f"there is no folder {picture.parent} for {picture.name}", "make it, or choose another with --out"
        )
    return form
