"""The device that a process of a command runs on."""

import os
from typing import TYPE_CHECKING

from rmtools.jobs.processes import local_rank

if TYPE_CHECKING:
    import torch


def device_of_process() -> "torch.device":
    """Return the device for this process: one GPU of several, or the CPU if accelerate is set to use it."""
    import torch

    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"):
        return torch.device("cpu")
    return torch.device("cuda", local_rank() % torch.cuda.device_count())
