"""Arguments of a training, and their checks; the trainer checks what depends on the rows."""

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.training_args import trainer_log_levels

from rmtools.data.rollouts import Rollout
from rmtools.errors import UserError
from rmtools.lm.prompt_format import KINDS
from rmtools.particles.tilt import Tilt
from rmtools.training.batching import ORDERS
from rmtools.training.losses import DIVERGENCES
from rmtools.training.objective import Objective
from rmtools.training.targets import TARGETS

logger = logging.getLogger(__name__)

# Held-out metrics that are better when larger; all others are better when smaller.
GREATER_IS_BETTER = ("auc", "auc_within", "auc_within_low", "auc_within_high", "last_auc", "label_auc")
SIGNED = ("mean_log_bellman",)
# What the best checkpoint is chosen by unless another metric is named: the first that the held-out rows resolve. A value
# that is consistent and does not rank has an auc_within of .5, and can have the least Bellman error.
BEST_BY = ("auc_within", "brier", "label_auc", "label_brier")
# Recompute activations in the backward pass: transformers before 5.23 has the old name only.
CHECKPOINTING = next(
    n
    for n in ("activation_checkpointing", "gradient_checkpointing")
    if n in TrainingArguments.__dataclass_fields__
)


@contextlib.contextmanager
def library_errors(*more: type[Exception]) -> Iterator[None]:
    """Raise ``UserError`` if transformers, accelerate or peft refuse an argument, with ``more`` than the usual exceptions.

    Put it around one call into a library, never around a forward pass: an error of ours must keep its traceback.
    """
    refusals: tuple[type[Exception], ...] = (ValueError, ImportError, RuntimeError, OSError, *more)
    try:
        yield
    except UserError:
        raise
    except refusals as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(
            f"a training argument is refused: {' '.join(lines[:2])[:300]}",
            "change the argument that the message names",
        ) from error


# A learning rate at which adapters of rank 16 learned to rank, and the width of that model (docs/real_model.md). Wider ones want
# less: 2e-4 at 4,096 is common. All weights want about a tenth.
ADAPTER_RATE, ADAPTER_WIDTH = 5e-4, 576


def _seed(x: int | None) -> bool:
    return x is None or x in range(2**32)


# What must hold of an argument, in code and in words.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("bellman_residual", "pqm_margin", "learning_rate", "weight_decay", "max_grad_norm"),
        (lambda x: 0 <= x < math.inf, "at least 0 and finite"),
    ),
    **dict.fromkeys(("seed", "data_seed"), (_seed, "at least 0 and below 2^32")),
    "td_lambda": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "ema_decay": (lambda x: 0 <= x < 1, "in [0, 1); 0 bootstraps from the current weights"),
    "n_step": (lambda x: x >= 1, "at least 1, which is target td"),
    "label_smoothing_factor": (
        lambda x: x == 0,
        "0: targets are soft already, and smoothing moves their mean",
    ),
    "neftune_noise_alpha": (
        lambda x: not x,
        "0: noise in the inputs perturbs the bootstrap targets as well as the prediction",
    ),
    "per_device_train_batch_size": (lambda x: x >= 1, "at least 1"),
    "gradient_accumulation_steps": (lambda x: x >= 1, "at least 1"),
    "output_dir": (lambda x: "\0" not in str(x), "a path"),
    "max_steps": (lambda x: x == -1 or x >= 1, "at least 1, or -1 for num_train_epochs"),
    "num_train_epochs": (lambda x: 0 < x < math.inf, "above 0 and finite"),
    **dict.fromkeys(
        ("max_length", "max_tokens_per_batch"), (lambda x: x is None or x >= 1, "at least 1 token")
    ),
    "early_stopping_patience": (lambda x: x is None or x >= 1, "at least 1 evaluation"),
}
# What a value is, by the annotation of its field.
NUMBERS: dict[type, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "an integer"),
    float: (Real, "a number"),
}


