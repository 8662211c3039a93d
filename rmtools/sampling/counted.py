"""Particles that count, by prompt, the tokens generated for them: those of dropped particles and unchosen candidates too."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, eq=False)
class Counted:
    """Particles of a language model with a count beside them.

    Attributes
    ----------
    inner : Any
        `LMParticles`, or what another engine makes in its place.
    tokens : np.ndarray
        (G,) generated since the root.
    """

    inner: Any
    tokens: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(G, n)."""
        groups, n = self.inner.shape
        return groups, n

    @property
    def ended(self) -> np.ndarray:
        """(G, n) bool."""
        found: np.ndarray = self.inner.ended
        return found

    def log_value(self) -> np.ndarray:
        """(G, n) nats."""
        found: np.ndarray = self.inner.log_value()
        return found

    def extend(self, pool_size: int, rng: np.random.Generator) -> Self:
        """Draw ``pool_size`` next steps of every prefix, and count them."""
        child = self.inner.extend(pool_size, rng)
        return type(self)(child, self.tokens + newest(child, self.inner.decoded))

    def select(self, index: np.ndarray) -> Self:
        """Return prefixes ``index`` (G, k) of each group; what was generated stays generated."""
        return type(self)(self.inner.select(index), self.tokens)

    def steps(self) -> list[list[list[str]]]:
        """Return the text of every prefix's steps: G lists of n lists of steps."""
        found: list[list[list[str]]] = self.inner.steps()
        return found


class JoinableCounted(Counted):
    """The same over particles that can be put side by side."""

    def join(self, other: Counted) -> Self:
        """Return these prefixes and those of ``other``, whose tokens were counted where it was drawn."""
        return type(self)(self.inner.join(other.inner), self.tokens)


def counted(root: Any) -> Counted:
    """Return ``root`` with a count of zero."""
    kind = JoinableCounted if hasattr(root, "join") else Counted
    return kind(root, np.zeros(root.shape[0]))


def newest(particles: Any, before: int) -> np.ndarray:
    """Return the tokens (G,) of the newest step of all particles.

    Parameters
    ----------
    particles
        Just extended. Where they do not hold the newest step's ids (``blocks``, and which row is whose, ``node``) what is newly
        ``decoded`` is shared out evenly.
    before : int
        What was ``decoded`` before.
    """
    groups, n = particles.shape
    blocks = getattr(particles, "blocks", None)
    if not blocks:
        return np.full(groups, (particles.decoded - before) / groups)
    lengths = (blocks[-1] >= 0).sum(1)
    each: np.ndarray = lengths[particles.node].cpu().numpy()
    return each.reshape(groups, n).sum(axis=1).astype(float)
