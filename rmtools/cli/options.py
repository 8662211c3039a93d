"""Options that several verbs share: one wording, one check; and the panels that group options in the help."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from rmtools.errors import UserError

# More of anything does not fit in memory.
MOST = 1_000_000

# An option of a panel: model_option(min=1, help="…") is typer.Option with its panel.
model_option = partial(typer.Option, rich_help_panel="Models and task")
data_option = partial(typer.Option, rich_help_panel="Data")
sampler_option = partial(typer.Option, rich_help_panel="Sampler")
server_option = partial(typer.Option, rich_help_panel="A policy behind a server")
work_option = partial(typer.Option, rich_help_panel="Work and seed")
output_option = partial(typer.Option, rich_help_panel="Output")

DeviceName = Literal["auto", "cpu", "cuda", "mps", "spread"]
DtypeName = Literal["auto", "float32", "bfloat16"]


def _computes_in_float64(name: DeviceName) -> DeviceName:
    """Refuse mps while the options are read, before anything is loaded."""
    if name == "mps":
        raise UserError(
            "--device mps cannot be used: steps are drawn in float64, which Apple's GPUs do not have",
            "pass --device cpu, or leave --device out",
        )
    return name


TerminalName = Literal["verifier", "model"]

Policy = Annotated[
    str | None,
    model_option(
        help="Folder or hub name of the policy; with --server none, the policy is the server's model."
    ),
]
TrainedPolicy = Annotated[
    str | None,
    model_option(help="Folder or hub name of the policy; default: the one the checkpoint was trained for."),
]
Model = Annotated[str, model_option(help="Checkpoint of the value model: folder or hub name.")]
PrmFormat = Annotated[
    str | None,
    model_option(
        "--prm-format",
        metavar="KEY",
        help="How a published reward model is read: trl, qwen-prm, math-shepherd, rlhflow, skywork, openrlhf, versaprm, "
        "implicit, vgs, judge, a JSON file of yours, or recorded (--model is then a file of scores). Default: recognised from "
        "its files.",
    ),
]
RootValue = Annotated[
    str,
    model_option(
        "--root-value",
        metavar="first-steps|P",
        help="Of a published model whose format has no value of a prompt alone: the mean over the policy's first steps, or a "
        "probability.",
    ),
]
AggregateName = Annotated[
    Literal["last", "product", "min", "mean"],
    model_option("--aggregate", help="Of a published model: what makes a prefix's p of the p of its steps."),
]
Floor = Annotated[
    float, model_option("--floor", help="Of a published model: floor of its tilt, the value of a failure.")
]
RemoteCode = Annotated[
    bool,
    model_option("--trust-remote-code", help="Run code that a published model brings along."),
]
TASKS = (
    "crossing, arithmetic (either -silent too: failures unwritten), gsm8k, math, answers, or your own "
    "path/to/file.py:function"
)
TaskName = Annotated[str | None, model_option("--task", help=f"Task: {TASKS}.")]
Horizon = Annotated[
    int | None,
    model_option(
        min=1, max=MOST, help="Steps of a solution; where answers are free text, the most there may be."
    ),
]
Device = Annotated[
    DeviceName,
    model_option(
        callback=_computes_in_float64,
        help="Where models run. auto: a CUDA GPU if there is one, else the CPU. spread: the layers of each model over "
        "all GPUs of this machine, in one process. mps is refused: it has no float64.",
    ),
]
Dtype = Annotated[
    DtypeName,
    model_option(
        help="Precision of policy and value model; heads and log values are float32. auto: float32 on the CPU, that of the "
        "files on a GPU."
    ),
]
Terminal = Annotated[TerminalName, sampler_option("--terminal", help="What a finished solution is worth.")]
# The range that numpy's and torch's global generators take.
Seed = Annotated[int, work_option(min=0, max=2**32 - 1, help="Seed of every random draw.")]
Trajectories = Annotated[int, data_option(min=1, max=MOST, help="Independent trajectories per prompt.")]
Children = Annotated[
    int, data_option(min=1, max=MOST, help="K: next steps at each prefix, including the trajectory's own.")
]
Completions = Annotated[
    int,
    data_option(min=1, max=MOST, help="R: continuations from each prefix, including the trajectory's own."),
]
FormatName = Annotated[
    Literal["auto", "raw", "chat"],
    data_option(
        "--prompt-format",
        help="How a question becomes a prompt: raw (as it stands), or chat (turns, rendered by the chat template of the "
        "policy's tokenizer). auto: the checkpoint's; without one chat if there is a template.",
    ),
]
System = Annotated[
    str | None, data_option(metavar="TEXT", help=r"System turn of a chat, \n and \t as escapes.")
]
FewShot = Annotated[
    Path | None,
    data_option(
        metavar="FILE",
        help='JSONL file of examples in front of every question: {"question": "…", "solution": "…"}.',
    ),
]
PromptsLimit = Annotated[int | None, data_option(min=1, help="Use only the first so many prompts.")]
Out = Annotated[Path, output_option(help="Output folder.")]


def help_without_verb(context: typer.Context) -> None:
    """Print the help of a group of commands if none of them is named."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def unescaped(text: str) -> str:
    r"""Return ``text`` with \n and \t as the characters they name: a shell passes them as two."""
    return text.replace(r"\n", "\n").replace(r"\t", "\t")
