"""Rank and number of the processes, read from the environment of ``accelerate launch`` and torchrun.

No process group is made: the processes share files.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """Process ``rank`` of ``size``; rank 0, the main process, shows progress and prints."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the main process."""
        return self.rank == 0


def this_process() -> Process:
    """Return this process; rank 0 of 1 without a launcher."""
    return Process(
        _number(0, "RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
        _number(1, "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    )


def local_rank() -> int:
    """Return the rank of this process on its machine: the index of its GPU."""
    return _number(
        0, "LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"
    )


def _number(default: int, *names: str) -> int:
    return next((int(os.environ[n]) for n in names if os.environ.get(n, "").isdigit()), default)
