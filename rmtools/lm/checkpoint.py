"""A value model on disk: weights, head, tokenizer, and ``rmtools.json`` with what it was trained for.

The file remembers policy, task, step settings and tilt; a checkpoint that lacks its head or any of these is
refused, not guessed.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from rmtools.errors import UserError
from rmtools.files import read_json, write_json
from rmtools.lm.policy import Policy, best_device, load_tokenizer, not_a_model
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.value import ValueModel
from rmtools.lm.weights import adapted, require_head, require_whole, unreadable_weights
from rmtools.particles.tilt import Tilt
from rmtools.typed import wrong_types

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
)
"""What tells which model a folder holds: a new one leaves none of the old one's behind."""


@dataclass(frozen=True)
class CheckpointSettings:
    """What ``rmtools.json`` holds.

    Attributes
    ----------
    policy : str
        Folder (relative to the checkpoint) or hub name of the policy it was trained for.
    policy_fingerprint : str
        Of the policy's weights, to notice when another one is sampled.
    base, base_revision, base_fingerprint : str
        The same of the weights under the adapter and the head; the policy's own in most cases.
    task, horizon : str, int
        The task it was trained on.
    steps : StepSettings
    floor : float
        Of the tilt.
    temperature : float
        Of the policy's sampling.
    seed : int
        Of the head's initial weights: the untrained control is made again from it.
    base_rate : float
        Mean reward of the training rollouts: the constant control.
    training : dict
        Target, divergence, data fingerprint, versions: provenance only.
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

    def save(self, folder: Path, seen_from: Path | None = None) -> None:
        """Write ``rmtools.json`` into ``folder``; local models are named relative to where the checkpoint will be."""

        def named(model: str) -> str:
            if not model or not Path(model).is_dir():
                return model
            return os.path.relpath(Path(model).resolve(), (seen_from or folder).resolve())

        relative = replace(self, policy=named(self.policy), base=named(self.base))
        write_json(Path(folder) / SETTINGS_FILE, {"schema_version": SCHEMA_VERSION, **asdict(relative)})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the settings of the checkpoint ``folder``.

        Raises
        ------
        UserError
            If the folder is missing or empty, or a setting is missing, unknown, or of another schema version.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(
                f"there is no checkpoint at {folder}: no such folder",
                "train one with recipes/train_prm.py, or name another with --model",
            )
        if not any(folder.iterdir()):
            raise UserError(
                f"the checkpoint {folder} is empty", "train it again, or name another with --model"
            )
        if not (folder / SETTINGS_FILE).exists():
            raise UserError(
                f"the checkpoint {folder} has no {SETTINGS_FILE}: its tilt and step settings are unknown, "
                "and guessed ones would give other values",
                "use a checkpoint written by recipes/train_prm.py",
            )
        values = read_json(folder / SETTINGS_FILE, "the checkpoint's settings")
        return cls._parse(values, folder)

    @classmethod
    def _parse(cls, values: Any, folder: Path) -> Self:
        names = [f for f in cls.__dataclass_fields__ if f != "training"]
        if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
            version = values.get("schema_version") if isinstance(values, dict) else None
            raise UserError(
                f"{folder / SETTINGS_FILE} has schema version {version!r}, this release reads {SCHEMA_VERSION}",
                "train the checkpoint again with this release",
            )
        missing = [n for n in names if n not in values]
        if missing:
            raise UserError(
                f"the checkpoint {folder} lacks {', '.join(missing)} in {SETTINGS_FILE}",
                "use a checkpoint written by recipes/train_prm.py",
            )
        unknown = sorted(set(values) - set(cls.__dataclass_fields__) - {"schema_version"})
        if unknown:
            raise UserError(
                f"{folder / SETTINGS_FILE} has unknown keys: {', '.join(unknown)}",
                "remove them, or read it with the release that wrote it",
            )
        fields = {n: values[n] for n in names} | {"training": values.get("training", {})}
        wrong = wrong_types(fields, cls)
        if not wrong and not 0 <= fields["base_rate"] <= 1:
            wrong = [f"base_rate must be in [0, 1], got {fields['base_rate']}"]
        if wrong:
            raise UserError(
                f"{folder / SETTINGS_FILE}: {wrong[0]}", "use a checkpoint written by recipes/train_prm.py"
            )
        fields["steps"] = StepSettings.from_dict(fields["steps"])
        Tilt(fields["floor"])
        for name in ("policy", "base"):
            local = folder / fields[name]
            if fields[name] and not Path(fields[name]).is_absolute() and local.is_dir():
                fields[name] = os.path.relpath(local)
        return cls(**fields)


def load_value_model(
    folder: str | Path,
    *,
    untrained: bool = False,
    device: torch.device | None = None,
    beside: Policy | None = None,
) -> tuple[ValueModel, CheckpointSettings]:
    """Load a checkpoint written by rmtools: a LoRA adapter with its head, or a whole model.

    Parameters
    ----------
    folder : path
    untrained : bool
        Return the model as it was before its first update, made again from the saved seed: the control.
    device : torch.device, optional
        Default: CUDA where there is one.
    beside : Policy, optional
        Where the checkpoint is an adapter on this policy's own weights, these are in memory once, and at the policy's
        precision; the adapter then stays apart instead of being merged (values agree to rounding).

    Raises
    ------
    UserError
        See :meth:`CheckpointSettings.load`; also if the weights lack the head or cannot be read.
    """
    folder = Path(folder)
    settings = CheckpointSettings.load(folder)
    require_head(folder)
    require_same_base(folder, settings)
    with unreadable_weights(folder):
        tokenizer = load_tokenizer(folder)
    steps = StepTokenizer(tokenizer, settings.steps)
    if untrained:
        model = new_token_classifier(settings.base, settings.seed, revision=settings.base_revision)
    elif beside is not None and on_weights_of(beside, folder, settings):
        return ValueModel(
            _beside(folder, settings, beside), steps, Tilt(settings.floor), str(folder)
        ), settings
    else:
        model = _trained(folder, settings)
    model = model.to(device or best_device())  # type: ignore[arg-type]
    name = f"{folder} (untrained head)" if untrained else str(folder)
    return ValueModel(model, steps, Tilt(settings.floor), name), settings


def on_weights_of(policy: Policy, folder: Path, settings: CheckpointSettings) -> bool:
    """Whether the checkpoint is an adapter on the weights of ``policy`` that leaves them as they are."""
    adapter = folder / "adapter_config.json"
    if not adapter.exists() or not settings.base_fingerprint:
        return False
    # Trained biases are loaded in the place of the base's: the policy would be another.
    found = read_json(adapter, "the adapter's configuration")
    if not isinstance(found, dict) or found.get("bias", "none") != "none":
        return False
    return fingerprint(policy.name) == settings.base_fingerprint


def _beside(folder: Path, settings: CheckpointSettings, policy: Policy) -> "PreTrainedModel":
    """Return the adapted classifier whose base weights are the policy's own tensors."""
    base = new_token_classifier(
        settings.base, settings.seed, revision=settings.base_revision, dtype=policy.model.dtype
    ).to(policy.device)  # type: ignore[arg-type]
    share_weights(base.base_model, policy.model.base_model)
    return adapted(base, folder).eval()


