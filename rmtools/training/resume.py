"""Where a training goes on: the newest whole checkpoint of the same training, and an output folder that is its own."""

import contextlib
import logging
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from rmtools.errors import UserError
from rmtools.files import claim_folder, read_json
from rmtools.jobs.lock import PARTIAL, held, remove
from rmtools.jobs.processes import this_process
from rmtools.lm.checkpoint import SETTINGS_FILE, CheckpointSettings
from rmtools.training.lora import HONOURED
from rmtools.training.target_network import FILE as TARGET_NETWORK_FILE
from rmtools.training.targets import BOOTSTRAPPED

if TYPE_CHECKING:
    from trl import ModelConfig

    from rmtools.training.config import PRMConfig

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
NEEDED_TO_RESUME = (STATE_FILE, "optimizer.pt", "scheduler.pt", SETTINGS_FILE)
# What FSDP and DeepSpeed write in the place of optimizer.pt.
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")
WEIGHTS = ("*.safetensors", "pytorch_model*", "global_step*")
CHECKPOINTS = "checkpoint-[0-9]*"
UNFINISHED = ".new.*"
# transformers' arguments that decide what is learned, beside those of the objective. How many steps there are is not among
# them: a training may be made longer.
DECISIVE = (
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "max_length",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "optim_args",
    "optim_target_modules",
    "ignore_data_skip",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)


def decisive(config: "PRMConfig", model: "ModelConfig | None" = None) -> dict[str, Any]:
    """Return the arguments that decide what is learned, as JSON values; what means the same is the same.

    Rows are those of one optimiser step over all processes.
    """
    found = {name: plain(getattr(config, name)) for name in DECISIVE}
    found["data_seed"] = config.seed if config.data_seed is None else config.data_seed
    found["lr_scheduler_kwargs"] = found["lr_scheduler_kwargs"] or None
    own = "bf16" if config.bf16 else "fp16" if config.fp16 else ""
    found["mixed_precision"] = own or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if config.divergence == "contrastive":  # it compares the rows of a forward pass with each other
        found["rows_per_pass"] = config.train_batch_size
    found["rows_per_step"] = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    return found if model is None else found | decisive_of_model(model)


def decisive_of_model(model: "ModelConfig") -> dict[str, Any]:
    """Return how the model is built: adapters where there are any, quantisation where there is any."""
    quantised = model.load_in_4bit or model.load_in_8bit
    unused: tuple[str, ...] = ("lora_", "use_rslora", "use_dora") if not model.use_peft else ()
    unused += () if quantised else ("bnb_", "use_bnb")
    names = [f.name for f in fields(model) if f.name in HONOURED[2:] and not f.name.startswith(unused)]
    found = {name: plain(getattr(model, name)) for name in names}
    if model.dtype in (None, "auto"):
        found["dtype"] = "float32"
    if found.get("lora_target_modules") in (None, [], ["all-linear"], "all-linear"):
        found["lora_target_modules"] = "all-linear"
    return {name: found[name] for name in found if model.use_peft or name != "lora_target_modules"}


def plain(value: Any) -> Any:
    """Return ``value`` as JSON keeps it: sets sorted, names of choices and types as text."""
    value = value.value if isinstance(value, Enum) else value
    if isinstance(value, set | tuple | list):
        return sorted(map(str, value))
    if value is None or isinstance(value, bool | int | float):
        return value
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else str(value)


def claim_output(out: Path, resume: str | None, overwrite: bool) -> Path:
    """Create or accept the output folder of a training.

    Raises
    ------
    UserError
        If it holds an earlier training, and neither is that one to go on nor is it to be replaced; if it holds something
        else, or cannot be written.
    """
    ours = {PARTIAL, *(p.name for p in out.glob(UNFINISHED))}
    if not out.is_dir() or any(p.name not in ours for p in out.iterdir()):
        claim_folder(out, SETTINGS_FILE, CHECKPOINTS)
    goes_on = resume is not None and out.resolve() in Path(resume).resolve().parents
    if goes_on and overwrite:
        raise UserError(
            f"resume_from_checkpoint goes on with the training in {out}, overwrite_output_dir would remove it",
            "give one of them",
        )
    there = [p.name for p in (out / SETTINGS_FILE, *checkpoints(out)) if p.exists()]
    if there and not goes_on and not overwrite:
        raise UserError(
            f"{out} holds an earlier training ({', '.join(there[:3])})",
            "choose another output_dir, --resume_from_checkpoint last to go on with it (it needs a checkpoint-<n>), or "
            "--overwrite_output_dir true to replace it",
        )
    return out


@contextlib.contextmanager
def held_output(out: Path, resume: str | None = None, overwrite: bool = False) -> Iterator[None]:
    """Hold the output folder while training; raises ``UserError`` where another training is at work in it, or was since."""
    process = this_process()
    if not process.main:
        yield
        return
    with held(out, process, "training"):
        claim_output(out, resume, overwrite)
        # Of a process that was killed while it saved: none is at work here now.
        for left in out.glob(UNFINISHED):
            remove(left)
        yield


