"""What a scorer must have and give, checked where a scorer and its values enter: an error names the scorer and the place."""

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.prompt_format import PromptFormat
from rmtools.lm.protocol import Scorer, TreeValues
from rmtools.lm.steps import StepTokenizer
from rmtools.lm.value import BROKEN
from rmtools.particles.tilt import Tilt

AUDITED = ("steps", "tilt", "name", "score")
SAMPLED = ("steps", "tilt", "name", "start", "advance")
# How the methods are called, and what they return.
CALLS = {
    "score": ("trees", "progress=None"),
    "start": ("prompts",),
    "advance": ("state", "tokens"),
}
RETURNS = {
    "score": "a list with one TreeValues per tree",
    "start": "the log values as a torch.Tensor, one per prompt, and the state",
    "advance": "the log values as a torch.Tensor, one per prefix, and the state",
}
KINDS: Mapping[str, tuple[type, str]] = {
    "steps": (StepTokenizer, "policy.steps of a policy from rmtools.load_policy, say"),
    "tilt": (Tilt, "rmtools.Tilt(0.05), say"),
    "name": (str, "a text that reports show"),
}


def require_scorer(model: object, attributes: Sequence[str], parameter: str = "model") -> None:
    """Raise ``UserError`` unless ``model``, given as ``parameter``, has the ``attributes`` of a Scorer, of the right kinds.

    The ``attributes`` are `AUDITED` or `SAMPLED`; methods must take the arguments they are called with.
    """
    if missing := [name for name in attributes if not hasattr(model, name)]:
        raise UserError(
            f"`{parameter}` must be a checkpoint or a Scorer, got {type(model).__name__}, which has no {', '.join(missing)}",
            "name the folder of a checkpoint; rmtools.Scorer says what a Scorer has",
        )
    if isinstance(model, type):
        raise UserError(
            f"`{parameter}` must be a Scorer, got the class {model.__name__}",
            f"pass an object: {model.__name__}(...)",
        )
    for name in attributes:
        found, (kind, example) = getattr(model, name), KINDS.get(name, (object, ""))
        if not isinstance(found, kind):
            raise UserError(
                f"{name_of(model)}.{name} must be a {kind.__name__}, got {type(found).__name__}",
                f"make it {example}",
            )
        if name in CALLS:
            _require_call(name_of(model), name, found)
    form = getattr(model, "prompt_format", None)
    if not isinstance(form, PromptFormat | None):
        raise UserError(
            f"{name_of(model)}.prompt_format must be a PromptFormat, got {form!r}",
            "leave it out: prompts are then taken as they stand; or use the prompt_format of a checkpoint's settings",
        )


def _require_call(scorer: str, name: str, method: Any) -> None:
    """Raise ``UserError`` if ``method`` cannot be called as the protocol calls it."""
    example = f"write def {name}(self, {', '.join(CALLS[name])}), which returns {RETURNS[name]}"
    if not callable(method):
        raise UserError(f"{scorer}.{name} must be a method, got {type(method).__name__}", example)
    positional = [x for x in CALLS[name] if "=" not in x]
    named = {x.partition("=")[0]: None for x in CALLS[name] if "=" in x}
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # of some functions in C it is not known
        return
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise UserError(f"{scorer}.{name}{signature} cannot be called: {error}", example) from None


