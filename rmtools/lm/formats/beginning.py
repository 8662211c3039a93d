"""What a training begins from: a language model, a value model trained here, or a published PRM; and whether its head is kept.

Read from the files alone, before the weights are loaded. `rmtools.lm.classifier.new_token_classifier` builds the model.
"""

from dataclasses import dataclass
from typing import Literal

from rmtools.lm.classifier import TWO_LAYERS
from rmtools.lm.formats.conventions import CONVENTIONS, OWN
from rmtools.lm.formats.recognise import (
    Head,
    format_of_head,
    head_of,
    known_name,
    promised,
    read_config,
    require_promised,
    tensor_shapes,
)
from rmtools.lm.hub import find_model
from rmtools.summary import counted

LANGUAGE_MODEL = "It begins from a language model: a new head is drawn."


@dataclass(frozen=True)
class Beginning:
    """What a training begins from.

    Attributes
    ----------
    format : str
        Key of the published format, ``rmtools`` for a value model trained here, "" for a language model.
    head : {"kept", "new"}
    sentence : str
        Both in words, with why a head is not kept and how the training reads prefixes.
    """

    format: str
    head: Literal["kept", "new"]
    sentence: str


def beginning(model: str, revision: str = "") -> Beginning:
    """Return what a training that starts from ``model`` begins from.

    Raises
    ------
    UserError
        If there is no such model, or its weights hold another head than its configuration names.
    """
    source = find_model(model, revision)
    if (source.folder / "rmtools.json").exists():
        return Beginning(OWN, "kept", "It begins from a value model trained here: its head is kept.")
    config, shapes = read_config(source.folder), tensor_shapes(source.folder)
    architecture, kind = str(next(iter(config.get("architectures") or ()), "none")), promised(config)
    head = head_of(shapes)
    if any(shapes.values()):
        require_promised(source, architecture, kind, head)
    elif kind == "classifier":  # weights without a header of shapes
        head = Head("classifier", {}, len(config.get("id2label") or (0, 1)))
    key = format_of_head(head) or known_name(source)
    return _published(key, architecture, head) if key else Beginning("", "new", LANGUAGE_MODEL)


def _published(key: str, architecture: str, head: Head) -> Beginning:
    begins = f"It begins from a published reward model (format {key}, architecture {architecture}): its"
    if _is_kept(head):
        how = "" if CONVENTIONS[key].verbatim else f", not as the format {key} renders them"
        return Beginning(
            key,
            "kept",
            f"{begins} head of two labels is kept. Training reads prompt and steps as the policy wrote them, each at its last "
            f"token{how}.",
        )
    layers = "two layers and " if head.kind == "mlp" else ""
    own = (
        f"head of {layers}{counted(head.labels, 'label')}"
        if head.kind
        else "values are read from label tokens"
    )
    if CONVENTIONS[key].head == "ratio":
        own = "values are the ratio of two language models"
    return Beginning(
        key,
        "new",
        f"{begins} {own}, and a value model needs a head of two labels; the weights under "
        "the head are kept, a new head is drawn.",
    )


def _is_kept(head: Head) -> bool:
    """Return whether a head has the two labels of a value model, in one layer or in two with biases."""
    if head.labels != 2:
        return False
    names = {n.partition(".")[2] for n in head.tensors}
    return head.kind == "classifier" or (head.kind == "mlp" and names == set(TWO_LAYERS))
