"""Which of several processes this one is, read from the environment as ``accelerate launch`` and torchrun leave it.

No process group is made: what the processes share is files.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """Process ``rank`` of ``size``; the one of rank 0 speaks for all of them."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that shows progress and prints."""
        return self.rank == 0


def this_process() -> Process:
    """Return which process this is; alone, where nothing launched several."""
    return Process(
        _number(0, "RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
        _number(1, "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    )


def local_rank() -> int:
    """Return the number of this process on its machine: the GPU it takes."""
    return _number(
        0, "LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"
    )


def _number(default: int, *names: str) -> int:
    return next((int(os.environ[n]) for n in names if os.environ.get(n, "").isdigit()), default)