def values_and_state(scorer: Scorer, method: str, returned: Any) -> tuple[Any, Any]:
    """Return the two things that ``start`` or ``advance`` must return; raise ``UserError`` for anything else."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise UserError(
            f"{name_of(scorer)}.{method} returned {_kind(returned)}, expected two things",
            f"return {RETURNS[method]}",
        )
    return returned


def require_scores(scorer: Scorer, returned: Any, n: int) -> None:
    """Raise ``UserError`` unless ``score`` returned a `TreeValues` for each of ``n`` trees."""
    if not isinstance(returned, Sequence) or not all(isinstance(v, TreeValues) for v in returned):
        wrong = returned
        if isinstance(returned, Sequence):
            wrong = next(v for v in returned if not isinstance(v, TreeValues))
        raise UserError(
            f"{name_of(scorer)}.score returned {_kind(wrong)}{' in its list' if wrong is not returned else ''}",
            f"return {RETURNS['score']} (rmtools.lm.protocol.TreeValues)",
        )
    if len(returned) != n:
        raise UserError(
            f"{name_of(scorer)} scored {len(returned)} of {n} rollouts",
            "score returns one TreeValues per tree",
        )


def _kind(value: object) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__


def require_shape(name: str, values: np.ndarray | Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raise ``UserError`` unless what the scorer ``name`` gave for ``what`` are numbers, in an array of ``shape``."""
    kind = "f" if isinstance(values, Tensor) else np.asarray(values).dtype.kind
    if kind not in "fiu":
        raise UserError(
            f"{name} gave no numbers for {what}, but {np.asarray(values).dtype.name} values",
            "a scorer gives log values, nats",
        )
    found = tuple(np.shape(values))
    if found != shape:
        raise UserError(
            f"{name} gave log values of shape {found} for {what}, expected {shape}",
            "a scorer gives one number per prefix, in their order",
        )


def require_tree_values(name: str, values: TreeValues, n_steps: int, children: Sequence[int]) -> None:
    """Raise ``UserError`` unless there is a value for the prompt, every step and every child (their numbers by depth)."""
    require_shape(name, values.log_value, (n_steps + 1,), f"a prompt and its {n_steps} steps")
    if len(values.children) < len(children):
        raise UserError(
            f"{name} gave the children's log values at {len(values.children)} depths, expected {len(children)}",
            "a scorer gives one array per depth that has children, empty or not",
        )
    for t, (found, n) in enumerate(zip(values.children, children, strict=False)):
        require_shape(name, found, (n,), f"the {n} children at depth {t}")


def checked_values(scorer: Scorer, values: Tensor, n: int, text: Callable[[int], str]) -> np.ndarray:
    """Return the log values (n,) nats that ``start`` or ``advance`` gave, as float64 on the host.

    Raises ``UserError`` for another shape, and for a value as `require_range` does; ``text(i)`` is the prefix i.
    """
    name = name_of(scorer)
    if not isinstance(values, Tensor):
        raise UserError(
            f"{name} gave log values as {type(values).__name__}, expected a torch.Tensor of shape {(n,)}",
            "start and advance return the log values as a tensor, and the state",
        )
    require_shape(name, values, (n,), f"{n} prefixes")
    found: np.ndarray = values.double().cpu().numpy()
    kind = values.dtype if values.is_floating_point() else torch.float64
    require_range(scorer, found, torch.finfo(kind).eps, text)
    return found


def require_range(scorer: Scorer, values: np.ndarray, eps: float, text: Callable[[int], str]) -> None:
    """Raise ``UserError`` for a log value (n,) that is NaN or +inf or, of a probability, not in [log floor, 0].

    Rounding to a precision of ``eps`` is allowed; ``text(i)`` is the prefix of the value i.
    """
    low, high = -math.inf, sys.float_info.max
    probability = getattr(scorer, "is_probability", True)
    if probability:
        low = math.log(scorer.tilt.floor)
        high = 16 * eps * max(1.0, -low)  # as `Tilt` allows
        low -= high
    if values.min(initial=0.0) >= low and values.max(initial=-np.inf) <= high:
        return
    at = int(np.argmin((values >= low) & (values <= high)))
    raise _wrong_value(scorer, float(values[at]), text(at), probability=probability)


def name_of(scorer: object) -> str:
    """Return the name of a scorer, or that of its class."""
    return str(getattr(scorer, "name", "") or type(scorer).__name__)


def _wrong_value(scorer: Scorer, value: float, text: str, *, probability: bool) -> UserError:
    where = f"at the prefix {text[-120:]!r}"
    if math.isnan(value) or not (probability or math.isfinite(value)):
        return UserError(f"{name_of(scorer)} gives {'NaN' if math.isnan(value) else value} {where}", BROKEN)
    floor = scorer.tilt.floor
    return UserError(
        f"{name_of(scorer)} gives the log value {value:.6g} {where}, but that of a probability of success is in "
        f"[{math.log(floor):.6g}, 0] with the floor {floor:g} of its tilt",
        "return tilt.log_potential(p), nats, for a probability p; or set is_probability = False if the value is no tilted "
        "probability",
    )
