"""Running the stages of a recipe: each command echoed, timed, its peak memory taken; finished ones kept."""

import os
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtools.errors import UserError
from rmtools.files import read_json, write_json


@dataclass(frozen=True)
class Stage:
    """A command and the file that it leaves when it is done."""

    name: str
    finished: Path
    command: list[str]


def run_stages(stages: Sequence[Stage], log: Path) -> None:
    """Run what is missing, in order; what comes after a new result is made anew.

    Raises
    ------
    UserError
        If a stage fails; those before it are kept.
    """
    done = {s["name"]: s for s in read_json(log, "the stage log")["stages"]} if log.exists() else {}
    changed = False
    for stage in stages:
        known = done.get(stage.name, {}).get("command") == shlex.join(stage.command)
        if not changed and known and stage.finished.exists():
            print(f"kept: {stage.name} ({stage.finished})")
            continue
        changed = True
        done[stage.name] = run_stage(stage)
        write_json(log, {"stages": list(done.values())})


def run_stage(stage: Stage) -> dict[str, Any]:
    """Run one stage; return its seconds and the peak memory of its processes in GiB."""
    print(f"\n$ {shlex.join(stage.command)}", flush=True)
    start = time.monotonic()
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    process = subprocess.Popen(stage.command, env=environment)
    memory = PeakMemory(process.pid)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if code:
        raise UserError(
            f"the stage '{stage.name}' ended with exit code {code}",
            "read its output above, then run the same command again: finished stages are kept",
        )
    return {
        "name": stage.name,
        "command": shlex.join(stage.command),
        "seconds": time.monotonic() - start,
        "peak_memory_gib": memory.stop(),
    }


class PeakMemory:
    """The largest resident memory of a process and its children, looked at ten times a second.

    Parameters
    ----------
    pid : int
    """

    def __init__(self, pid: int) -> None:
        import psutil

        self.process, self.bytes, self.done = psutil.Process(pid), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        import psutil

        while not self.done.wait(0.1):
            try:
                family = [self.process, *self.process.children(recursive=True)]
                self.bytes = max(self.bytes, sum(p.memory_info().rss for p in family))
            except psutil.Error:
                continue

    def stop(self) -> float:
        """Return the peak in GiB."""
        self.done.set()
        self.thread.join()
        return self.bytes / 2**30
