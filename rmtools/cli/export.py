"""``rmtools export``: a checkpoint as a plain transformers model, on this machine and on the hub."""

from pathlib import Path
from typing import Annotated

from rmtools.cli.options import Model, output_option
from rmtools.errors import UserError

ExportFolder = Annotated[
    Path | None, output_option(help="Output folder of --merge; an earlier export there is replaced.")
]
Push = Annotated[
    str | None,
    output_option(
        metavar="ORG/NAME",
        help="Upload it to the hub, with settings and model card: merged, or the checkpoint as it is.",
    ),
]


def command(
    model: Model,
    out: ExportFolder = None,
    merge: Annotated[bool, output_option("--merge", help="Merge the adapter into the weights.")] = False,
    push: Push = None,
    private: Annotated[bool, output_option("--private", help="Make the hub's model a private one.")] = False,
) -> None:
    """Write a checkpoint as a plain AutoModelForTokenClassification that loads without rmtools, or push it to the hub."""
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.export import export_merged, serving_notes
    from rmtools.lm.export import push as upload

    if private and push is None:
        raise UserError("--private is for --push only", "add --push ORG/NAME, or leave --private out")
    if not merge and push is None:
        raise UserError(
            "there is nothing to export without merging: peft and rmtools load an adapter as it is",
            "add --merge, or --push ORG/NAME to upload the checkpoint as it is",
        )
    if merge != (out is not None):
        raise UserError(
            "--merge writes into a folder, and none is named" if merge else "--out is for --merge only",
            "add --out FOLDER" if merge else "leave --out out, or add --merge",
        )
    if out is not None:
        print(f"merged model in {export_merged(model, out)}")
        settings = CheckpointSettings.load(out)
        if settings.base_quantization:
            print(
                "its base was quantised: the merged weights are in float32, dequantised, and give the same values"
            )
        print(serving_notes(settings, out))
    if push is not None:
        folder = out or Path(model)
        print(f"pushed: {upload(folder, push, private)}")
        policy = CheckpointSettings.load(folder).policy
        if Path(policy).is_dir():
            print(f"its policy is the folder {policy}: elsewhere, name it with --policy")
