"""A value model whose p goes through a monotone map, as a scorer: whole trajectories, or step by step.

V = f + (1 - f) q with q the map of the model's p at the prefix's depth. The value of a prompt alone is mapped if it is the
model's own; one that is given, or is the mean over first steps, is not. Values at the end are mapped too (terminal "model").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.lm.protocol import Scorer, TreeValues, ValueState
from rmtools.lm.steps import EncodedTree
from rmtools.particles.tilt import Tilt
from rmtools.stats.monotone_map import MonotoneMap

FINE = Tilt(1e-30)
"""With this floor a log value is log p, to fp32 rounding, down to 1e-30: another one would hide how small p is."""


def without_floor(value: Any) -> tuple[Any, Tilt]:
    """Return a loaded value model with log p as its log values, and the tilt that it had; the model itself is changed."""
    tilt: Tilt = value.tilt
    value.tilt = FINE
    if hasattr(value, "reading"):  # of a published model
        value.reading = replace(value.reading, floor=FINE.floor)
    return value, tilt


def reads_root(value: Any) -> bool:
    """Return whether the value of a prompt alone is the model's own."""
    convention = getattr(value, "convention", None)
    return convention is None or bool(convention.root)


@dataclass(frozen=True)
class CalibratedState:
    """The ``ValueState`` of a `CalibratedValue`: what its model has read, and the depth (B,) of each prefix."""

    inner: ValueState
    depth: Tensor

    def select(self, rows: Tensor) -> "CalibratedState":
        """Return the prefixes ``rows`` (B',)."""
        return CalibratedState(self.inner.select(rows), self.depth[rows.to(self.depth.device)])

    def join(self, other: "CalibratedState") -> "CalibratedState":
        """Return these prefixes followed by those of ``other``."""
        return CalibratedState(self.inner.join(other.inner), torch.cat([self.depth, other.depth]))


class CalibratedValue:
    """A `Scorer`: another one, with a map of its p.

    Parameters
    ----------
    inner : Scorer
        Without a floor: what `without_floor` returns. Everything else a value model has (its weights, prompt format,
        convention, how it reads questions) is that of this one.
    map : MonotoneMap
    tilt : Tilt
    name : str
        For messages and provenance.
    fitted_on : frozenset of str
        What `prompt_key` gives for the prompts that the map was fitted on.

    Attributes
    ----------
    source : str
        What finds the same files again: folder, or hub name with commit; "" if it was not loaded.
    """

    is_probability = True

    def __init__(
        self,
        inner: Any,
        map: MonotoneMap,
        tilt: Tilt,
        name: str,
        fitted_on: frozenset[str] = frozenset(),
    ) -> None:
        self.inner = inner
        self.map = map
        self.tilt = tilt
        self.name = name
        self.fitted_on = fitted_on
        self.source = ""
        self._scored: tuple[Sequence[EncodedTree], list[TreeValues]] = ([], [])

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is copied
            raise AttributeError(name)
        found = getattr(self.inner, name)
        if name == "reading_of":  # of a published model: a scorer for another policy's tokens
            return lambda steps: self._around(found(steps))
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "question_of":
            setattr(self.inner, name, value)
        else:
            super().__setattr__(name, value)

    def _around(self, inner: Any) -> "CalibratedValue":
        found = CalibratedValue(inner, self.map, self.tilt, self.name, self.fitted_on)
        found.source = self.source
        return found

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree."""
        found = self.inner.score(trees, progress)
        self._scored = trees, found
        return [self._mapped(v) for v in found]

    def _mapped(self, values: TreeValues) -> TreeValues:
        depth = np.arange(len(values.log_value))
        own = self._log_value(values.log_value, depth)
        if not reads_root(self.inner):
            own[0] = self.tilt.log_value(values.log_value[0])
        return TreeValues(own, [self._log_value(at, t + 1) for t, at in enumerate(values.children)])

    def _log_value(self, log_p: np.ndarray, depth: "np.ndarray | int") -> np.ndarray:
        log_p = np.asarray(log_p, dtype=np.float64)
        return self.tilt.log_value(log_p if self.map.is_identity else self.map(log_p, depth))

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats of prompts given as token ids, and the state."""
        values, inner = self.inner.start(prompts)
        depth = torch.zeros(len(prompts), dtype=torch.int64)
        if reads_root(self.inner):
            return self._tensor(values, depth), CalibratedState(inner, depth)
        root = torch.from_numpy(self.tilt.log_value(values.double().cpu().numpy()))
        return root.to(values.device), CalibratedState(inner, depth)

    @torch.inference_mode()
    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats after a new step ``tokens`` (B, L; -1 = no token), and the state.

        A row without a new token gets NaN: its value is unchanged.
        """
        assert isinstance(state, CalibratedState)
        values, inner = self.inner.advance(state.inner, tokens)
        depth = state.depth + (tokens >= 0).any(1).to(state.depth)
        return self._tensor(values, depth), CalibratedState(inner, depth)

    def _tensor(self, values: Tensor, depth: Tensor) -> Tensor:
        log_p = values.double().cpu().numpy()
        known = ~np.isnan(log_p)
        log_p[known] = self._log_value(log_p[known], depth.numpy()[known])
        return torch.from_numpy(log_p).to(values.device)


class Uncalibrated:
    """The model under a map as it is, on trajectories alone: the other half of a comparison of before and after.

    The values that the map was given last are read again: the same trajectories do not pass through the network twice.
    """

    is_probability = True

    def __init__(self, calibrated: CalibratedValue) -> None:
        self.calibrated = calibrated
        self.tilt = calibrated.tilt
        self.name = f"{calibrated.name}, without its map"
        self.first_steps = bool(getattr(calibrated, "first_steps", False))

    @property
    def steps(self) -> Any:
        """Those of the model."""
        return self.calibrated.steps

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree."""
        known, found = self.calibrated._scored
        if not _same(known, trees):
            found = self.calibrated.inner.score(trees, progress)
        elif progress is not None:
            progress(len(trees))
        tilted: Callable[[Any], np.ndarray] = self.tilt.log_value
        return [
            TreeValues(
                tilted(np.asarray(v.log_value, dtype=np.float64)),
                [tilted(np.asarray(at, dtype=np.float64)) for at in v.children],
            )
            for v in found
        ]


def _same(known: Sequence[EncodedTree], trees: Sequence[EncodedTree]) -> bool:
    """Return whether two lists hold the same trees, read at the same places."""
    return len(known) == len(trees) and all(
        np.array_equal(a.ids, b.ids)
        and np.array_equal(a.segment, b.segment)
        and np.array_equal(a.reads, b.reads)
        and len(a.child_reads) == len(b.child_reads)
        and all(np.array_equal(x, y) for x, y in zip(a.child_reads, b.child_reads, strict=True))
        for a, b in zip(known, trees, strict=True)
    )


def uncalibrated(scorer: Scorer) -> Any:
    """Return an `Uncalibrated` of a scorer with a map; None of another."""
    return Uncalibrated(scorer) if isinstance(scorer, CalibratedValue) else None
