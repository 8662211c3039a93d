"""How a command ends: 0 done, 1 a threshold the user set was not met, 2 wrong usage or bad input."""

import contextlib
import sys
from collections.abc import Iterator

from rmtools.errors import UserError


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a ``UserError`` into one line on standard error and exit code 2; an interrupt into 130."""
    try:
        yield
    except UserError as error:
        print(f"rmtools: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("rmtools: interrupted; nothing half-written was kept", file=sys.stderr)
        raise SystemExit(130) from None
