"""Run the stages of a recipe: each command is echoed and timed, its peak memory recorded; finished stages are kept."""

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rmtools.errors import UserError
from rmtools.files import read_json, write_json


@dataclass(frozen=True)
class Stage:
    """A command and the file that it leaves when it is done."""

    name: str
    finished: Path
    command: list[str]


def run_stages(stages: Sequence[Stage], log: Path) -> None:
    """Run the missing stages in order; after a new result, run all later stages again.

    A stage is kept if its file exists and ``log`` holds the same command line.

    Raises
    ------
    UserError
        If a stage fails. The stages before it are kept.
    """
    done = {s["name"]: s for s in read_json(log, "the stage log")["stages"]} if log.exists() else {}
    changed = False
    for stage in stages:
        known = done.get(stage.name, {}).get("command") == shlex.join(stage.command)
        if not changed and known and stage.finished.exists():
            print(f"kept: {stage.name} ({stage.finished})")
            continue
        changed = True
        done[stage.name] = _run(stage)
        write_json(log, {"stages": list(done.values())})


def _run(stage: Stage) -> dict[str, Any]:
    """Run one stage; return its entry of the log: seconds, and the peak memory of its processes in GiB."""
    command, start, peak = shlex.join(stage.command), time.monotonic(), 0
    print(f"\n$ {command}", flush=True)
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    process = subprocess.Popen(stage.command, env=environment)
    try:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # a process that has just ended
                parent = psutil.Process(process.pid)
                family = [parent, *parent.children(recursive=True)]
                peak = max(peak, sum(p.memory_info().rss for p in family))
            time.sleep(0.1)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if process.returncode:
        raise UserError(
            f"the stage '{stage.name}' ended with exit code {process.returncode}",
            "read its output above, then run the same command again: finished stages are kept",
        )
    seconds = time.monotonic() - start
    return {"name": stage.name, "command": command, "seconds": seconds, "peak_memory_gib": peak / 2**30}
