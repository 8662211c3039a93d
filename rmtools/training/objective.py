"""The training objective as a function of the values at prefixes and children, without the model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rmtools.lm.value import log_value_from_logits
from rmtools.training.examples import Example
from rmtools.training.losses import bellman_residual, divergence
from rmtools.training.targets import (
    BOOTSTRAPPED,
    given_labels,
    lambda_return,
    monte_carlo,
    n_step_return,
    one_step,
)

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Values:
    """Log values of one batch, nats: (B, T + 1) prefixes, and (B, T, C) distinct alternatives (potentials of ended ones)."""

    prefix: Tensor
    child: Tensor


def read_values(logits: Tensor, batch: Batch, floor: float) -> tuple[Tensor, Values]:
    """Return the logits (B, T + 1, 2) at the prefixes, and the log values there and at the children.

    Parameters
    ----------
    logits : Tensor
        (..., 2) of every token of the forward pass. Values of children are arbitrary if their tokens are not among them.
    batch : mapping
        What :class:`rmtools.training.batching.Collator` returns.
    floor : float
        Floor of the tilt.
    """
    every = logits.flatten(0, -2)
    at, ended = every[batch["reads"]], batch["child_log_potential"]
    child = log_value_from_logits(every[batch["child_reads"].clamp(min=0)], floor)
    return at, Values(log_value_from_logits(at, floor), torch.where(torch.isnan(ended), child, ended))


@dataclass(frozen=True)
class Objective:
    """Target, divergence and regulariser (docs/equations.md, section 8).

    Parameters
    ----------
    target : str
        One of :data:`rmtools.training.targets.TARGETS`.
    divergence : str
        One of :data:`rmtools.training.losses.DIVERGENCES`.
    floor : float
        Floor of the tilt.
    td_lambda, n_step : float, int
        Parameters of the targets of those names.
    bellman_residual : float
        Weight of the double-sampled (rho - 1)^2; 0 leaves it out.
    pqm_margin : float
        Margin of ``pqm``, nats.
    """

    target: str
    divergence: str
    floor: float
    td_lambda: float = 0.5
    n_step: int = 1
    bellman_residual: float = 0.0
    pqm_margin: float = 4.0

    @property
    def bootstraps(self) -> bool:
        """Whether targets use bootstrap values."""
        return self.target in BOOTSTRAPPED

    @property
    def children(self) -> str:
        """Which forward passes read the alternatives: "none", that of bootstrap values ("bootstrap"), or "all"."""
        return "all" if self.bellman_residual else "bootstrap" if self.bootstraps else "none"

    def targets(self, batch: Batch, bootstrap: Values | None = None) -> tuple[Tensor, Tensor]:
        """Return log U (B, T + 1) in nats, and which prefixes have a target; ``bootstrap`` holds the bootstrap values."""
        phi, length, complete = batch["log_potential"], batch["length"], batch["complete"]
        depth = torch.arange(batch["reads"].shape[1], device=length.device)[None, :]
        real = (depth <= length[:, None]) & batch["counts"][:, None]
        if self.target == "mc":
            return monte_carlo(phi, batch["completion_log_potential"]), real
        if self.target == "labels":
            found = given_labels(batch["log_label"])
            return found, real & ~torch.isnan(found)
        assert bootstrap is not None
        after = _with_ends(bootstrap.prefix, batch)
        end = after.gather(1, (length - 1).clamp(min=0)[:, None])[:, 0]
        log_one_step = one_step(after, bootstrap.child, batch["child_log_count"])
        if self.target == "n_step":
            found = n_step_return(log_one_step, end, length, self.n_step)
        else:
            lam = self.td_lambda if self.target == "td_lambda" else 0.0
            found = lambda_return(log_one_step, end, length, lam)
        return found, real & (complete[:, None] | (depth < length[:, None]))

    def loss(self, batch: Batch, logits: Tensor, now: Values, bootstrap: Values | None) -> Tensor:
        """Return the summed loss of the batch, a scalar.

        ``logits`` (B, T + 1, 2) and the values ``now`` are those of the current weights, with gradient; ``bootstrap`` holds the
        bootstrap values, without.
        """
        with torch.no_grad():
            log_target, known = self.targets(batch, bootstrap)
        found = divergence(
            self.divergence, log_target, known, logits, now.prefix, self.floor, self.pqm_margin
        ).sum()
        if self.bellman_residual:
            squares, resolved = bellman_residual(
                now.prefix[:, :-1], _with_ends(now.prefix, batch), now.child, batch["child_log_count"]
            )
            inside = torch.arange(squares.shape[1], device=squares.device)[None, :] < batch["length"][:, None]
            inside = inside & batch["counts"][:, None]
            found = found + self.bellman_residual * squares[resolved & inside].sum()
        return found

    def count(self, example: Example) -> int:
        """Return how many prefixes of ``example`` have a target."""
        if self.target == "mc":
            return example.length + 1
        if self.target == "labels":
            return int((~np.isnan(example.log_label)).sum() + (~np.isnan(example.log_label[:1])).sum())
        return example.length + example.complete


def _with_ends(prefix: Tensor, batch: Batch) -> Tensor:
    """Return the log values after each step (B, T); the potential for a step that ends the solution."""
    last = torch.arange(1, prefix.shape[1], device=prefix.device)[None, :] >= batch["length"][:, None]
    return torch.where(last & batch["complete"][:, None], batch["log_potential"][:, None], prefix[:, 1:])
