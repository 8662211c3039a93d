"""Which format a folder's files are of: from the architecture, the head's tensors, and the model's name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtools.errors import UserError
from rmtools.files import read_json
from rmtools.lm.classifier import AGAIN, WRAPPED
from rmtools.lm.formats.conventions import CONVENTIONS, JUDGE, OWN
from rmtools.lm.hub import FoundModel

OURS = {"wrong", "right"}  # the labels of a classifier trained here
CAUSAL = tuple(key for key, c in CONVENTIONS.items() if c.causal)
HOW = "name one with `prm_format`"


@dataclass(frozen=True)
class Head:
    """The head that a folder holds.

    Attributes
    ----------
    kind : str
        A kind of `Convention.head`, "" if the files hold none beside a language model's own.
    tensors : dict
        Their names and shapes.
    labels : int
        Outputs of the last layer; 0 without a head.
    """

    kind: str
    tensors: dict[str, tuple[int, ...]]
    labels: int


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a folder's tensors by name, () for those of files without a header of shapes.

    Raises ``UserError`` if a file of weights cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as weights:
                found |= {n: tuple(weights.get_slice(n).get_shape()) for n in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"the weights {file} cannot be read: {error}", AGAIN) from error
    for index in folder.glob("pytorch_model.bin.index.json"):
        listed = read_json(index, "the index of the weights")
        found |= dict.fromkeys(listed.get("weight_map", {}) if isinstance(listed, dict) else {}, ())
    return found


def head_of(shapes: Mapping[str, tuple[int, ...]]) -> Head:
    """Return the head among a model's tensors."""
    own = {n.removeprefix(WRAPPED): shape for n, shape in shapes.items()}
    layers = {n: s for n, s in own.items() if n.split(".")[0] in ("score", "classifier", "v_head")}
    if not layers:
        return Head("", {}, 0)
    weights = [n for n in layers if n.endswith("weight") and layers[n]]
    last = max(weights, default="")
    labels = layers[last][0] if last else 0
    if any(n.startswith("v_head.") for n in layers):
        return Head("scalar", layers, labels)
    return Head("mlp" if len(weights) > 1 else "classifier", layers, labels)


def format_of_head(head: Head) -> str:
    """Return the key of the format whose head this is, "" without one."""
    if head.kind == "mlp":
        return "qwen-prm" if head.labels == 2 and any(n.endswith("bias") for n in head.tensors) else "vgs"
    return {"scalar": "skywork", "classifier": "trl"}.get(head.kind, "")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a folder; raise ``UserError`` if it has none."""
    file = folder / "config.json"
    if not file.exists():
        raise UserError(
            f"no model can be loaded from {folder}: there is no config.json in it",
            "name a folder written by save_pretrained (config.json, weights, tokenizer), or a hub model as org/name",
        )
    found = read_json(file, "the model's configuration")
    return found if isinstance(found, dict) else {}


def promised(config: Mapping[str, Any]) -> str:
    """Return the kind of head that a configuration names, "" for a language model's own; "?" if it is not known."""
    name = str(next(iter(config.get("architectures") or ()), ""))
    for ending, kind in (
        ("ForTokenClassification", "classifier"),
        ("ForProcessRewardModel", "mlp"),
        ("ForClassifier", "mlp"),
        ("ForPrmModel", "scalar"),
        ("ForCausalLM", ""),
        ("LMHeadModel", ""),
    ):
        if name.endswith(ending):
            return kind
    return "?"


