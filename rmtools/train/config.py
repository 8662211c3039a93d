"""The arguments of the trainer: transformers' own, and what a value model needs beyond them."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from rmtools.core.tilt import Tilt
from rmtools.errors import UserError
from rmtools.train.losses import DIVERGENCES
from rmtools.train.targets import TARGETS


@dataclass
class DataArguments:
    """Where the rollouts are."""

    train_rollouts: str = field(default="", metadata={"help": "folder written by `rmtools rollout`"})
    eval_rollouts: str = field(
        default="", metadata={"help": "held-out rollouts with children, for the metrics"}
    )


@dataclass
class PRMConfig(TrainingArguments):
    """Training arguments of :class:`rmtools.train.trainer.PRMTrainer`.

    Attributes
    ----------
    target : str
        What a prefix is regressed on: mc, td, td_lambda.
    divergence : str
        bce, mse, itakura_saito, poisson.
    td_lambda : float
        Of ``target="td_lambda"``.
    ema_decay : float
        Of the copy that gives bootstrap values; 0 uses the current weights (stop-gradient).
    floor : float
        f of the tilt: the value of certain failure.
    """

    save_strategy: str = field(default="no", metadata={"help": "no: the model is written at the end"})
    target: str = field(default="td", metadata={"help": f"one of: {', '.join(TARGETS)}"})
    divergence: str = field(default="itakura_saito", metadata={"help": f"one of: {', '.join(DIVERGENCES)}"})
    td_lambda: float = field(default=0.5, metadata={"help": "lambda of target td_lambda"})
    ema_decay: float = field(
        default=0.98, metadata={"help": "decay of the bootstrap copy; 0 = current weights"}
    )
    floor: float = field(
        default=0.01, metadata={"help": "value of certain failure, far below the success rate"}
    )

    def __post_init__(self) -> None:
        """Check the choices, then let transformers check its own."""
        for name, valid in (("target", TARGETS), ("divergence", DIVERGENCES)):
            if getattr(self, name) not in valid:
                raise UserError(
                    f"unknown {name} {getattr(self, name)!r}", f"choose one of: {', '.join(valid)}"
                )
        if not 0 <= self.td_lambda <= 1:
            raise UserError(f"td_lambda must be in [0, 1], got {self.td_lambda}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(
                f"ema_decay must be in [0, 1), got {self.ema_decay}", "0 bootstraps from the current weights"
            )
        Tilt(self.floor)
        if self.save_strategy != "no":
            raise UserError(
                f"save_strategy must be no, got {getattr(self.save_strategy, 'value', self.save_strategy)}: the bootstrap "
                "copy is not part of a checkpoint yet, so a run could not be resumed from one",
                "leave it out; the trained model is written at the end",
            )
        self.remove_unused_columns = False
        super().__post_init__()
