"""``rmtools train``: a value model from branching rollouts, or from rows of any public stepwise format.

Its arguments are the fields of three dataclasses (`DataArguments`, `PRMConfig`, trl's `ModelConfig`), as flags or as the keys
of a YAML file.
"""

import argparse
import difflib
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

import typer

from rmtools.errors import UserError
from rmtools.jobs.processes import this_process

if TYPE_CHECKING:
    from trl import ModelConfig

    from rmtools.training.config import DataArguments, PRMConfig

HELP = ("-h", "--help", "--help-all")
SEE = "`rmtools train --help` lists the arguments"
EPILOGUE = "All others of transformers.TrainingArguments: rmtools train --help-all"
# The arguments people set, by the panel of the help they stand in; those of the model are added there.
PANELS: dict[str, tuple[str, ...]] = {
    "Data": (
        *("config", "train_rollouts", "eval_rollouts", "eval_share", "data_format", "split", "eval_split"),
        *(
            "skip_bad",
            "map",
            "first_step",
            "neutral",
            "keep_excluded",
            "segment",
            "inner_delimiter",
            "max_length",
        ),
        *("prompt_format", "system", "few_shot"),
    ),
    "Target and loss": (
        *(
            "target",
            "divergence",
            "td_lambda",
            "n_step",
            "ema_decay",
            "bellman_residual",
            "pqm_margin",
            "floor",
        ),
    ),
    "Training": (
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "max_steps", "num_train_epochs"),
        *("per_device_train_batch_size", "max_tokens_per_batch", "gradient_accumulation_steps"),
        *("train_sampling_strategy", "learning_rate", "lr_scheduler_type"),
        *("warmup_steps", "bf16", "eval_strategy", "save_strategy", "seed"),
        *("early_stopping_patience", "metric_for_best_model"),
    ),
}


# Shorter or truer here than the inherited help.
INSTEAD = {
    "model_name_or_path": "folder or hub name to start from, a published PRM too; default: the policy of the rollouts",
    "use_peft": "train LoRA adapters; false: all weights",
    "output_dir": "folder of the trained checkpoint",
    "resume_from_checkpoint": "a folder checkpoint-<n>, or last: the newest intact one in output_dir",
    "max_steps": "optimiser steps, instead of num_train_epochs",
    "gradient_accumulation_steps": "batches of an optimiser step",
}


def command(context: typer.Context) -> None:
    """Train a value model on branching rollouts, or on rows of a public stepwise format."""
    train(context.args)


def train(given: Sequence[str]) -> None:
    """Train with the flags ``given``, or print the help that they ask for."""
    if asked := [flag for flag in given if flag in HELP]:
        print_help(everything="--help-all" in asked)
        return
    parsed = arguments(given)
    from rmtools.training.run import train

    train(*parsed, on_model=lambda model: _print_choices(model, parsed[1]))


def _print_choices(model: Any, config: "PRMConfig") -> None:
    """Print what the training begins from, and what was chosen for the user: the precision, the floor, the learning rate."""
    from rmtools.lm.classifier import source_name
    from rmtools.lm.formats.beginning import beginning
    from rmtools.lm.precision import model_precision

    if this_process().main:
        print(beginning(source_name(model)).sentence, flush=True)
        print(f"weights of the base in {model_precision(model)}, head in float32", flush=True)
        rate = "not known" if config.success_rate is None else f"{config.success_rate:.3g}"
        print(f"floor {config.floor:g}, success rate of the training rollouts {rate}", flush=True)
        print(f"learning rate {config.learning_rate:g}", flush=True)


def arguments(given: Sequence[str]) -> "tuple[DataArguments, PRMConfig, ModelConfig]":
    """Parse flags and YAML; an unknown key of either is an error."""
    parser = argument_parser()
    known = {action.dest for action in parser._actions} | {"config"}
    flags = [text[2:].partition("=")[0].replace("-", "_") for text in given if text.startswith("--")]
    for name in flags:
        # argparse takes a beginning for the whole name.
        if not any(other.startswith(name.removeprefix("no_")) for other in known):
            raise unknown(f"there is no argument --{name}", name, known)
    given = [
        part for text in given for part in (text.split("=", 1) if text.startswith("--config=") else [text])
    ]
    if "--config" in given:
        if given[-1] == "--config":
            refuse("--config names no file")
        check_yaml(given[given.index("--config") + 1], dataclasses(), known)
    try:
        parsed: Any = parser.parse_args_and_config(given)
    except UserError:
        raise
    except (ValueError, OSError) as error:  # values that trl's own checks refuse
        refuse(str(error))
    return parsed


def dataclasses() -> list[Any]:
    """Return the dataclasses whose fields are the arguments."""
    from trl import ModelConfig

    from rmtools.training.config import DataArguments, PRMConfig

    return [DataArguments, PRMConfig, ModelConfig]


