"""The device that a process of a command runs on."""

import os
from typing import TYPE_CHECKING

from rmtools.errors import UserError
from rmtools.jobs.processes import local_rank

if TYPE_CHECKING:
    import torch

    from rmtools.cli.options import DeviceName


def device_for(name: "DeviceName") -> "torch.device":
    """Return the device of ``--device`` for this process: one GPU of several.

    ``auto`` is the CPU without a CUDA GPU, or if accelerate is set to use the CPU. Raises ``UserError`` if there is no CUDA GPU.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
        name = "cuda" if gpus and not on_cpu else "cpu"
    if name == "cuda" and not gpus:
        raise UserError(
            "--device cuda cannot be used: torch finds no CUDA GPU",
            "pass --device cpu, or install a torch with CUDA; `rmtools env` shows what torch finds",
        )
    return torch.device("cuda", local_rank() % gpus) if name == "cuda" else torch.device(name)
