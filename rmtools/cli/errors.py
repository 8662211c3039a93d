"""How a command ends: 0 done, 1 a threshold the user set was not met, 2 wrong usage or bad input, 130 interrupted.

``RMTOOLS_TRACEBACK=1`` prints the traceback below the one line of an error.
"""

import contextlib
import errno
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from rmtools.errors import UserError
from rmtools.jobs.processes import this_process

TRACEBACK = "RMTOOLS_TRACEBACK"
# An error that all processes of a run share is reported by the main one, and the launcher then ends the others. A process
# that is still there after this many seconds has an error of its own.
SILENCE = 15.0
INTERRUPTED = 130


@contextlib.contextmanager
def exit_on_user_error(wording: Callable[[str], str] = str) -> Iterator[None]:
    """Turn a ``UserError`` into one line on standard error and exit code 2; an interrupt into 130.

    Parameters
    ----------
    wording : callable
        From the error's text to what the user reads.
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


def _exit(line: str, code: int) -> None:
    print(f"rmtools: {line}", file=sys.stderr)
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exc()
    raise SystemExit(code) from None