def argument_parser() -> Any:
    """Return trl's parser of flags and YAML."""
    from trl import TrlParser

    parser: Any = TrlParser(dataclasses(), add_help=False)
    parser.set_defaults(use_peft=True)
    next(action for action in parser._actions if action.dest == "floor").type = _floor
    parser.error = refuse
    return parser


def _floor(text: str) -> float | None:
    return None if text == "auto" else float(text)


def refuse(message: str) -> NoReturn:
    """Raise ``UserError`` with what the parser says."""
    raise UserError(f"the training arguments are wrong: {message}", SEE)


def unknown(fact: str, name: str, known: Collection[str]) -> UserError:
    """Return the error for an unknown argument; the nearest one is named."""
    nearest = difflib.get_close_matches(name, known, 1)
    return UserError(fact, f"the nearest is --{nearest[0]}; {SEE}" if nearest else SEE)


def check_yaml(path: str | Path, dataclasses: list[Any], known: Collection[str]) -> None:
    """Raise ``UserError`` if a YAML file has an unknown key, or a value that does not fit the type of its field.

    trl's parser takes these values unchecked.
    """
    import yaml

    from rmtools.codec import from_json

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"the configuration {path} cannot be read: {error}", "name a YAML file with keys and values"
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"the configuration {path} has no keys and values", "write lines such as `target: td`"
        )
    hints = {name: hint for cls in dataclasses for name, hint in get_type_hints(cls).items()}
    hints["resume_from_checkpoint"] = bool | str | None  # as transformers documents it
    for key, value in values.items():
        if not isinstance(key, str):
            raise UserError(f"{path}: the key {key!r} is not text", "name an argument, or put it in quotes")
        if key not in (*known, "env") or key == "config":
            raise unknown(f"{path}: there is no argument {key}", key, known)
        # The parser converts text as it does on the command line: YAML reads 3e-3 as text.
        if isinstance(value, str) or key not in hints:
            continue
        what, fix = f"{path}, key {key}", "correct the value"
        if value is None and hints[key] is float:  # the codec reads null as NaN
            raise UserError(f"{what}: it must be a number, got None", fix)
        from_json(hints[key], value, what, fix)


def _without_peft() -> None:
    """Hide peft from a process that was started to print the help, and ends with it.

    transformers imports peft beside its arguments, which takes longer than all the rest; the help needs nothing of it.
    """
    if "transformers" not in sys.modules and {*HELP} & {*sys.orig_argv}:
        sys.modules.setdefault("peft", None)  # type: ignore[arg-type]


def print_help(everything: bool) -> None:
    """Print the arguments people set, by panel; with ``everything`` the inherited ones below them."""
    _without_peft()
    from rich.console import Console

    from rmtools.training.config import CHECKPOINTING
    from rmtools.training.lora import HONOURED

    parser = argument_parser()
    parser.add_argument(
        "--config", type=Path, help="YAML file with these arguments as keys; a flag overrides it"
    )
    actions = {action.dest: action for action in reversed(parser._actions)}  # --no_x has the name of --x
    panels = {
        **{name: PANELS[name] for name in ("Data", "Target and loss")},
        "Model and adapter": (*HONOURED, CHECKPOINTING),
        "Training": PANELS["Training"],
    }
    console = Console(highlight=False)
    console.print("Usage: rmtools train [--config FILE] [ARGUMENTS]\n", markup=False)
    console.print(f"{command.__doc__}\n", markup=False)
    for title, names in panels.items():
        console.print(_panel(title, names, actions))
    if not everything:
        console.print(EPILOGUE, markup=False)
        return
    shown = {name for names in panels.values() for name in names}
    from trl import ModelConfig

    ours = shown | set(ModelConfig.__dataclass_fields__)
    console.print(_panel("Inherited from transformers", sorted(actions.keys() - ours), actions))


def _panel(title: str, names: Sequence[str], actions: Mapping[str, argparse.Action]) -> Any:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name in names:
        action = actions[name]
        table.add_row(
            Text(f"--{name}", style="bold cyan"),
            Text(_kind(action), style="yellow"),
            Text(_described(action)),
        )
    return Panel(table, title=title, title_align="left", border_style="dim")


def _kind(action: argparse.Action) -> str:
    kind = getattr(action.type, "__name__", "")
    named = {"string_to_bool": "bool", "Path": "path", "_floor": "float"}
    return f"<{named.get(kind, kind if kind in ('int', 'float') else 'str')}>"


def _described(action: argparse.Action) -> str:
    """Return an argument's help (of transformers' long ones the first sentence), its choices and default."""
    text = " ".join((action.help or "").split()).replace("%%", "%")
    if text[:1].isupper():
        text = text.partition(". ")[0].rstrip(".")
    text = INSTEAD.get(action.dest, text)
    choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
    default = getattr(action.default, "value", action.default)
    return text + choices + ("" if default in (None, "", []) else f" [default: {default}]")
