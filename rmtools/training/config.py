"""The arguments of the trainer: transformers' own, and what a value model needs beyond them."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.training_args import trainer_log_levels

from rmtools.errors import UserError
from rmtools.particles.tilt import Tilt
from rmtools.training.batching import ORDERS
from rmtools.training.losses import DIVERGENCES
from rmtools.training.objective import Objective
from rmtools.training.targets import TARGETS

# Held-out metrics of which more is better; of the others less is.
GREATER_IS_BETTER = ("auc", "last_auc", "label_auc")
SIGNED = ("mean_log_bellman",)
# Activations computed anew in the backward pass: transformers before 5.23 knows it by its old name only.
CHECKPOINTING = next(
    n
    for n in ("activation_checkpointing", "gradient_checkpointing")
    if n in TrainingArguments.__dataclass_fields__
)


@dataclass
class DataArguments:
    """Where the training data are: rollouts, or a file in a public stepwise format."""

    train_rollouts: str = field(
        default="",
        metadata={
            "help": "folder written by `rmtools rollout` or `rmtools convert`, or a file in a public format"
        },
    )
    eval_rollouts: str = field(
        default="",
        metadata={"help": "the same, held out, for the metrics; children resolve the Bellman error"},
    )
    data_format: str = field(
        default="",
        metadata={"help": "of public files: told from the fields of the first rows where it is not given"},
    )
    eval_share: float = field(
        default=0.0, metadata={"help": "without eval_rollouts: this share of the prompts is held out instead"}
    )


@dataclass
class PRMConfig(TrainingArguments):
    """Training arguments of :class:`rmtools.training.trainer.PRMTrainer`.

    Attributes
    ----------
    target : str
        What a prefix is regressed on: mc, td, td_lambda, n_step, labels.
    divergence : str
        bce, mse, itakura_saito, poisson; to compare with: contrastive, pqm.
    td_lambda : float
        Of ``target="td_lambda"``.
    n_step : int
        Of ``target="n_step"``.
    ema_decay : float
        Of the copy that gives bootstrap values; 0 uses the current weights (stop-gradient).
    bellman_residual : float
        Weight of the double-sampled squared Bellman error (rho - 1)^2 added to the loss; needs children.
    pqm_margin : float
        Of ``divergence="pqm"``, nats.
    floor : float
        f of the tilt: the value of certain failure.
    max_length : int, optional
        Tokens; longer rows lose their last steps. Default: what the model takes.
    overwrite_output_dir : bool
        Replace an earlier training in ``output_dir``, its checkpoints included.
    """

    save_strategy: str = field(
        default="no",
        metadata={"help": "no: the model is written at the end; steps or epoch: checkpoints to resume from"},
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "group_by_length: batches of similar length; random; sequential"},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "every trained weight takes part in every step: nothing to look for"}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "a loss of NaN ends the run"})
    target: str = field(default="td_lambda", metadata={"help": f"one of: {', '.join(TARGETS)}"})
    divergence: str = field(default="itakura_saito", metadata={"help": f"one of: {', '.join(DIVERGENCES)}"})
    td_lambda: float = field(default=0.5, metadata={"help": "lambda of target td_lambda"})
    n_step: int = field(default=2, metadata={"help": "steps that target n_step looks ahead"})
    ema_decay: float = field(
        default=0.98, metadata={"help": "decay of the bootstrap copy; 0 = current weights"}
    )
    bellman_residual: float = field(
        default=0.0, metadata={"help": "weight of the double-sampled squared Bellman error; needs children"}
    )
    pqm_margin: float = field(default=4.0, metadata={"help": "margin of divergence pqm, nats"})
    floor: float = field(
        default=0.01, metadata={"help": "value of certain failure, far below the success rate"}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "tokens; longer rows lose their last steps. Default: what the model takes"},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "replace an earlier training in output_dir, checkpoints included"}
    )

    def __post_init__(self) -> None:
        """Check the choices, then let transformers check its own."""
        choices = (("target", TARGETS), ("divergence", DIVERGENCES), ("train_sampling_strategy", ORDERS))
        for name, valid in choices:
            if getattr(self, name) not in valid:
                raise UserError(
                    f"unknown {name} {getattr(self, name)!r}", f"choose one of: {', '.join(valid)}"
                )
        self._check_numbers()
        for name in ("log_level", "log_level_replica"):
            if getattr(self, name) not in trainer_log_levels:
                raise UserError(
                    f"unknown {name} {getattr(self, name)!r}",
                    f"choose one of: {', '.join(trainer_log_levels)}",
                )
        Tilt(self.floor)
        metric = str(self.metric_for_best_model or "").removeprefix("eval_")
        if metric in SIGNED:
            raise UserError(
                f"metric_for_best_model {metric} is signed: neither its largest nor its smallest value is best",
                "choose rms_log_bellman or mean_square_log_bellman",
            )
        if (
            self.load_best_model_at_end
            and str(getattr(self.eval_strategy, "value", self.eval_strategy)) == "no"
        ):
            raise UserError(
                "load_best_model_at_end needs evaluations, and eval_strategy is no",
                "set eval_strategy and save_strategy to steps or epoch",
            )
        if self.load_best_model_at_end and not metric:
            raise UserError(
                "load_best_model_at_end needs to know which metric: there is no evaluation loss",
                "name one with metric_for_best_model, such as rms_log_bellman or brier",
            )
        if metric and self.greater_is_better is None:
            self.greater_is_better = metric in GREATER_IS_BETTER
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise UserError("fp16 needs a GPU", "set fp16: false, or bf16: true, which a CPU can do")
        if (
            isinstance(self.deepspeed, str)
            and not self.deepspeed.startswith("{")
            and not Path(self.deepspeed).is_file()
        ):
            raise UserError(f"deepspeed: there is no file {self.deepspeed}", "name its JSON configuration")
        if isinstance(self.resume_from_checkpoint, bool):
            self.resume_from_checkpoint = "true" if self.resume_from_checkpoint else None
        self.remove_unused_columns = False
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # else transformers trains a copy of its own in every process
        super().__post_init__()
        for name in ("split_batches", "dispatch_batches"):
            if getattr(self.accelerator_config, name, False):
                raise UserError(
                    f"accelerator_config: {name} gives the processes other rows than those that this trainer weighs",
                    "leave it out",
                )
        check_schedule(self)

    def _check_numbers(self) -> None:
        ranges = {
            "td_lambda": (0 <= self.td_lambda <= 1, "in [0, 1]"),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1); 0 bootstraps from the current weights"),
            "n_step": (self.n_step >= 1, "at least 1, which is target td"),
            "bellman_residual": (0 <= self.bellman_residual < float("inf"), "at least 0 and finite"),
            "pqm_margin": (0 <= self.pqm_margin < float("inf"), "at least 0 and finite"),
            "label_smoothing_factor": (
                self.label_smoothing_factor == 0,
                "0: targets are soft already, and smoothing moves their mean",
            ),
            "per_device_train_batch_size": (
                self.per_device_train_batch_size >= 1 + (self.divergence == "contrastive"),
                "at least 1, with divergence contrastive at least 2: it compares the rows of a forward pass",
            ),
            "gradient_accumulation_steps": (self.gradient_accumulation_steps >= 1, "at least 1"),
            "neftune_noise_alpha": (
                not self.neftune_noise_alpha,
                "0: noise in the inputs perturbs the bootstrap targets as well as the prediction",
            ),
            "output_dir": ("\0" not in str(self.output_dir), "a path"),
            "learning_rate": (0 <= self.learning_rate < float("inf"), "at least 0 and finite"),
            "weight_decay": (0 <= self.weight_decay < float("inf"), "at least 0 and finite"),
            "max_grad_norm": (0 <= self.max_grad_norm < float("inf"), "at least 0 (no clipping) and finite"),
            "max_steps": (
                self.max_steps == -1 or self.max_steps >= 1,
                "at least 1, or -1: as num_train_epochs says",
            ),
            "num_train_epochs": (0 < self.num_train_epochs < float("inf"), "above 0 and finite"),
            "seed": (0 <= self.seed < 2**32, "at least 0 and below 2^32"),
            "data_seed": (self.data_seed is None or 0 <= self.data_seed < 2**32, "at least 0 and below 2^32"),
            "max_length": (self.max_length is None or self.max_length >= 1, "at least 1 token"),
        }
        for name, (holds, valid) in ranges.items():
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}", f"it must be {valid}")

    def objective(self) -> Objective:
        """Return the training objective that these arguments name."""
        return Objective(
            target=self.target,
            divergence=self.divergence,
            floor=self.floor,
            td_lambda=self.td_lambda,
            n_step=self.n_step,
            residual_weight=self.bellman_residual,
            margin=self.pqm_margin,
        )


def check_schedule(args: TrainingArguments) -> None:
    """Raise ``UserError`` where the learning rate's schedule cannot be made of its arguments, or is not finite somewhere."""
    from transformers import get_scheduler

    given = args.lr_scheduler_kwargs if isinstance(args.lr_scheduler_kwargs, dict) else {}
    steps = args.max_steps if args.max_steps > 0 else 100
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
        )
        rates = [
            f(t)
            for f in getattr(schedule, "lr_lambdas", [])
            for t in range(0, steps + 1, max(1, steps // 50))
        ]
    except (TypeError, ValueError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise UserError(
            f"lr_scheduler_type {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)} cannot be made with "
            f"lr_scheduler_kwargs {args.lr_scheduler_kwargs}: {error}",
            "give the arguments that this schedule takes, as numbers",
        ) from error
    # max(0, NaN) is 0: the rates do not tell of every number that is none.
    if not all(math.isfinite(rate) for rate in rates) or not all(map(is_finite, given.values())):
        raise UserError(
            f"lr_scheduler_kwargs {args.lr_scheduler_kwargs} make a learning rate that is not finite",
            "correct its numbers",
        )


def is_finite(value: Any) -> bool:
    """Whether ``value`` is no number, or a finite one; text may be one."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return True
