"""Load a published PRM: the model with its own head from the files as they are published, without their code."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rmtools.errors import UserError
from rmtools.files import read_json
from rmtools.lm.classifier import (
    WRAPPED,
    adapted,
    good_label_first,
    head_name,
    merged,
    new_token_classifier,
    saved_classifier,
    swap_labels,
    unreadable_weights,
    without_notices,
)
from rmtools.lm.formats.conventions import RECORDED, Convention, convention
from rmtools.lm.formats.heads import TwoLogits, linear, read_labels
from rmtools.lm.formats.published import (
    PublishedPRM,
    ScaledRatio,
    StepProbabilities,
    VerbatimPRM,
)
from rmtools.lm.formats.reading import Reading
from rmtools.lm.formats.recognise import head_of, recognised, require_head_of, tensor_shapes
from rmtools.lm.formats.recorded import RecordedPRM, Recording
from rmtools.lm.formats.rendering import Rendering
from rmtools.lm.hub import FoundModel, find_model
from rmtools.lm.implicit import ImplicitValue
from rmtools.lm.policy import LOAD_ERRORS, Policy, load_tokenizer, require_vocabulary
from rmtools.lm.precision import Placement, best_device, device_of, inputs_on, on_device, weights_in
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.particles.tilt import Tilt

STEPS = StepSettings("\n\n", 64)
"""Where steps end if nothing says so: at blank lines."""


@dataclass(frozen=True)
class Asked:
    """What a user asks of a published PRM.

    Attributes
    ----------
    prm_format : str or None
        A key, or a JSON file (`rmtools.lm.formats.conventions`); None: recognised from the files.
    steps : StepSettings or None
        Of the policy.
    reading : Reading
    trust_remote_code : bool
        Whether code that the model's repository brings along is run.
    """

    prm_format: str | None = None
    steps: StepSettings | None = None
    reading: Reading = field(default_factory=Reading)
    trust_remote_code: bool = False


def load_published(
    name: str | Path, asked: Asked | None = None, placement: Placement | None = None
) -> "PublishedPRM | VerbatimPRM | RecordedPRM":
    """Load a published PRM.

    Parameters
    ----------
    name : str or Path
        A folder, ``org/name`` or ``org/name@revision``; with ``prm_format`` recorded a file of recorded scores.
    asked : Asked, optional
    placement : Placement, optional
        Device and precision; default: CUDA if available, the precision of the files there.

    Raises
    ------
    UserError
        If there is no such model, its format is not known or ambiguous, its head is another than the configuration or the
        format says, the tag is not one token, or labels do not differ in their first token.
    """
    asked, placement = asked or Asked(), placement or Placement()
    if asked.prm_format == RECORDED:
        return RecordedPRM(Recording.load(name), asked.steps or STEPS, asked.reading)
    source, how, told_by, steps = _read(name, asked)
    if how.verbatim:
        model = _with_head(source, how, asked, placement)
        verbatim = VerbatimPRM(model, steps, asked.reading, str(source), how, told_by)
        verbatim.source = source.pinned
        return verbatim
    rendering = Rendering(how, steps, str(source))
    if how.head == "ratio":
        inner: Any = _ratio(source, how, steps, placement)
    elif how.head == "labels":
        good, bad = rendering.label_ids()
        model = read_labels(_language_model(source, placement, asked), good, bad)
        inner = StepProbabilities(model, steps, str(source), branches_only=bool(rendering.verdict))
    else:
        inner = StepProbabilities(_with_head(source, how, asked, placement), steps, str(source))
    found = PublishedPRM(inner, rendering, asked.reading, str(source), told_by)
    _require_embeddings(found)
    found.source = source.pinned
    return found


def _read(name: str | Path, asked: Asked) -> tuple[FoundModel, Convention, str, StepTokenizer]:
    """Return a model's files, its convention, what tells it, and its tokenizer."""
    source = find_model(name)
    if asked.prm_format is None:
        key, told_by = recognised(source)
        how = convention(key)
    else:
        how, told_by = convention(asked.prm_format), "it was named"
    return source, how, told_by, StepTokenizer(load_tokenizer(source.folder), asked.steps or STEPS)


@dataclass(frozen=True)
class Unloaded:
    """How a published PRM is read, without its weights."""

    convention: Convention
    steps: StepTokenizer
    rendering: Rendering
    reading: Reading
    told_by: str


def unloaded(name: str | Path, asked: Asked) -> Unloaded:
    """Return how a published PRM is read; raise ``UserError`` if its weights must be here for that."""
    if asked.prm_format == RECORDED:
        raise UserError("recorded scores are in a file, on no server", "leave `value_server` out")
    source, how, told_by, steps = _read(name, asked)
    if how.verbatim or how.head == "ratio":
        raise UserError(
            f"the format {how.key} of {source} is not read from a server's answers",
            "load it in this process: leave `value_server` out",
        )
    return Unloaded(how, steps, Rendering(how, steps, str(source)), asked.reading, told_by)