def recognised(source: FoundModel) -> tuple[str, str]:
    """Return the key of the format that a folder's files are of, and what tells it.

    Raises
    ------
    UserError
        If they are of no known format, or of several: the candidates are named. Also if they hold another head than their
        configuration names.
    """
    folder = source.folder
    if (folder / "rmtools.json").exists():
        return OWN, "its rmtools.json"
    config = read_config(folder)
    shapes = tensor_shapes(folder)
    head, kind = head_of(shapes), promised(config)
    architecture = str(next(iter(config.get("architectures") or ()), "none"))
    require_promised(source, architecture, kind, head)
    key = format_of_head(head)
    if head.kind == "scalar":
        return key, f"its tensors {_some(head)}"
    if head.kind == "mlp":
        return key, f"its tensors {_some(head)} with {head.labels} labels"
    if head.kind == "classifier":
        return key, f"its architecture {architecture} with {head.labels} labels"
    if kind == "":
        return _by_name(source, architecture)
    raise UserError(
        f"{source} is of no format that is known: architecture {architecture}, and no head of a reward model among its tensors",
        f"{HOW}: {', '.join(CONVENTIONS)}, {JUDGE}",
    )


def require_promised(source: FoundModel, architecture: str, kind: str, head: Head) -> None:
    """Raise ``UserError`` if the tensors are of another ``head`` than the ``kind`` that the configuration names."""
    if kind == "?" or kind == head.kind or (kind == "" and head.kind == "scalar"):
        return
    words = {
        "": "no head beside a language model's",
        "classifier": "a linear head",
        "mlp": "a head of two layers",
        "scalar": "a value head",
    }
    held = f"{words[head.kind]} ({_some(head)})" if head.tensors else words[""]
    raise UserError(
        f"the configuration of {source} names {architecture}, that is {words[kind]}, and its weights hold {held}",
        "use the folder as it was saved, or correct `architectures` in its config.json",
    )


def require_head_of(source: FoundModel, key: str, wanted: str, head: Head) -> None:
    """Raise ``UserError`` unless the ``head`` is what the format ``key`` reads, ``wanted``, with its number of labels."""
    if wanted in ("labels", "ratio"):
        return
    if head.kind != wanted:
        held = f"hold {_some(head)}" if head.tensors else "have no head of a reward model"
        fits = [k for k, c in CONVENTIONS.items() if c.head == head.kind or (not head.kind and c.causal)]
        raise UserError(
            f"{source} is not of the format {key}: its weights {held}",
            f"its head is that of: {', '.join(fits) or 'no known format'}; {HOW}",
        )
    allowed = {"trl": (2,), "qwen-prm": (2,), "skywork": (1,), "vgs": (1, 2, 3)}.get(key, (2,))
    if head.labels not in allowed:
        raise UserError(
            f"the head of {source} has {head.labels} label{'s' if head.labels != 1 else ''}, and the format {key} needs "
            f"{' or '.join(map(str, allowed))}",
            f"use another model, or {HOW}",
        )


def known_name(source: FoundModel) -> str:
    """Return the key of the format that a model of this name is known to be read in, "" if it is not known."""
    name = source.name.lower().rstrip("/")
    for key, c in CONVENTIONS.items():
        if name in c.published or (not source.commit and _ends_like(name, c.published)):
            return key
    return ""


def _by_name(source: FoundModel, architecture: str) -> tuple[str, str]:
    if key := known_name(source):
        return key, f"its architecture {architecture} and its name"
    raise UserError(
        f"{source} is a language model ({architecture}): its files do not say how it is read as a reward model",
        f"{HOW}: {', '.join(CAUSAL)} or {JUDGE}; or a JSON file of yours",
    )


def _ends_like(name: str, published: tuple[str, ...]) -> bool:
    return any(Path(name).name == p.rpartition("/")[2] for p in published)


def _some(head: Head) -> str:
    names = sorted(head.tensors)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def is_ours(folder: Path) -> bool:
    """Return whether a folder without rmtools.json is a checkpoint written here: a classifier of wrong and right, an adapter."""
    if (folder / "adapter_config.json").exists():
        return True
    if not (folder / "config.json").exists():
        return True  # what is refused is said as of a checkpoint
    labels = read_config(folder).get("id2label")
    return isinstance(labels, dict) and set(labels.values()) == OURS
