"""Stages that leave a file or a folder each: finished ones are kept, and checked when the run goes on."""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmtools.errors import UserError
from rmtools.files import read_json, write_json

LEDGER = "stages.json"


@dataclass
class Stages:
    """The finished stages of a folder, with hashes of what they left.

    ``configuration`` is what all of them depend on; ``done`` maps a stage to its hash and seconds.
    """

    folder: Path
    configuration: dict[str, Any]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, configuration: dict[str, Any]) -> "Stages":
        """Return the stages of ``folder``, none of a new one.

        Raises
        ------
        UserError
            If the folder is of another configuration, or a stage's output was changed.
        """
        file = folder / LEDGER
        if not file.exists():
            return cls(folder, configuration)
        found = read_json(file, "the list of finished stages")
        if found.get("configuration") != configuration:
            other = found.get("configuration", {})
            differing = [k for k in {**configuration, **other} if configuration.get(k) != other.get(k)]
            raise UserError(
                f"{folder} holds a run with another configuration ({', '.join(sorted(differing))})",
                "choose another folder with `out`, or remove this one",
            )
        stages = cls(folder, configuration, found["stages"])
        for name, entry in stages.done.items():
            if stages.hash_of(name) != entry["sha256"]:
                raise UserError(
                    f"what the stage {name} left in {folder / name} was changed since",
                    f"remove {folder} to begin again, or put the file back as it was",
                )
        return stages

    def hash_of(self, name: str) -> str:
        """Return a hash of the names and contents of a stage's files; "" if there are none."""
        path, found = self.folder / name, hashlib.sha256()
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        if not all(f.exists() for f in files) or not files:
            return ""
        for file in files:
            found.update(str(file.relative_to(self.folder)).encode())
            found.update(hashlib.sha256(file.read_bytes()).digest())
        return found.hexdigest()

    def run(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the output of stage ``name``, made by ``make(path)`` unless it is finished.

        A stage that was interrupted begins again.
        """
        path = self.folder / name
        if name not in self.done:
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            make(path)
            self.finished(name, time.monotonic() - began)
        return path

    def finished(self, name: str, seconds: float) -> None:
        """Record that ``name`` is there."""
        self.done[name] = {"sha256": self.hash_of(name), "seconds": round(seconds, 1)}
        write_json(self.folder / LEDGER, {"configuration": self.configuration, "stages": self.done})
