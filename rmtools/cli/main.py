"""The command ``rmtools`` and its verbs; heavy imports wait until a verb runs."""

import sys
from typing import Any

import typer
from typer.exceptions import Abort, TyperException

from rmtools import __version__
from rmtools.cli import (
    audit,
    calibrate,
    convert,
    env,
    evaluate,
    export,
    plot,
    prompts,
    rollout,
    sample,
    train,
    verify,
)
from rmtools.cli.errors import INTERRUPTED, exit_on_user_error, refusal, with_flags

SUMMARY = "Train, audit and sample with process reward models that are consistent in the sense of Bellman."

app = typer.Typer(
    name="rmtools",
    help=SUMMARY,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # subcommands inherit them
)
app.command("prompts")(prompts.command)
app.command("rollout")(rollout.command)
app.command("convert")(convert.command)
# trl's parser reads its arguments.
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
app.command("train", context_settings=PASS_THROUGH, add_help_option=False)(train.command)
app.command("audit")(audit.command)
app.command("calibrate")(calibrate.command)
app.command("sample")(sample.command)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(plot.app, name="plot")
app.add_typer(verify.app, name="verify")
app.command("export")(export.command)
app.command("env")(env.command)


@app.callback(invoke_without_command=True, help=SUMMARY)
def start(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Print the version or, without a verb, the help."""
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


def run() -> None:
    """Run the command line; every error a user can cause is one line and exit code 2."""
    with exit_on_user_error(in_flags):
        try:
            code = app(standalone_mode=False)
        except TyperException as error:
            raise refusal(error) from None
        except Abort:
            raise KeyboardInterrupt from None
        if code == INTERRUPTED:  # typer catches an interrupt and says nothing
            raise KeyboardInterrupt
    sys.exit(code or 0)


def in_flags(text: str) -> str:
    """Return ``text`` with the parameters that stand in backquotes named as the flags that set them.

    >>> in_flags("`pool_size` must be at least 1, got 0; `rmtools` says so")
    '--pool-size must be at least 1, got 0; `rmtools` says so'
    """
    return with_flags(text, _flags(typer.main.get_command(app)))


def _flags(command: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for parameter in command.params:
        long = next((option for option in parameter.opts if option.startswith("--")), parameter.opts[0])
        if long.startswith("-"):  # an argument has no flag
            found |= {option.lstrip("-").replace("-", "_"): long for option in parameter.opts}
    for part in getattr(command, "commands", {}).values():
        found |= _flags(part)
    return found


if __name__ == "__main__":
    run()
