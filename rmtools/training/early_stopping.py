"""Stop a training that no longer improves on held-out rows, and say which checkpoint is kept."""

from typing import Any

from transformers import EarlyStoppingCallback, TrainerState

from rmtools.training.metrics import figures_at


class EarlyStopping(EarlyStoppingCallback):
    """transformers' callback; a resumed training counts the evaluations that its checkpoint has seen since the best one."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Count the evaluations in the log after the best one."""
        super().on_train_begin(args, state, control, **kwargs)
        best = state.best_global_step
        self.early_stopping_patience_counter = 0 if best is None else sum(s > best for s in evaluated(state))


def evaluated(state: TrainerState) -> list[float]:
    """Return the optimiser steps at which the held-out metrics were taken."""
    return [row["step"] for row in state.log_history if any(k.startswith("eval_") for k in row)]


def kept_note(state: TrainerState, metric: str) -> str:
    """Return which checkpoint a training keeps that was asked for the best one by ``metric``."""
    name, at, best = metric.removeprefix("eval_"), evaluated(state), state.best_global_step
    if not best:
        return (
            f"the weights of the last optimiser step, {state.global_step}, are kept: the held-out metrics were never taken "
            "(lower eval_steps or eval_delay)"
        )
    figures = figures_at(state.log_history, best)[1]
    others = [n for n in ("auc_within", "brier") if n != name and n in figures]
    compared = [f"{n} {figures[n]:.3g}" for n in others]
    if "constant_brier" in figures and "brier" in (name, *others):
        compared.append(f"the constant's brier {figures['constant_brier']:.3g}")
    also = f" ({', '.join(compared)})" if compared else ""
    end = (
        ""
        if state.global_step >= state.max_steps
        else f"; stopped at step {state.global_step} of {state.max_steps}"
    )
    return (
        f"the weights of optimiser step {best} are kept: {name} {figures[name]:.4g}, the best of {len(at)} evaluations"
        f"{also}{end}"
    )
