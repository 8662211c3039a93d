"""A value model on disk: weights, head, tokenizer, and ``rmtools.json`` with what it was trained for.

The file holds policy, task, step settings and tilt. A checkpoint that lacks its head or any of these is refused, not
guessed.
"""

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import torch

from rmtools.codec import check_ranges, load_json, save_json
from rmtools.errors import UserError
from rmtools.files import read_json
from rmtools.lm.calibration_file import (
    CALIBRATION_FILE,
    read_calibration,
    require_weights,
    under_map,
    with_map,
)
from rmtools.lm.classifier import adapted, merged, new_token_classifier, require_head, saved_classifier
from rmtools.lm.hub import COMMIT, PICKLED, cached_commit, find_model, split_name, with_commit
from rmtools.lm.policy import Policy, load_tokenizer
from rmtools.lm.precision import (
    SPREAD,
    Dtype,
    Placement,
    Where,
    best_device,
    device_of,
    inputs_on,
    on_device,
    quantisation,
    require_quantiser,
    weights_in,
)
from rmtools.lm.prompt_format import RAW, PromptFormat
from rmtools.lm.protocol import Scorer
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.value import ValueModel
from rmtools.particles.tilt import Tilt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETTINGS_FILE = "rmtools.json"
SCHEMA_VERSION = 2
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "config.json",
    "export.json",
    CALIBRATION_FILE,
)
"""The files that say which model a folder holds: saving another one removes those it does not write."""
RETRAIN = "use a checkpoint written by `rmtools train` with this release"


@dataclass(frozen=True)
class CheckpointSettings:
    """What ``rmtools.json`` holds.

    Attributes
    ----------
    policy : str
        Folder (relative to the checkpoint) of the policy it was trained for, or its hub name with commit (``org/name@commit``).
    policy_fingerprint : str
        Of the policy's weights, to notice when another one is sampled; the commit of a hub model.
    base, base_revision, base_fingerprint : str
        The weights under the adapter and the head (in most cases the policy's own): folder or hub name, commit of a hub
        model, fingerprint.
    task, horizon : str, int
        The task it was trained on.
    steps : StepSettings
    floor : float
        Of the tilt.
    temperature, top_k, top_p, min_p : float, int, float, float
        Of the policy's sampling.
    end_ids : list of int
        Tokens that end a solution beside the tokenizer's own.
    seed : int
        Of the head's initial weights: the untrained control is made again from it.
    base_rate : float
        Mean reward of the training rollouts: the constant control.
    training : dict
        Target, divergence, data fingerprint, versions: provenance only.
    prompt_format : PromptFormat
        How the prompts it was trained on were rendered.
    base_quantization : dict
        How the base's weights were quantised for the training: the adapter belongs on such weights. {} if they were not.
    """

    policy: str
    policy_fingerprint: str
    base: str
    base_revision: str
    base_fingerprint: str
    task: str
    horizon: int
    steps: StepSettings
    floor: float
    temperature: float
    seed: int
    base_rate: float
    training: dict[str, Any] = field(default_factory=dict)
    prompt_format: PromptFormat = RAW
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    end_ids: list[int] = field(default_factory=list)
    base_quantization: dict[str, Any] = field(default_factory=dict)

    @property
    def law(self) -> SamplingLaw:
        """The law of the policy that it was trained for."""
        return SamplingLaw(self.temperature, self.top_k, self.top_p, self.min_p)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            horizon=(self.horizon == self.steps.max_steps, f"steps.max_steps, {self.steps.max_steps}"),
            temperature=(0 < self.temperature < math.inf, "positive and finite"),
            seed=(0 <= self.seed < 2**32, "at least 0 and below 2^32"),
            base_rate=(0 <= self.base_rate <= 1, "in [0, 1]"),
        )
        Tilt(self.floor)

    def save(self, folder: Path, seen_from: Path | None = None) -> None:
        """Write ``rmtools.json`` into ``folder``; local models are named relative to where the checkpoint will be."""

        def named(model: str) -> str:
            if not model or not Path(model).is_dir():
                return model
            return os.path.relpath(Path(model).resolve(), (seen_from or folder).resolve())

        relative = replace(self, policy=named(self.policy), base=named(self.base))
        save_json(Path(folder) / SETTINGS_FILE, relative, SCHEMA_VERSION)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the settings of the checkpoint ``folder``, which may be a hub name.

        A policy or base of the hub is the one of the commit it was trained with, whatever is newest there.

        Raises
        ------
        UserError
            If there is no such model, the folder is empty, or a setting is missing, unknown, out of range, or of another
            schema version.
        """
        folder = find_model(folder).folder
        file = folder / SETTINGS_FILE
        if not any(folder.iterdir()):
            raise UserError(f"the checkpoint {folder} is empty", "train it again, or name another checkpoint")
        if not file.exists():
            raise UserError(
                f"the checkpoint {folder} has no {SETTINGS_FILE}: its tilt and step settings are unknown, "
                "and guessed ones would give other values",
                RETRAIN,
            )
        found = load_json(cls, file, "the checkpoint's settings", SCHEMA_VERSION, RETRAIN)
        _require_quantisation(folder, found)
        policy, base = _from_here(folder, found.policy), _from_here(folder, found.base)
        policy = with_commit(policy, found.policy_fingerprint)
        revision = found.base_revision or split_name(with_commit(base, found.base_fingerprint))[1]
        return replace(found, policy=policy, base=base, base_revision=revision)


def _require_quantisation(folder: Path, settings: CheckpointSettings) -> None:
    """Raise ``UserError`` for a checkpoint on a quantised base that does not say how it was quantised."""
    made = settings.training.get("configuration") or settings.training.get("arguments") or {}
    bits = [name for name in ("load_in_4bit", "load_in_8bit") if str(made.get(name)).lower() == "true"]
    if bits and not settings.base_quantization:
        raise UserError(
            f"the checkpoint {folder} was trained with {bits[0]}, and does not say how its base was quantised: on another "
            "base it would give other values",
            "train it again with this release",
        )


def _from_here(folder: Path, model: str) -> str:
    """Return a model's folder relative to the working directory, if it was named relative to the checkpoint."""
    local = folder / model
    if not model or Path(model).is_absolute() or not local.is_dir():
        return model
    return os.path.relpath(local.resolve())  # `..` of a linked folder is beside what it links to


