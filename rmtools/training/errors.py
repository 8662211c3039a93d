"""Errors of the libraries underneath that a user's arguments or files cause, as one line instead of a traceback."""

import contextlib
import json
from collections.abc import Iterator

from rmtools.errors import UserError


@contextlib.contextmanager
def refused_by_libraries() -> Iterator[None]:
    """Turn what transformers, peft and safetensors raise on wrong arguments and damaged files into a ``UserError``.

    Type, attribute and key errors are ours and keep their traceback.
    """
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except (ValueError, ImportError, RuntimeError, OSError, SafetensorError, json.JSONDecodeError) as error:
        if "out of memory" in str(error).lower():
            from rmtools.training.config import CHECKPOINTING

            raise UserError(
                "the device is out of memory",
                f"lower per_device_train_batch_size or max_length, or add --{CHECKPOINTING} true",
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(
            f"the training was refused: {' '.join(lines[:2])[:300]}",
            "change the argument, or replace the file, that it speaks of",
        ) from error
