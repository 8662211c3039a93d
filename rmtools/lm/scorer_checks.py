"""What a scorer must have and give, checked where a scorer and its values enter: an error names the scorer and the place."""

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.protocol import Scorer, TreeValues
from rmtools.lm.value import BROKEN

AUDITED = ("steps", "tilt", "name", "score")
SAMPLED = ("steps", "tilt", "name", "start", "advance")


def require_scorer(model: object, attributes: Sequence[str]) -> None:
    """Raise ``UserError`` unless ``model`` has the ``attributes`` of a Scorer, `AUDITED` or `SAMPLED`; name the missing."""
    if missing := [name for name in attributes if not hasattr(model, name)]:
        raise UserError(
            f"`model` must be a checkpoint or a Scorer, got {type(model).__name__}, which has no {', '.join(missing)}",
            "name the folder of a checkpoint; rmtools.Scorer says what a Scorer has",
        )


def require_shape(name: str, values: np.ndarray | Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raise ``UserError`` unless the values that the scorer ``name`` gave for ``what`` have ``shape``."""
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

    Raises ``UserError`` for another shape, and for a value that is NaN, +inf or, of a probability, above 0 by more than
    rounding; ``text(i)`` is the prefix i.
    """
    name = name_of(scorer)
    if not isinstance(values, Tensor):
        raise UserError(
            f"{name} gave log values as {type(values).__name__}, expected a torch.Tensor of shape {(n,)}",
            "start and advance return the log values as a tensor, and the state",
        )
    require_shape(name, values, (n,), f"{n} prefixes")
    found: np.ndarray = values.double().cpu().numpy()
    if found.max(initial=-np.inf) <= 0:
        return found
    largest = sys.float_info.max
    if getattr(scorer, "is_probability", True):
        kind = values.dtype if values.is_floating_point() else torch.float64
        largest = 16 * torch.finfo(kind).eps * max(1.0, -math.log(scorer.tilt.floor))  # as `Tilt` allows
    fine = found <= largest
    if not fine.all():
        at = int(np.argmin(fine))
        raise _wrong_value(name, float(found[at]), text(at))
    return found


def name_of(scorer: object) -> str:
    """Return the name of a scorer, or that of its class."""
    return str(getattr(scorer, "name", "") or type(scorer).__name__)


def _wrong_value(name: str, value: float, text: str) -> UserError:
    if math.isfinite(value):
        return UserError(
            f"{name} gives the log value {value:.6g} at {text[-120:]!r}, but that of a probability is at most 0",
            "return log V in nats, not V; or set is_probability = False if the value is no tilted probability",
        )
    return UserError(
        f"{name} gives {'NaN' if math.isnan(value) else value} at the prefix {text[-120:]!r}", BROKEN
    )