def _argument(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DataArguments:
    """Training data: rollouts, or a file in a public stepwise format. Each field's help text says what it does."""

    train_rollouts: str = _argument(
        "",
        "folder of `rmtools rollout` or `rmtools convert`, a file in a public format, or a hub data set: "
        "owner/name, owner/name/configuration:split",
    )
    eval_rollouts: str = _argument(
        "", "the same, held out for the metrics; children resolve the Bellman error"
    )
    data_format: str = _argument(
        "", "format of public files; default: found from the fields of the first rows"
    )
    eval_share: float = _argument(0.0, "without eval_rollouts: hold out this share of the prompts instead")
    skip_bad: bool = _argument(
        False, "leave out rows that break their format, and lines that are no JSON, counted by kind"
    )
    split: str = _argument("", "split of a folder or hub data set that has several")
    eval_split: str = _argument("", "the same of eval_rollouts, or of train_rollouts if that is not given")
    map: str = _argument(
        "",
        "fields of public files under other names: prompt=question,steps=solution_steps,labels=step_labels",
    )
    first_step: str = _argument(
        r"Step 1:", "pattern of the first step's beginning, in formats that join question and steps"
    )
    neutral: str = _argument("positive", "label of a neutral rating (prm800k: 0): positive, negative or skip")
    keep_excluded: bool = _argument(
        False, "keep rows of prm800k that are quality control, screening or bad problems"
    )
    segment: str | None = _argument(
        None, "cut whole solutions at: blank-line, newline, regex:PATTERN, or a delimiter's text"
    )
    inner_delimiter: str = _argument(
        "keep", "a step that holds a newline before its end: keep it whole, split it, or refuse the row"
    )


@dataclass
class PRMConfig(TrainingArguments):
    """Arguments of :class:`rmtools.training.trainer.PRMTrainer`: transformers' own, with other defaults, and these.

    Each field's help text says what it does. Divergences contrastive and pqm are for comparison only. Raises
    ``UserError`` for a wrong value.

    Examples
    --------
    >>> import rmtools as rm
    >>> config = rm.PRMConfig(output_dir="prm", max_steps=50, learning_rate=1e-3)
    >>> config.target, config.divergence, config.td_lambda
    ('td_lambda', 'itakura_saito', 0.5)
    """

    save_strategy: str = _argument(
        "no", "no: the model is written at the end; steps or epoch: checkpoints to resume from"
    )
    eval_strategy: str | None = _argument(  # type: ignore[assignment]
        None,
        "no, steps or epoch. Default: epoch if there are held-out rollouts; as save_strategy to keep the best model",
    )
    logging_steps: float | None = _argument(  # type: ignore[assignment]
        None, "optimiser steps between two lines of the log. Default: 10"
    )
    logging_first_step: bool = _argument(True, "log the first optimiser step")
    train_sampling_strategy: str = _argument(
        "auto",
        "group_by_prompt: rows of a prompt together, which share the passes over its tokens; group_by_length: batches of "
        "similar length; random; sequential; auto: by prompt where that saves two thirds of the tokens, else by length",
    )
    ddp_find_unused_parameters: bool | None = _argument(
        False, "every trained weight takes part in every step"
    )
    logging_nan_inf_filter: bool = _argument(False, "a loss of NaN ends the run")
    target: str = _argument(
        None,
        f"regression target of a prefix: {', '.join(TARGETS)}. Default: td_lambda; labels if the rows have labels only",
    )
    divergence: str = _argument(
        None,
        f"one of: {', '.join(DIVERGENCES)}. Default: itakura_saito; bce if the target becomes labels by default",
    )
    td_lambda: float = _argument(0.5, "lambda of target td_lambda")
    n_step: int = _argument(2, "steps that target n_step looks ahead")
    ema_decay: float = _argument(0.98, "decay of the target network; 0 bootstraps from the current weights")
    bellman_residual: float = _argument(
        0.0, "weight of the double-sampled squared Bellman error (rho - 1)^2; needs children"
    )
    pqm_margin: float = _argument(4.0, "margin of divergence pqm, nats")
    floor: float = _argument(
        None,
        "value of certain failure, well below the success rate. Default: auto, a tenth of the training rollouts' success "
        "rate, at most 0.01",
    )
    per_device_train_batch_size: int = _argument(
        32, "rows of an optimiser step on each device; of several, with gradient_accumulation_steps"
    )
    learning_rate: float = _argument(
        None,
        "Default: by the width of the model, 5e-4 for adapters at 576, less for wider ones (as 1 / sqrt(width)); a tenth of that "
        "for all weights",
    )
    prompt_format: str = _argument(
        "auto",
        "how the prompts of rows that do not tell their format become text: raw (as they stand), or chat (rendered by the "
        "chat template of the model's tokenizer); auto: raw",
    )
    system: str | None = _argument(None, "system turn of prompt_format chat")
    few_shot: str | None = _argument(
        None, 'JSONL file of examples in front of every question: {"question": "…", "solution": "…"}'
    )
    max_length: int | None = _argument(
        None, "tokens; longer rows lose their last steps. Default: the model's limit"
    )
    max_tokens_per_batch: int | None = _argument(
        None,
        "tokens of a forward pass, pads included, distinct ones where rows begin alike: a device's batch is read in as many "
        "passes as that needs, with the same gradients. Default: what half of a GPU's memory holds, or a quarter of a CPU's",
    )
    overwrite_output_dir: bool = _argument(
        False, "replace an earlier training in output_dir, checkpoints included"
    )
    early_stopping_patience: int | None = _argument(
        None,
        "stop after so many evaluations in a row that are not the best by metric_for_best_model, and keep the best "
        "checkpoint; evaluates and saves each epoch, or every eval_steps",
    )
    metric_for_best_model: str | None = _argument(
        None,
        "held-out metric of the best checkpoint. Default, if one is kept: auc_within, else brier, as the held-out rows allow",
    )

    def __post_init__(self) -> None:
        """Check the arguments, then let transformers check its own."""
        self._check_types()
        self.rate_by_default = self.learning_rate is None
        if self.rate_by_default:
            self.learning_rate = ADAPTER_RATE  # until the model is known
        self._choose_evaluations()
        self.target_by_default, self.divergence_by_default = self.target is None, self.divergence is None
        self.target, self.divergence = self.target or "td_lambda", self.divergence or "itakura_saito"
        self._check_values()
        self._check_evaluation()
        self.success_rate: float | None = None
        if self.floor in (None, "auto"):
            self.floor = None  # type: ignore[assignment]
        else:
            Tilt(self.floor)
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            raise UserError("fp16 needs a GPU", "set fp16: false")
        if self.bf16 and not self.use_cpu and not torch.accelerator.is_available():
            raise UserError(
                "bf16 needs a GPU, and torch finds none",
                "leave bf16 out, or set use_cpu: true to train on the CPU in bf16",
            )
        named = self.deepspeed
        if isinstance(named, str) and not named.startswith("{") and not Path(named).is_file():
            raise UserError(f"deepspeed: there is no file {named}", "name its JSON configuration")
        if isinstance(self.resume_from_checkpoint, bool):
            self.resume_from_checkpoint = "true" if self.resume_from_checkpoint else None
        self.remove_unused_columns = False
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # torch warns otherwise
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise every process trains a copy of its own
        with library_errors(TypeError, AttributeError, KeyError):
            super().__post_init__()
        for name in ("split_batches", "dispatch_batches"):
            if getattr(self.accelerator_config, name, False):
                raise UserError(
                    f"accelerator_config: {name} gives the processes other rows than this trainer weighs",
                    "leave it out",
                )
        if self.torch_compile:
            _check_compiler(str(self.torch_compile_backend))
        _check_schedule(self)

    def _check_types(self) -> None:
        """Raise ``UserError`` if a number or a truth value is of another type."""
        for name, hint in get_type_hints(type(self)).items():
            value, kinds = getattr(self, name, None), {*(get_args(hint) or (hint,))}
            optional = NoneType in kinds or getattr(type(self), name, 0) is None
            kinds -= {NoneType}
            if (value is None and optional) or len(kinds) > 1 or not kinds <= NUMBERS.keys():
                continue
            kind, words = NUMBERS[kinds.pop()]
            fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if not fits and (name, value) != ("floor", "auto"):
                raise UserError(f"{name} is {value!r}", f"it must be {words}")

    def _choose_evaluations(self) -> None:
        """Set when to evaluate and save, as far as the arguments leave it open."""
        stops = self.early_stopping_patience is not None
        self.load_best_model_at_end |= stops
        best, asked = self.load_best_model_at_end, self.eval_strategy
        saves = str(getattr(self.save_strategy, "value", self.save_strategy))
        self.evaluates_by_default = asked is None and not best
        if asked is None and best:
            by_default = "epoch" if self.eval_steps is None else "steps"
            asked = saves if saves in ("steps", "epoch") else by_default if stops or saves == "best" else "no"
        self.eval_strategy = asked or "no"
        if self.logging_steps is None:  # transformers evaluates as often as it logs
            self.logging_steps, self.eval_steps = 10, self.eval_steps or 500
        if stops and saves == "no":
            self.save_strategy = self.eval_strategy
            if asked == "steps":
                self.save_steps = self.eval_steps or self.logging_steps

    def _check_values(self) -> None:
        choices = {
            "target": TARGETS,
            "divergence": DIVERGENCES,
            "train_sampling_strategy": ("auto", *ORDERS),
            "prompt_format": KINDS,
            "log_level": trainer_log_levels,
            "log_level_replica": trainer_log_levels,
        }
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise UserError(
                    f"unknown {name} {getattr(self, name)!r}", f"choose one of: {', '.join(valid)}"
                )
        for name, (holds, need) in RANGES.items():
            if not holds(getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}", f"it must be {need}")
        if self.divergence == "contrastive" and self.per_device_train_batch_size < 2:
            raise UserError(
                "divergence contrastive compares the rows of a forward pass, per_device_train_batch_size is 1",
                "raise it to at least 2",
            )
        if self.max_tokens_per_batch and not self.several_passes:
            other = "DeepSpeed" if self.deepspeed else "divergence contrastive"
            raise UserError(
                f"max_tokens_per_batch reads a batch in several passes, and {other} needs one",
                "leave it out, and lower per_device_train_batch_size",
            )

    @property
    def several_passes(self) -> bool:
        """Whether a device's batch may be read in several passes: its rows neither meet in the loss nor count as passes."""
        return self.divergence != "contrastive" and not self.deepspeed

    def _check_evaluation(self) -> None:
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
            stops = self.early_stopping_patience is not None
            raise UserError(
                f"{'early_stopping_patience' if stops else 'load_best_model_at_end'} needs evaluations, and "
                "eval_strategy is no",
                "set eval_strategy and save_strategy to steps or epoch",
            )
        self.best_by_default = self.load_best_model_at_end and not metric
        if self.best_by_default:
            metric = self.metric_for_best_model = BEST_BY[0]
        if metric and self.greater_is_better is None:
            self.greater_is_better = metric in GREATER_IS_BETTER

    def resolve_learning_rate(self, model: Any) -> None:
        """Set the learning rate, as far as it is the default, to that of the model."""
        if self.rate_by_default:
            found = ADAPTER_RATE * math.sqrt(ADAPTER_WIDTH / model.config.get_text_config().hidden_size)
            self.learning_rate = float(f"{found if hasattr(model, 'peft_config') else found / 10:.2g}")

    def resolve_target(self, rows: Sequence[Rollout]) -> None:
        """Set target and divergence, as far as they are the defaults, to those of rows that have labels only."""
        by_default, self.target_by_default = self.target_by_default, False
        if not by_default or any(r.reward is not None or r.labels is None for r in rows):
            return
        self.target = "labels"
        if self.divergence_by_default:
            self.divergence = "bce"
        logger.warning(
            "the rows have labels and no rewards: target is labels, divergence %s (set `target` to choose another)",
            self.divergence,
        )

    def resolve_best(self, resolved: Collection[str]) -> None:
        """Set the metric of the best checkpoint, if none is named, to the first default among the ``resolved`` ones."""
        if self.best_by_default:
            self.metric_for_best_model = next((m for m in BEST_BY if m in resolved), BEST_BY[0])
            self.greater_is_better = self.metric_for_best_model in GREATER_IS_BETTER

    def resolve_floor(self, rows: Sequence[Rollout]) -> None:
        """Set an automatic floor from the success rate of ``rows`` (mean reward, else mean label); warn if one is too high.

        A floor f leaves failures the share f (1 - q) / (f + (1 - f) q) of the target at success rate q: about a tenth at
        f = q / 10. The rate is taken to be at least one success in all rows: a rarer one cannot be seen there.
        """
        first = self.success_rate is None
        rewards = [r.reward for r in rows if r.reward is not None]
        known = rewards or [x for r in rows for x in r.labels or () if x is not None]
        rate = self.success_rate = sum(known) / len(known) if known else None
        if self.floor is None:
            tenth = 0.01 if rate is None else max(rate, 1 / len(rows)) / 10
            self.floor = min(0.01, float(f"{tenth:.2g}"))
        if first and rate and self.floor > rate / 3:
            logger.warning(
                "the floor is %.3g, the success rate of the training rollouts %.3g: failures keep %.0f%% of the target "
                "(leave `floor` out, or set it to a tenth of the success rate)",
                self.floor,
                rate,
                100 * self.floor * (1 - rate) / (self.floor + (1 - self.floor) * rate),
            )

    def objective(self) -> Objective:
        """Return the training objective."""
        return Objective(**{f.name: getattr(self, f.name) for f in fields(Objective)})


def _check_compiler(backend: str) -> None:
    """Raise ``UserError`` if torch does not know the backend, or inductor finds no compiler."""
    known = torch._dynamo.list_backends(())
    if backend not in known:
        raise UserError(f"unknown torch_compile_backend {backend!r}", f"choose one of: {', '.join(known)}")
    named = [os.environ.get(variable, "") for variable in ("CXX", "CC")]
    if backend == "inductor" and not any(map(shutil.which, (*named, "g++", "clang++", "gcc", "clang", "cl"))):
        raise UserError(
            "torch_compile needs a C++ compiler, and none is installed",
            "install g++, name another one in the environment variable CXX, or leave torch_compile out",
        )


def _check_schedule(args: TrainingArguments) -> None:
    """Raise ``UserError`` if the learning rate schedule cannot be built, or has a rate that is not finite."""
    kwargs: Any = args.lr_scheduler_kwargs
    steps = args.max_steps if args.max_steps > 0 else 100
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        schedule = get_scheduler(
            args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, kwargs
        )
        shown = range(0, steps + 1, max(1, steps // 50))
        rates = [rate(t) for rate in getattr(schedule, "lr_lambdas", []) for t in shown]
    except (TypeError, ValueError, AttributeError, KeyError, ZeroDivisionError) as error:
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise UserError(
            f"lr_scheduler_type {name} cannot be built with lr_scheduler_kwargs {kwargs}: {error}",
            "give the arguments that this schedule takes, as numbers",
        ) from error
    # The rates do not show every NaN: max(0, NaN) is 0.
    given = [str(v).lower().lstrip("+-") for v in (kwargs.values() if isinstance(kwargs, dict) else ())]
    if not all(map(math.isfinite, rates)) or {"nan", "inf", "infinity"} & {*given}:
        raise UserError(
            f"lr_scheduler_kwargs {kwargs} make a learning rate that is not finite", "correct its numbers"
        )