def _require_embeddings(value: PublishedPRM) -> None:
    """Raise ``UserError`` if the tokenizer or the tag has ids that the model has no embedding of."""
    steps, size = value.rendering.steps, value.model.config.get_text_config().vocab_size
    require_vocabulary(steps.tokenizer, value.model.config.get_text_config(), value.name)
    tag = value.rendering.tag_id
    if tag is not None and tag >= size:
        raise UserError(
            f"the tag {value.convention.tag!r} is the token {tag} of the tokenizer of {value.name}, and the model has {size} "
            "embeddings",
            "use the tokenizer that belongs to the model",
        )


def _with_head(source: FoundModel, how: Convention, asked: Asked, placement: Placement) -> Any:
    """Return a token classifier with the head that the files hold."""
    from transformers import AutoModelForTokenClassification

    where = device_of(placement.device) or best_device()
    dtype = weights_in(placement.dtype, inputs_on(where))
    if how.head == "classifier" and (source.folder / "adapter_config.json").exists():
        return on_device(_adapted(source, dtype), where)
    head = head_of(tensor_shapes(source.folder))
    require_head_of(source, how.key, how.head, head)
    if head.kind == "classifier":
        model = saved_classifier(source.folder, dtype)
        if good_label_first(source.folder):
            swap_labels(getattr(model, head_name(model)))
        return on_device(model, where)
    with unreadable_weights(source.folder, *LOAD_ERRORS), without_notices(), torch.random.fork_rng():
        model, loading = AutoModelForTokenClassification.from_pretrained(
            **_files(source, asked),
            dtype=dtype,
            num_labels=2,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            key_mapping={f"^{re.escape(WRAPPED)}": ""},  # of trl's models with a value head
        )
    lost = sorted(n for n in loading["missing_keys"] if not n.startswith(("score.", "classifier.")))
    if lost:
        raise UserError(
            f"the weights of {source} lack {', '.join(lost[:3])}: drawn at random they would give random values",
            "use the folder as it was saved, or load the hub model again",
        )
    layers = _layers(source, head.tensors)
    if layers[0].in_features != model.config.hidden_size:
        raise UserError(
            f"the head of {source} takes {layers[0].in_features} numbers, and its model gives {model.config.hidden_size}",
            "use the folder as it was saved, or correct its config.json",
        )
    model.score = TwoLogits(*layers)
    return on_device(model.eval(), where)


def _adapted(source: FoundModel, dtype: Any) -> Any:
    """Return a token classifier on the base that its adapter names, merged."""
    known = read_json(source.folder / "adapter_config.json", "the adapter's configuration")
    base = str(known.get("base_model_name_or_path") or "") if isinstance(known, dict) else ""
    if not base:
        raise UserError(
            f"the adapter {source} does not name its base", "merge it into its base, and save that"
        )
    classifier = new_token_classifier(base, 0, revision=str(known.get("revision") or ""), dtype=dtype)
    return merged(adapted(classifier, source.folder), source.folder)


def _files(source: FoundModel, asked: Asked) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that name the files; code is read from the hub, only where it is trusted."""
    if asked.trust_remote_code and source.commit:
        name: Any = source.name
        return {"pretrained_model_name_or_path": name, "revision": source.commit, "trust_remote_code": True}
    return {
        "pretrained_model_name_or_path": source.folder,
        "trust_remote_code": asked.trust_remote_code,
    }


def _layers(source: FoundModel, tensors: dict[str, tuple[int, ...]]) -> list[torch.nn.Linear]:
    """Return the linear layers of a head, in order."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in sorted(source.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                if name.removeprefix(WRAPPED) in tensors:
                    found[name.removeprefix(WRAPPED)] = weights.get_tensor(name)
    names = sorted(n.removesuffix("weight") for n in found if n.endswith("weight"))
    return [linear(found[f"{n}weight"], found.get(f"{n}bias")) for n in names]


def _language_model(source: FoundModel, placement: Placement, asked: Asked) -> Any:
    from transformers import AutoModelForCausalLM

    where = device_of(placement.device) or best_device()
    with unreadable_weights(source.folder, *LOAD_ERRORS), without_notices():
        found: Any = AutoModelForCausalLM.from_pretrained(
            **_files(source, asked),
            dtype=weights_in(placement.dtype, inputs_on(where)),
            output_loading_info=True,
        )
    model, loading = found
    if loading["missing_keys"]:
        raise UserError(
            f"the weights of {source} lack {', '.join(sorted(loading['missing_keys'])[:3])}: drawn at random they would give "
            "random values",
            "use the folder as it was saved, or load the hub model again",
        )
    return on_device(model.eval(), where)


def _ratio(source: FoundModel, how: Convention, steps: StepTokenizer, placement: Placement) -> ScaledRatio:
    """Return the scaled log ratio of a language model to the reference that the convention names."""
    if not how.reference:
        raise UserError(
            f"the format {how.key} is the ratio of {source} to a reference model, and none is named",
            'name it in a JSON file: {"key": "implicit", "reference": "org/name", "beta": 0.001}',
        )
    reference = find_model(how.reference)
    own = _language_model(source, placement, Asked())
    other = _language_model(reference, placement, Asked())
    its = StepTokenizer(load_tokenizer(reference.folder), steps.settings)
    value = ImplicitValue(
        Policy(own, steps, 1.0, str(source)), Policy(other, its, 1.0, str(reference)), Tilt(0.5)
    )
    value.steps = steps
    return ScaledRatio(value, how.beta)
