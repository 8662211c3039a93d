"""Resume a training from its newest intact checkpoint, and keep the output folder to one training."""

import contextlib
import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from rmtools.errors import UserError
from rmtools.files import claim_folder, read_json
from rmtools.jobs.lock import PARTIAL, held, remove
from rmtools.jobs.processes import this_process
from rmtools.lm.checkpoint import SETTINGS_FILE, CheckpointSettings
from rmtools.training.target_network import TARGET_NETWORK_FILE

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
NEEDED_TO_RESUME = (STATE_FILE, "optimizer.pt", "scheduler.pt", SETTINGS_FILE)
# FSDP and DeepSpeed write others instead of optimizer.pt.
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")
WEIGHTS = ("*.safetensors", "pytorch_model*", "global_step*")
CHECKPOINTS = "checkpoint-[0-9]*"
UNFINISHED = ".new.*"


def checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints in ``out``, oldest first; other folders with similar names are ignored."""
    return sorted((p for p in out.glob(CHECKPOINTS) if _step(p) >= 0), key=_step)


def _step(checkpoint: Path) -> int:
    """Return the optimiser step in a checkpoint's name, -1 if it has none."""
    step = checkpoint.name.removeprefix("checkpoint-")
    return int(step) if step.isdigit() else -1


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint if it exists, the file first without which it is not intact."""
    remove(folder / STATE_FILE)
    remove(folder)


def remove_checkpoints(out: Path, resumed: str | None = None) -> None:
    """Remove the checkpoints after the ``resumed`` one, or all of them."""
    after = -1 if resumed is None else _step(Path(resumed).resolve())
    for folder in checkpoints(out):
        if _step(folder) > after:
            remove_checkpoint(folder)


class PruneCheckpoints(TrainerCallback):
    """Run :func:`remove_checkpoints` after the first optimiser step, when the training is known to work.

    A later resume must not find the checkpoints of what this training replaces.
    """

    def __init__(self, out: Path, resumed: str | None) -> None:
        self.out, self.resumed, self.done = out, resumed, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the checkpoints, before the first new one is written."""
        if not self.done and args.should_save:
            remove_checkpoints(self.out, self.resumed)
        self.done = True


def claim_output(out: Path, resume: str | None, overwrite: bool) -> Path:
    """Create or accept the output folder of a training.

    Raises ``UserError`` if it holds an earlier training that is neither resumed nor replaced, or something else, or
    cannot be written.
    """
    ours = {PARTIAL, *(p.name for p in out.glob(UNFINISHED))}
    if not out.is_dir() or any(p.name not in ours for p in out.iterdir()):
        claim_folder(out, SETTINGS_FILE, CHECKPOINTS)
    resumes = resume is not None and out.resolve() in Path(resume).resolve().parents
    if resumes and overwrite:
        raise UserError(
            f"resume_from_checkpoint continues the training in {out}, overwrite_output_dir would remove it",
            "give one of them",
        )
    there = [p.name for p in (out / SETTINGS_FILE, *checkpoints(out)) if p.exists()]
    if there and not resumes and not overwrite:
        raise UserError(
            f"{out} holds an earlier training ({', '.join(there[:3])})",
            "choose another output_dir; to continue it (it needs a checkpoint-<n>) set resume_from_checkpoint to last, to "
            "replace it overwrite_output_dir to true",
        )
    return out


@contextlib.contextmanager
def held_output(out: Path, resume: str | None = None, overwrite: bool = False) -> Iterator[None]:
    """Hold the output folder while training; the main process does it for all.

    Raises ``UserError`` if another training holds it, or wrote to it since it was claimed.
    """
    process = this_process()
    if not process.main:
        yield
        return
    with held(out, process, "training"):
        claim_output(out, resume, overwrite)
        for left in out.glob(UNFINISHED):  # by a process that was killed while it saved
            remove(left)
        yield


def require_outside(out: Path, inputs: Sequence[str]) -> None:
    """Raise ``UserError`` if an input lies in the output folder, or is that folder."""
    for name in inputs:
        place = Path(name).resolve()
        if name and place.exists() and out.resolve() in (place, *place.parents):
            raise UserError(
                f"{name} lies in output_dir {out}, where it may be replaced", "choose another output_dir"
            )


def checkpoint_to_resume(named: str | None, out: Path, needed: Sequence[str] = ()) -> str | None:
    """Return the checkpoint folder to resume from; ``true`` or ``last`` is the newest intact one in ``out``.

    ``needed`` are files that this training needs beside those of every checkpoint. Raises ``UserError`` if there is none,
    or the named one is damaged.
    """
    if not named or named.lower() == "false":
        return None
    found = checkpoints(out)[::-1] if named.lower() in ("true", "last") else [Path(named)]
    why = ""
    for folder in found:
        why = _damage(folder, needed)
        if not why:
            return str(folder)
        if len(found) > 1:
            logger.warning("%s is passed over: %s", folder, why)
    raise UserError(
        f"there is no intact checkpoint to resume from at {found[0] if len(found) == 1 else out}"
        + (f": {why}" if why else ""),
        "name another checkpoint-<n> folder (save_strategy: steps writes them), or leave resume_from_checkpoint out "
        "to start again",
    )


def _damage(folder: Path, needed: Sequence[str]) -> str:
    """Return what is missing from a checkpoint or damaged in it; "" if it is intact."""
    for name in (*NEEDED_TO_RESUME, *needed):
        if not any(any(folder.glob(n)) for n in (OPTIMIZERS if name in OPTIMIZERS else (name,))):
            return f"it has no {name}"
    if not any(p.name != TARGET_NETWORK_FILE for pattern in WEIGHTS for p in folder.glob(pattern)):
        return "it has no weights"
    try:
        state = read_json(folder / STATE_FILE, STATE_FILE)
        if not isinstance(state, dict) or type(state.get("global_step")) is not int:
            return f"{STATE_FILE} names no global_step"
        CheckpointSettings.load(folder)
    except UserError as error:
        return error.fact
    tensors = sorted(p for p in folder.iterdir() if p.suffix in (".pt", ".pth", ".bin", ".safetensors"))
    return next((f"{p.name} is damaged" for p in tensors if not _is_whole(p)), "")


def _is_whole(path: Path) -> bool:
    """Return whether a file of tensors can be read; PyTorch's zip archives are checked byte by byte."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return True
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile, SafetensorError):
        return False


def require_same_training(resumed: str, settings: CheckpointSettings) -> None:
    """Raise ``UserError`` if a checkpoint was trained with other arguments, rows or weights than ``settings``.

    Names that only one of them records are ignored: another release of transformers has other arguments.
    """
    there, now = CheckpointSettings.load(resumed).training, settings.training
    one, two = there.get("configuration"), now["configuration"]
    if not isinstance(one, dict):
        raise UserError(
            f"{resumed} does not record its resolved configuration: an older release wrote it",
            "resume it with rmtools 0.1.0, or start again without resume_from_checkpoint",
        )
    if there.get("configuration_hash") == now["configuration_hash"]:
        return
    differing = [f"{k} ({one[k]} there, {two[k]} now)" for k in one if k in two and one[k] != two[k]]
    if differing:
        own = any(text.startswith("floor (") for text in differing)
        floor = (
            f" (floor {one['floor']}: where none is given, it is chosen from the success rate)" if own else ""
        )
        raise UserError(
            f"{resumed} belongs to another training: {', '.join(differing)}",
            f"resume with the same arguments and data{floor}, or start again without resume_from_checkpoint",
        )
