"""Where a process of a command runs its models, and in which precision."""

import os
from typing import TYPE_CHECKING, Any

from rmtools.errors import UserError
from rmtools.jobs.processes import local_rank, this_process

if TYPE_CHECKING:
    from rmtools.cli.options import DeviceName, DtypeName
    from rmtools.lm.precision import Placement, Where


def device_for(name: "DeviceName") -> "Where":
    """Return the device of ``--device`` for this process: one GPU of several.

    ``auto`` is the CPU without a CUDA GPU, or if accelerate is set to use the CPU. Raises ``UserError`` if there is no CUDA GPU,
    or each of several processes would spread its models over all of them.
    """
    import torch

    if name == "spread":
        if this_process().size > 1:
            raise UserError(
                f"--device spread puts a model on all GPUs, and {this_process().size} processes would each do so",
                "start one process: `rmtools` without `accelerate launch`",
            )
        return "spread"

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


def placement_for(device: "DeviceName", dtype: "DtypeName") -> "Placement":
    """Return what ``--device`` and ``--dtype`` ask for; errors as of `device_for`."""
    from rmtools.lm.precision import Placement

    return Placement(device_for(device), dtype)


def print_precision(**models: Any) -> None:
    """Print the precision of models that are in memory, named by keyword: once, by the main process."""
    from rmtools.lm.precision import precision_of

    found = [(name.replace("_", " "), precision_of(m), m) for name, m in models.items()]
    held = [(name, how, m) for name, how, m in found if how]
    if held and this_process().main:
        print(f"{', '.join(f'{name} in {how}' for name, how, _ in held)}, on {held[0][2].device.type}")
