"""The process reward model trainer: transformers' Trainer with targets, divergences and a bootstrap copy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback

from rmtools.core.tilt import Tilt
from rmtools.data.rollouts import Rollout
from rmtools.data.scoring import training_metrics
from rmtools.errors import UserError
from rmtools.lm.steps import StepTokenizer
from rmtools.lm.value import ValueModel, log_value_from_logits
from rmtools.train.collate import Collator, example
from rmtools.train.config import PRMConfig
from rmtools.train.losses import divergence
from rmtools.train.targets import lambda_return, monte_carlo, one_step


class EMACopy(TrainerCallback):
    """An exponential moving average of the trainable weights, updated after every optimiser step.

    Parameters
    ----------
    model : torch.nn.Module
        Whose trainable parameters are followed.
    decay : float
        0 follows the current weights.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = model
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average towards the current weights."""
        for name, parameter in self.model.named_parameters():
            if name in self.weights:
                self.weights[name] = self.weights[name].to(parameter.device).lerp_(parameter, 1 - self.decay)


class PRMTrainer(Trainer):
    """Trains a two-label token classifier as a value model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Token classifier (a peft model too), dropout off.
    args : PRMConfig
    steps : StepTokenizer
    train_rollouts : sequence of Rollout
    eval_rollouts : sequence of Rollout, optional
        Held-out, with children: the metrics need them.

    Notes
    -----
    The loss of a trajectory is the mean over its T + 1 prefixes (root to end); the last one's target is the
    potential, so that the model also values finished solutions. Source: docs/equations.md, section 8.
    """

    args: PRMConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: PRMConfig,
        steps: StepTokenizer,
        train_rollouts: Sequence[Rollout],
        eval_rollouts: Sequence[Rollout] = (),
        **kwargs: Any,
    ) -> None:
        self.steps = steps
        self.tilt = Tilt(args.floor)
        self.eval_rollouts = list(eval_rollouts)
        if args.eval_strategy != "no" and not self.eval_rollouts:
            raise UserError(
                "eval_strategy asks for evaluations, but there are no held-out rollouts (eval_rollouts)",
                "name some with eval_rollouts, or set eval_strategy: no",
            )
        shared = {r.prompt_id for r in train_rollouts} & {r.prompt_id for r in eval_rollouts}
        if shared:
            raise UserError(
                f"{len(shared)} prompts are in the training and in the held-out rollouts: the metrics would be of rows "
                "the model was trained on",
                "make the held-out rollouts with another --seed",
            )
        for row in train_rollouts[:64]:
            steps.check(row.prompt, row.steps)
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(steps.pad_id),
            train_dataset=[example(r, steps, self.tilt) for r in train_rollouts],
            eval_dataset=self.eval_rollouts or None,
            processing_class=steps.tokenizer,
            **kwargs,
        )
        self.bootstrap = EMACopy(model, args.ema_decay)
        self.add_callback(self.bootstrap)
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean divergence over the prefixes of the batch."""
        logits = model(**inputs["model"]).logits
        at = logits.gather(1, inputs["reads"][..., None].expand(-1, -1, logits.shape[-1]))
        log_value = log_value_from_logits(at, self.tilt.floor)
        log_target = self.log_targets(model, inputs)
        loss = divergence(self.args.divergence, log_target, at, log_value, self.tilt.floor)
        depth = torch.arange(loss.shape[1], device=loss.device)[None, :]
        real = depth <= inputs["length"][:, None]
        loss = (loss * real).sum() / real.sum()
        return (loss, logits) if return_outputs else loss

    @torch.no_grad()
    def log_targets(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return log U (B, T + 1) nats of every prefix; at the last one the potential."""
        phi, length = inputs["log_potential"], inputs["length"]
        if self.args.target == "mc":
            return monte_carlo(phi, inputs["completion_log_potential"])
        own, child = self._bootstrap_values(model, inputs)
        depth = torch.arange(own.shape[1], device=own.device)[None, :]
        after = torch.where(depth + 1 >= length[:, None], phi[:, None], own)
        lam = self.args.td_lambda if self.args.target == "td_lambda" else 0.0
        return lambda_return(one_step(after, child), phi, length, lam)

    def _bootstrap_values(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return log values of the copy after the own step (B, T) and at the children (B, T, C)."""
        bare = self.accelerator.unwrap_model(model)
        logits = torch.func.functional_call(bare, self.bootstrap.weights, kwargs=inputs["model"]).logits
        value = log_value_from_logits(logits, self.tilt.floor)
        reads = inputs["child_reads"]
        child = value.gather(1, reads.clamp(min=0).flatten(1)).view(reads.shape)
        ended = inputs["child_log_potential"]
        child = torch.where(torch.isnan(ended), child, ended).masked_fill(reads < 0, -torch.inf)
        return value.gather(1, inputs["reads"][:, 1:]), child

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return and log the held-out metrics: noise-corrected RMS log Bellman error (terminal verifier), Brier score."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        found = training_metrics(self.eval_rollouts, ValueModel(model, self.steps, self.tilt))
        model.train(was_training)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