class PruneCheckpoints(TrainerCallback):
    """Removes what a later resume must not find, once the first optimiser step has shown that the training works.

    Parameters
    ----------
    out : Path
    resumed : str, optional
        The checkpoint that is gone on from: those after it go. None: all of an earlier training.
    """

    def __init__(self, out: Path, resumed: str | None) -> None:
        self.out, self.resumed, self.done = out, resumed, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove them, before the first new checkpoint is written."""
        if not self.done and args.should_save:
            remove_checkpoints(self.out, self.resumed)
        self.done = True


def require_outside(out: Path, inputs: Sequence[str]) -> None:
    """Raise ``UserError`` where a model or data that is read lies in the output folder, or is that folder."""
    for name in inputs:
        place = Path(name).resolve()
        if name and place.exists() and out.resolve() in (place, *place.parents):
            raise UserError(
                f"{name} lies in output_dir {out}, where it may be replaced", "choose another output_dir"
            )


def remove_checkpoints(out: Path, resumed: str | None = None) -> None:
    """Remove checkpoints that a later resume must not find: an earlier training's, or those after the ``resumed`` one."""
    after = -1 if resumed is None else step_of(Path(resumed).resolve())
    for folder in checkpoints(out):
        if step_of(folder) > after:
            remove_checkpoint(folder)


def checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints below ``out``, the oldest first; other names that look like it are somebody's own."""
    return sorted((p for p in out.glob(CHECKPOINTS) if step_of(p) >= 0), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step of a checkpoint's name, -1 where it has none."""
    step = checkpoint.name.removeprefix("checkpoint-")
    return int(step) if step.isdigit() else -1


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, if it is there; what a kill leaves of it is not taken for a whole one."""
    remove(folder / STATE_FILE)
    remove(folder)


def checkpoint_to_resume(named: str | None, out: Path, needed: Sequence[str] = ()) -> str | None:
    """Return the checkpoint folder to go on from; ``true`` or ``last`` is the newest whole one below ``out``.

    Parameters
    ----------
    named : str, optional
    out : Path
    needed : sequence of str
        Files that this training needs beyond those of every checkpoint.

    Raises
    ------
    UserError
        If there is none, or the one that is named is damaged.
    """
    if not named or named.lower() == "false":
        return None
    if named.lower() not in ("true", "last"):
        found = [Path(named)]
    else:
        found = checkpoints(out)[::-1]
    why = ""
    for folder in found:
        why = damage(folder, needed)
        if not why:
            return str(folder)
        if len(found) > 1:
            logger.warning("%s is passed over: %s", folder, why)
    raise UserError(
        f"there is no whole checkpoint to resume from at {found[0] if len(found) == 1 else out}"
        + (f": {why}" if why else ""),
        "name another checkpoint-<n> folder (a run saves them with --save_strategy steps), or leave out "
        "--resume_from_checkpoint to start anew",
    )


def damage(folder: Path, needed: Sequence[str] = ()) -> str:
    """Return what is missing from a checkpoint, or damaged in it; "" where it is whole."""
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
    broken = [
        p
        for p in sorted(folder.iterdir())
        if p.suffix in (".pt", ".pth", ".bin", ".safetensors") and not is_whole(p)
    ]
    return f"{broken[0].name} is damaged" if broken else ""


def is_whole(path: Path) -> bool:
    """Return whether a file of tensors can be read; of PyTorch's zip archives every sum is checked."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return True
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, SafetensorError, pickle.UnpicklingError, EOFError):
        return False


def require_same_training(resumed: str, settings: CheckpointSettings) -> None:
    """Raise ``UserError`` where a checkpoint was trained otherwise than it is to go on."""
    there = CheckpointSettings.load(resumed)
    one, two = (described(s) for s in (there, settings))
    other = [
        f"{k} ({one.get(k)} there, {two.get(k)} now)"
        for k in dict.fromkeys([*one, *two])
        if one.get(k) != two.get(k)
    ]
    if other:
        raise UserError(
            f"{resumed} is of another training: {', '.join(other)}",
            "resume with the same arguments and data, or start anew without --resume_from_checkpoint",
        )


def described(settings: CheckpointSettings) -> dict[str, Any]:
    """Return what must be the same for a training to go on."""
    free = ("rollouts", "rollouts_seed", "versions", "global_steps", "arguments")
    target, loss = settings.training.get("target"), settings.training.get("divergence")
    unused = {
        "td_lambda": target != "td_lambda",
        "n_step": target != "n_step",
        "ema_decay": target not in BOOTSTRAPPED,
        "margin": loss != "pqm",
    }
    objective = {k: v for k, v in settings.training.items() if k not in free and not unused.get(k)}
    arguments = settings.training.get("arguments")
    own = {**objective, "floor": settings.floor, "base": settings.base_fingerprint}
    return own | (arguments if isinstance(arguments, dict) else {})
