"""How a command ends: 0 done, 1 a threshold the user set was not met, 2 wrong usage or bad input."""

import contextlib
import errno
import logging
import sys
import time
from collections.abc import Iterator

from rmtools.errors import UserError
from rmtools.jobs.processes import this_process

# What is wrong for all of several processes the main one says first, and the launcher then ends the others. One that is
# still there after this many seconds has an error of its own to tell.
SILENCE = 15.0
INTERRUPTED = 130


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a ``UserError`` into one line on standard error and exit code 2; an interrupt into 130."""
    # Where it is installed (genlm-control brings it), peft imports it, and on some CPUs it warns of kernels not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        yield
    except UserError as error:
        process = this_process()
        where = "" if process.main else f"process {process.rank} of {process.size}: "
        time.sleep(0 if process.main else SILENCE)
        print(f"rmtools: error: {where}{' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        # Whatever asks first of a name that no file can have; other errors of the system are caught where they may come.
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        print(f"rmtools: error: {error.strerror}: {error.filename}; fix: name another file", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("rmtools: interrupted; nothing half-written was kept", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
