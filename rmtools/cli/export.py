"""``rmtools export``: a checkpoint as a plain transformers model."""

from typing import Annotated

from rmtools.cli.options import Model, Out, output_option
from rmtools.errors import UserError


def command(
    model: Model,
    out: Out,
    merge: Annotated[bool, output_option("--merge", help="Merge the adapter into the weights.")] = False,
) -> None:
    """Write a checkpoint as a plain AutoModelForTokenClassification that loads without rmtools."""
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.export import export_merged, serving_notes

    if not merge:
        raise UserError(
            "there is nothing to export without merging: peft and rmtools load an adapter as it is",
            "add --merge",
        )
    print(f"merged model in {export_merged(model, out)}")
    print(serving_notes(CheckpointSettings.load(out), out))