def share_weights(model: torch.nn.Module, owner: torch.nn.Module) -> None:
    """Put the tensors of ``owner`` in the place of equal ones of the same name in ``model``."""
    theirs = dict(owner.named_parameters())
    for prefix, module in model.named_modules():
        for name, own in module._parameters.items():
            other = theirs.get(f"{prefix}.{name}" if prefix else name)
            if own is not None and other is not None and other.dtype == own.dtype and torch.equal(own, other):
                module._parameters[name] = other


def _trained(folder: Path, settings: CheckpointSettings) -> "PreTrainedModel":
    if (folder / "adapter_config.json").exists():
        base = new_token_classifier(settings.base, settings.seed, revision=settings.base_revision)
        model = adapted(base, folder)
        try:
            return model.merge_and_unload()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise UserError(
                f"the adapter in {folder} cannot be merged: {str(error).splitlines()[0]}",
                "train one that can, such as LoRA without biases of its own",
            ) from error
    from transformers import AutoModelForTokenClassification

    with unreadable_weights(folder):
        model, loading = AutoModelForTokenClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    require_whole(folder, loading["missing_keys"], loading["unexpected_keys"], model)
    model.score = float32_head(model.score)
    return model


class Float32Head(torch.nn.Linear):
    """A linear head that computes in fp32 whatever the precision around it: logits decide log values near the floor."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the logits in fp32."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return torch.nn.functional.linear(input.float(), self.weight.float(), bias)


def classifier_config(model: str, revision: str = "") -> Any:
    """Return the configuration of ``model`` for a two-label classifier without dropout.

    transformers falls back to a dropout of .1 before the head where a configuration names none: it would perturb the
    bootstrap target as well as the prediction.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, revision=revision or "main", num_labels=2)
    config.id2label, config.label2id = {0: "wrong", 1: "right"}, {"wrong": 0, "right": 1}
    config.classifier_dropout = 0.0
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def new_token_classifier(model: str, seed: int, *, revision: str = "", **options: Any) -> "PreTrainedModel":
    """Return the weights of ``model`` under a two-label fp32 head drawn with ``seed``, dropout off.

    Parameters
    ----------
    model : str
        Folder or hub name.
    seed : int
        Of the head's weights.
    revision : str
        Of a hub model; its newest by default.
    **options
        Of ``from_pretrained``: ``dtype``, ``quantization_config``.

    Raises
    ------
    UserError
        If there is no model, or it has no head called ``score``.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForTokenClassification

    with quiet_new_head(), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            config = classifier_config(model, revision)
            # fp32 unless asked otherwise: transformers would take the precision the weights are stored in.
            found = AutoModelForTokenClassification.from_pretrained(
                model, config=config, revision=revision or "main", **{"dtype": torch.float32, **options}
            )
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise not_a_model(model, error) from error
    if not isinstance(getattr(found, "score", None), torch.nn.Linear):
        raise UserError(
            f"the token classifier of {model} ({type(found).__name__}) has no linear head called score",
            "use a causal language model whose transformers class has one, such as Llama, Qwen or Mistral",
        )
    found.score = float32_head(found.score)
    return found


def float32_head(head: torch.nn.Linear) -> Float32Head:
    """Return the same weights, kept and used in fp32."""
    new = Float32Head(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    new.load_state_dict({n: p.float() for n, p in head.state_dict().items()}, assign=True)
    return new


@contextlib.contextmanager
def quiet_new_head() -> Iterator[None]:
    """Silence the notice that the head is newly initialised: here it is meant to be."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def require_same_base(folder: Path, settings: CheckpointSettings) -> None:
    """Raise ``UserError`` where the model under an adapter is not the one it was trained on."""
    if not (folder / "adapter_config.json").exists():
        return
    found = fingerprint(settings.base)
    if found and settings.base_fingerprint and found != settings.base_fingerprint:
        raise UserError(
            f"the model at {settings.base} is not the one that the adapter {folder} was trained on (its weights differ): "
            "it would give other values",
            "train the checkpoint again on this model, or put the old one back",
        )


def fingerprint(model: str | Path) -> str:
    """Return what identifies a model: a short hash of a local one's weights, the commit of one from the hub.

    "" where neither is known: a folder without weights, a hub model that is not in the cache.
    """
    import hashlib

    if not Path(model).is_dir():
        return hub_commit(str(model))
    digest = hashlib.sha256()
    files = sorted(Path(model).glob("*.safetensors"))
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16] if files else ""


def hub_commit(model: str) -> str:
    """Return the commit of the newest cached revision of a hub model, "" where there is none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return ""
    return Path(found).parent.name if isinstance(found, str) else ""
