"""How a command ends: 0 done, 1 a threshold the user set was not met, 2 wrong usage or bad input, 130 interrupted.

``RMTOOLS_TRACEBACK=1`` prints the traceback below the one line of an error.
"""

import contextlib
import errno
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rmtools.errors import UserError
from rmtools.jobs.processes import this_process

if TYPE_CHECKING:
    from typer.exceptions import TyperException

TRACEBACK = "RMTOOLS_TRACEBACK"
# An error that all processes of a run share is reported by the main one, and the launcher then ends the others. A process
# that is still there after this many seconds has an error of its own.
SILENCE = 15.0
INTERRUPTED = 130


@contextlib.contextmanager
def exit_on_user_error(wording: Callable[[str], str] = str) -> Iterator[None]:
    """Turn a ``UserError`` into one line on standard error and exit code 2; an interrupt into 130.

    ``wording`` makes of the error's text what the user reads.
    """
    # peft imports it if it is installed (genlm-control installs it), and it warns of CPU kernels not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        yield
    except UserError as error:
        process = this_process()
        where = "" if process.main else f"process {process.rank} of {process.size}: "
        time.sleep(0 if process.main else SILENCE)
        _exit(f"error: {where}{' '.join(wording(str(error)).split())}", 2)
    except OSError as error:
        # A name that no file can have fails wherever it is first used; other errors of the system are caught there.
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        _exit(f"error: {error.strerror}: {error.filename}; fix: name another file", 2)
    except KeyboardInterrupt:
        _exit("interrupted; nothing half-written was kept", INTERRUPTED)


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """Return ``text`` with parameters named as the flags that set them: `` `name` `` and ``name=4``.

    >>> with_flags("`pool_size` must be at least 1, got 0; fix: pool_size=1", {"pool_size": "--pool-size"})
    '--pool-size must be at least 1, got 0; fix: --pool-size 1'
    """
    text = re.sub(r"`(\w+)`", lambda name: flags.get(name[1], name[0]), text)
    return re.sub(
        r"\b(\w+)=(?=[\d.])", lambda name: f"{flags[name[1]]} " if name[1] in flags else name[0], text
    )


def with_dashes(text: str) -> str:
    """Return ``text`` with every parameter as a flag, for a recipe whose arguments all are flags.

    >>> with_dashes("`gate_samples` must be at least 0; fix: gate_samples=0")
    '--gate-samples must be at least 0; fix: --gate-samples 0'
    """
    names = re.findall(r"`(\w+)`", text)
    return with_flags(text, {name: "--" + name.replace("_", "-") for name in names})


# What a number must be, by pydantic's name of the error.
NEEDS = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
}


def refusal(error: "TyperException") -> UserError:
    """Return an error of typer's as fact, reason (what the option is, from its help) and fix."""
    context, option = getattr(error, "ctx", None), getattr(error, "param", None)
    verb = context.command_path if context is not None else "rmtools"
    see = f"see `{verb} --help`"
    cause: Any = error.__cause__
    if option is None or not hasattr(cause, "errors"):
        return UserError(error.format_message().rstrip(".?"), see)
    found, name = cause.errors()[0], option.opts[-1]
    if found["type"] in NEEDS:
        need = NEEDS[found["type"]].format(**found.get("ctx", {}))
        what = option.help.split(". ")[0].rstrip(".")
        return UserError(
            f'{name} must be {need}, got {found["input"]}: it is "{what}"',
            f"pass a value that is {need}; {see}",
        )
    wrong, _, choices = found["msg"].removeprefix("Value error, ").partition(" is not one of ")
    if choices:
        listed = choices.replace("'", "").rstrip(".")
        return UserError(f"{name} has no choice {wrong}", f"choose one of {listed}")
    return UserError(error.format_message().rstrip(".?"), see)


def _exit(line: str, code: int) -> None:
    print(f"rmtools: {line}", file=sys.stderr)
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exc()
    raise SystemExit(code) from None