def loadable_settings(checkpoint: str | Path, untrained: bool = False) -> CheckpointSettings:
    """Return the settings of a checkpoint; raise ``UserError`` if the base that it is loaded on cannot be found.

    An adapter is loaded on its base, and so is the untrained control of any checkpoint.
    """
    folder = find_model(checkpoint).folder
    settings = CheckpointSettings.load(folder)
    if untrained or (folder / "adapter_config.json").exists():
        require_recorded(checkpoint, "base", settings.base, settings.base_revision)
    return settings


def require_recorded(checkpoint: str | Path, role: str, model: str, revision: str = "") -> None:
    """Raise ``UserError`` unless the "policy" or "base" that a checkpoint records can be found."""
    try:
        find_model(model, revision)
    except UserError as error:
        other = ", or pass `policy`" if role == "policy" else ""
        other += " or `server`" if " at http" in model else ""
        raise UserError(
            f"{checkpoint}/{SETTINGS_FILE} records {model} as the {role} of the checkpoint, and it is not there: "
            f"{error.fact}",
            f"put it back there, or the checkpoint where it was{other}",
        ) from error


@overload
def load_value_model(
    folder: str | Path,
    *,
    untrained: bool = False,
    device: str | torch.device | None = None,
    beside: Policy | None = None,
    dtype: Dtype = "auto",
    prm_format: None = None,
    steps: StepSettings | None = None,
    floor: float = 0.01,
    root_value: str | float = "first-steps",
    aggregate: str = "last",
    trust_remote_code: bool = False,
) -> tuple[ValueModel, CheckpointSettings]: ...
@overload
def load_value_model(
    folder: str | Path,
    *,
    untrained: bool = False,
    device: str | torch.device | None = None,
    beside: Policy | None = None,
    dtype: Dtype = "auto",
    prm_format: str,
    steps: StepSettings | None = None,
    floor: float = 0.01,
    root_value: str | float = "first-steps",
    aggregate: str = "last",
    trust_remote_code: bool = False,
) -> tuple[Scorer, Any]: ...
def load_value_model(
    folder: str | Path,
    *,
    untrained: bool = False,
    device: str | torch.device | None = None,
    beside: Policy | None = None,
    dtype: Dtype = "auto",
    prm_format: str | None = None,
    steps: StepSettings | None = None,
    floor: float = 0.01,
    root_value: str | float = "first-steps",
    aggregate: str = "last",
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Load a checkpoint written by rmtools (a LoRA adapter with its head, or a whole model), or a published reward model.

    Returns the value model and its `CheckpointSettings`; None for a published model, which has none. A folder of
    `rmtools calibrate` gives a `CalibratedValue`.

    Parameters
    ----------
    folder : str or Path
        A checkpoint's folder, or its hub name (``org/name``, ``org/name@revision``).
    untrained : bool
        Return the model as it was before its first update, made again from the saved seed: the control.
    device : str or torch.device, optional
        Default: CUDA if available. "spread": the layers over all GPUs.
    beside : Policy, optional
        If the checkpoint is an adapter on this policy's own weights, hold these in memory once, at the policy's
        precision; the adapter then stays apart instead of being merged (values agree to rounding).
    dtype : {"auto", "float32", "bfloat16"}
        Precision of the weights; head and log values are fp32. auto: float32 on a CPU, that of the files on a GPU.
    prm_format : str, optional
        Of a published model: a key of `rmtools.lm.formats.conventions`, or a JSON file. Default: recognised from its files.
    steps, floor : StepSettings, float
        Of a published model: where the policy's steps end (default: at blank lines), and the floor of the tilt.
    root_value, aggregate : "first-steps" or float, {"last", "product", "min", "mean"}
        Of a published model: the value of a prompt alone where the format has none (the mean over the policy's first steps, or
        a probability), and what makes a prefix's p of the p of its steps.
    trust_remote_code : bool
        Run code that a published model brings along.

    Raises
    ------
    UserError
        See :meth:`CheckpointSettings.load`, for a published model `rmtools.lm.formats.load.load_published`; also if the weights
        lack the head or cannot be read, or the model under the adapter cannot be found, or is another one than in training.

    Examples
    --------
    >>> import rmtools as rm
    >>> value, settings = rm.load_value_model("prm")
    >>> settings.task, settings.steps.max_steps, value.tilt
    ('crossing', 3, Tilt(floor=0.05))
    """
    from rmtools.lm.formats.conventions import RECORDED
    from rmtools.lm.formats.load import Asked, load_published
    from rmtools.lm.formats.reading import Reading

    asked = Asked(prm_format, steps, Reading(floor, root_value, aggregate), trust_remote_code)
    calibration = None if untrained or prm_format == RECORDED else read_calibration(folder)
    inner, settings = folder, None
    if calibration is not None:
        inner, asked = under_map(folder, calibration, asked)
        require_weights(folder, weights_fingerprint(inner), calibration)
    if is_published(inner, asked.prm_format):
        value: Any = load_published(inner, asked, Placement(device_of(device), dtype))
    else:
        value, settings = _load_checkpoint(
            inner, untrained, device_of(device) or best_device(), beside, dtype
        )
    return (value if calibration is None else with_map(value, folder, calibration)), settings


def is_published(name: str | Path, prm_format: str | None = None) -> bool:
    """Return whether a model is loaded as a published one: it has no settings of a checkpoint, or another format is named."""
    from rmtools.lm.formats.conventions import OWN
    from rmtools.lm.formats.recognise import is_ours

    if prm_format is not None:
        return prm_format != OWN
    folder, calibration = find_model(name).folder, read_calibration(name)
    if calibration is not None:
        return calibration.reading is not None
    return not (folder / SETTINGS_FILE).exists() and not is_ours(folder)


def _load_checkpoint(
    folder: str | Path, untrained: bool, where: Where, beside: Policy | None, dtype: Dtype
) -> tuple[ValueModel, CheckpointSettings]:
    source = find_model(folder)
    folder, precision = source.folder, weights_in(dtype, inputs_on(where))
    settings = loadable_settings(source.pinned, untrained)
    require_head(folder)
    is_adapter = (folder / "adapter_config.json").exists()
    if is_adapter:
        _require_same_base(folder, settings)
    steps = StepTokenizer(load_tokenizer(folder), settings.steps, settings.end_ids)
    tilt = Tilt(settings.floor)

    def base(dtype: Any = precision) -> "PreTrainedModel":
        return _base(settings, where, dtype)

    if untrained:
        model = base()
    elif is_adapter and beside is not None and where != SPREAD and _leaves_weights(folder, settings, beside):
        shared = base(dtype=beside.model.dtype).to(beside.device)  # type: ignore[arg-type]
        _share_weights(shared.base_model, beside.model.base_model)
        value = ValueModel(adapted(shared, folder).eval(), steps, tilt, str(source))
        return _as_trained(value, settings), settings
    elif is_adapter:
        model = adapted(base(), folder)
        if not quantisation(model.config):  # merging would round the adapter to the quantised weights
            model = merged(model, folder)
    else:
        model = saved_classifier(folder, precision)
    model = on_device(model, where)
    kept = settings.training.get("began_from", {}).get("head") == "kept"
    name = f"{source} ({'before training' if kept else 'untrained head'})" if untrained else str(source)
    return _as_trained(ValueModel(model, steps, tilt, name), settings), settings


def _as_trained(value: ValueModel, settings: CheckpointSettings) -> ValueModel:
    value.prompt_format = settings.prompt_format
    value.solution_tokens = settings.training.get("solution_tokens")
    return value


def _base(settings: CheckpointSettings, device: Where, dtype: Any) -> "PreTrainedModel":
    """Return the model under an adapter as it was before training, quantised as it was then."""
    how = settings.base_quantization
    if how:
        require_quantiser(settings.base, how)
    options = {"dtype": dtype, **({"quantization_config": how} if how else {})}
    return new_token_classifier(
        settings.base, settings.seed, revision=settings.base_revision, device=device, **options
    )


def dequantised(folder: Path, settings: CheckpointSettings) -> "PreTrainedModel":
    """Return a checkpoint on a quantised base as a whole model in fp32: the base's weights as they were read in training."""
    base: Any = _base(settings, torch.device("cpu"), torch.float32)
    return merged(adapted(base.dequantize(), folder), folder)


def _require_same_base(folder: Path, settings: CheckpointSettings) -> None:
    """Raise ``UserError`` if the model under an adapter is not the one it was trained on."""
    found = fingerprint(with_commit(settings.base, settings.base_revision))
    if found and settings.base_fingerprint and found != settings.base_fingerprint:
        raise UserError(
            f"the model at {settings.base} is not the one that the adapter {folder} was trained on (its weights differ): "
            "it would give other values",
            "train the checkpoint again on this model, or put the old one back",
        )


def _leaves_weights(folder: Path, settings: CheckpointSettings, policy: Policy) -> bool:
    """Whether the checkpoint is an adapter on the weights of ``policy`` that leaves them as they are."""
    if not settings.base_fingerprint or settings.base_quantization:
        return False
    # Trained biases are loaded in the place of the base's: the policy would be another.
    found = read_json(folder / "adapter_config.json", "the adapter's configuration")
    if not isinstance(found, dict) or found.get("bias", "none") != "none":
        return False
    return has_fingerprint(policy.name, settings.base_fingerprint)


def _share_weights(model: torch.nn.Module, owner: torch.nn.Module) -> None:
    """Put the tensors of ``owner`` in the place of equal ones of the same name in ``model``."""
    theirs = dict(owner.named_parameters())
    for prefix, module in model.named_modules():
        for name, own in module._parameters.items():
            other = theirs.get(f"{prefix}.{name}" if prefix else name)
            if own is not None and other is not None and other.dtype == own.dtype and torch.equal(own, other):
                module._parameters[name] = other


def fingerprint(model: str | Path) -> str:
    """Return what identifies a model: a short hash of a folder's weights and map, the commit of a hub model.

    "" if neither is known: a folder without weights, a hub model that is named without its commit and not cached.
    """
    return _fingerprint(model, Path(model) / CALIBRATION_FILE)


def weights_fingerprint(model: str | Path) -> str:
    """Return a short hash of the weights alone, whatever map stands beside them; of a hub model those in the cache."""
    return _fingerprint(find_model(model).folder)


def _fingerprint(model: str | Path, *more: Path) -> str:
    import hashlib

    if not Path(model).is_dir():
        return cached_commit(str(model))
    digest = hashlib.sha256()
    files = sorted(Path(model).glob("*.safetensors")) or sorted(Path(model).glob(PICKLED))
    files += [file for file in more if file.exists()]
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16] if files else ""


def has_fingerprint(model: str, recorded: str) -> bool:
    """Return whether a model is the recorded one; a hub copy of a folder's weights is, too."""
    if fingerprint(model) == recorded:
        return True
    copy = not COMMIT.fullmatch(recorded) and COMMIT.fullmatch(split_name(model)[1])
    return bool(recorded and copy) and fingerprint(find_model(model).folder) == recorded
