"""The process reward model trainer: transformers' Trainer with targets, divergences and a target network."""

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor
from transformers import IntervalStrategy, PreTrainedModel, Trainer

from rmtools.data.load import load_rollouts
from rmtools.data.prompts import asked_format, require_agreement, rows_in_format
from rmtools.data.rollouts import Rollout, Rollouts
from rmtools.errors import UserError
from rmtools.files import left_as_found, replacing_files
from rmtools.lm.architectures import longest_shared_row, require_full_attention, require_rotations
from rmtools.lm.checkpoint import MODEL_FILES, SETTINGS_FILE, CheckpointSettings
from rmtools.lm.classifier import (
    head_name,
    keep_head_in_fp32,
    require_tensors,
    source_name,
    unreadable_weights,
)
from rmtools.lm.formats.beginning import beginning
from rmtools.lm.hub import split_name
from rmtools.lm.memory import tokens_to_train
from rmtools.lm.packing import pairs_per_token
from rmtools.lm.policy import load_tokenizer, require_vocabulary, saved_end_ids
from rmtools.lm.prompt_format import AskedFormat, PromptFormat, require_same_format
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.value import ConstantValue, ValueModel
from rmtools.particles.tilt import Tilt
from rmtools.training.batching import Collator, RowOrder, Rows, chosen_order, prompts_of
from rmtools.training.config import CHECKPOINTING, PRMConfig, library_errors
from rmtools.training.early_stopping import EarlyStopping, kept_note
from rmtools.training.examples import prepare, within
from rmtools.training.lora import build_model, require_trainable, with_adapter
from rmtools.training.metrics import ShardedScorer, held_out_metrics, ranking_warning
from rmtools.training.objective import Objective, Values, read_values
from rmtools.training.provenance import checkpoint_settings, write_records
from rmtools.training.resume import (
    PruneCheckpoints,
    checkpoint_to_resume,
    claim_output,
    remove_checkpoint,
    require_outside,
    require_same_training,
)
from rmtools.training.target_network import TARGET_NETWORK_FILE, TargetNetwork

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Metrics of the constant value that are reported beside the model's.
COMPARED = ("rms_log_bellman", "brier", "label_brier")
UNSTABLE = "lower learning_rate or max_grad_norm, or warm up longer (warmup_steps)"


class PRMTrainer(Trainer):
    """Train a value model: a two-label token classifier over a language model, read at the end of every step.

    Parameters
    ----------
    model : str, Path, transformers.PreTrainedModel or peft.PeftModel
        Folder or hub name of the language model to start from, best the policy of the rollouts; or of a published reward model
        (whether its head is kept is logged: `rmtools.lm.formats.beginning`); or a token classifier with two labels.
    args : PRMConfig, optional
        Default: ``PRMConfig("<model>-prm")``.
    train_dataset, eval_dataset : path, datasets.Dataset, or sequence of Rollout or dict
        What `rmtools.data.load.load_rollouts` reads: a rollout folder, a file, rows of trl's stepwise format, …. The
        held-out rows are optional and evaluated every epoch unless ``args.eval_strategy`` says otherwise; with children the
        metrics include the Bellman error.
    processing_class : transformers.PreTrainedTokenizerBase, optional
        Default: the tokenizer of the model.
    peft_config : "lora", peft.PeftConfig or None
        ``None`` trains all weights. The default trains LoRA adapters on every linear layer (rank 16, alpha 32); a model that
        you built is trained as it is. The head is always trained whole.
    steps : StepSettings, optional
        Delimiter and limits. Default: those of the rollouts; of rows that do not tell, steps end with a newline.
    settings : CheckpointSettings, optional
        Saved with every checkpoint. Default: made from the arguments.
    **kwargs
        Of ``transformers.Trainer``, such as ``callbacks`` and ``optimizers``.

    Raises
    ------
    UserError
        If the model cannot be loaded, is an adapter, or is no such classifier; a row is wrong or lacks what the target
        needs; no row is left within ``max_length``; held-out prompts are trained on; or a library refuses an argument.

    Notes
    -----
    The loss is the mean over the prefixes that have a target (root to end). The target of the last prefix is the
    potential, so that the model also values finished solutions. The loss is normalised by the mean number of such
    prefixes per row over all rows, not by the batch's own, so that batches of similar length weigh every prefix alike.
    Source: docs/equations.md, section 8.

    Examples
    --------
    >>> import rmtools as rm
    >>> config = rm.PRMConfig(output_dir="trained", max_steps=2, logging_strategy="no", disable_tqdm=True)
    >>> trainer = rm.PRMTrainer("policy", train_dataset="rollouts", args=config)
    >>> result = trainer.train()  # doctest: +ELLIPSIS
    {'loss': ...
    >>> trainer.save_model()
    >>> result.global_step, rm.load_value_model("trained")[1].task
    (2, 'crossing')
    """

    args: PRMConfig

    def __init__(
        self,
        model: "str | Path | PreTrainedModel | PeftModel",
        args: PRMConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: "PreTrainedTokenizerBase | None" = None,
        peft_config: "PeftConfig | str | None" = "lora",
        steps: StepSettings | None = None,
        settings: CheckpointSettings | None = None,
        **kwargs: Any,
    ) -> None:
        _check_types(model, args, peft_config)
        name = str(model) if isinstance(model, str | Path) else str(model.name_or_path)
        args = args or PRMConfig(f"{Path(split_name(name)[0]).name}-prm")
        require_outside(Path(str(args.output_dir)), [name])  # saving replaces the model there
        rollouts, held_out = _rows(train_dataset, eval_dataset, steps)
        args.resolve_target(rollouts)
        args.resolve_floor(rollouts)
        self.tilt = Tilt(args.floor)
        self.objective: Objective = args.objective()
        if args.evaluates_by_default:
            args.eval_strategy = IntervalStrategy.EPOCH if held_out else IntervalStrategy.NO
        check_rows(args, rollouts, held_out)
        trained = _model(model, peft_config, args)
        args.resolve_learning_rate(trained)
        name = source_name(trained)
        if not (processing_class or name):
            raise UserError("the model has no name that tells its tokenizer", "give `processing_class`")
        tokenizer = processing_class or load_tokenizer(name)
        require_vocabulary(tokenizer, trained.config, name or "the model")
        self.asked_format = _asked_format(args, rollouts)
        rollouts = rows_in_format(rollouts, self.asked_format, tokenizer)
        eval_rows = self._in_format(held_out, tokenizer, rollouts.metadata.prompt_format)
        ends = saved_end_ids(name, trained.config, tokenizer)
        self.steps = StepTokenizer(tokenizer, rollouts.metadata.steps, ends)
        self.limit = args.max_length or getattr(trained.config, "max_position_embeddings", None)
        self.prepared = prepare(rollouts, self.steps, self.tilt, args.target, self.limit)
        examples, longest = self.prepared.examples, longest_shared_row(trained)
        if args.train_sampling_strategy == "auto":
            args.train_sampling_strategy = chosen_order(examples, longest)
        self.eval_rollouts = within(eval_rows, self.steps, self.limit)
        self.settings = settings or replace(
            checkpoint_settings(name, rollouts, args, trained), end_ids=list(self.steps.end_ids)
        )
        require_rotations(trained.config, max(int(e.tree.positions.max()) + 1 for e in examples))
        packed = [len(e.tree.ids) for e in examples if e.tree.segment[-1]]
        if packed and self.objective.children != "none":
            require_full_attention(trained.config, max(packed))
        self.targets_per_row = sum(map(self.objective.count, examples)) / len(examples)
        out = Path(str(args.output_dir))
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        with library_errors():
            super().__init__(
                model=trained,
                args=args,
                data_collator=self._collator(trained, args, longest).passes,
                train_dataset=Rows(examples),
                eval_dataset=self.eval_rollouts or None,
                processing_class=tokenizer,
                **kwargs,
            )
        with contextlib.suppress(OSError):
            for folder in made:  # transformers makes it at once; saving makes it again
                folder.rmdir()
        self._constant = self._constant_metrics() if self.eval_rollouts else {}
        args.resolve_best(self._constant)
        self._check_resolved(args)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping(args.early_stopping_patience))
        self.target_network: TargetNetwork | None = None
        if self.objective.bootstraps and args.ema_decay > 0:
            require_whole_weights(self.is_fsdp_enabled, self.is_deepspeed_enabled)
            self.target_network = TargetNetwork(trained, args.ema_decay)
            self.add_callback(self.target_network)
        self.model_accepts_loss_kwargs = False
        self._claimed: set[Path] = set()

    def _collator(self, model: Any, args: PRMConfig, longest: int) -> Collator:
        most = args.max_tokens_per_batch
        if most is None and args.several_passes:
            most = tokens_to_train(model, args.device)
        return Collator(
            self.steps.pad_id,
            self.objective.children,
            model.dtype,
            pairs=pairs_per_token(model.config),
            longest=longest,
            max_tokens=most,
        )

    def _check_resolved(self, args: PRMConfig) -> None:
        """Raise ``UserError`` if the encoded rows make no batch, or do not resolve the metric of the best model."""
        at_once, rows = args.train_batch_size * args.world_size, len(self.prepared.examples)
        if args.dataloader_drop_last and rows < at_once:
            raise UserError(
                f"dataloader_drop_last drops all of {rows} rows: a forward pass takes {at_once}",
                "lower per_device_train_batch_size, or leave dataloader_drop_last out",
            )
        wanted = str(args.metric_for_best_model or "").removeprefix("eval_")
        if wanted and wanted not in self._constant:
            raise UserError(
                f"metric_for_best_model is {wanted}, which the held-out rollouts do not resolve: they give "
                f"{', '.join(self._constant)}",
                "choose one of these, or give held-out rollouts with children and outcomes of both kinds",
            )

    def _in_format(
        self, held_out: Rollouts | None, tokenizer: "PreTrainedTokenizerBase", form: PromptFormat
    ) -> Sequence[Rollout]:
        """Return held-out rows with rendered prompts; raise ``UserError`` unless ``form`` is theirs, too."""
        if held_out is None:
            return []
        found = rows_in_format(held_out, self.asked_format, tokenizer)
        if found.metadata.format_known:
            require_same_format(found.metadata.prompt_format, form, "the held-out rollouts'")
        return found

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args = self.args
        whole = self.objective.children != "none"
        lengths = [len(e.tree.ids) if whole else int(e.tree.reads[-1]) + 1 for e in self.prepared.examples]
        at_once = args.train_batch_size * args.world_size
        batch = at_once * args.gradient_accumulation_steps
        multiple = at_once if args.world_size > 1 and not args.dataloader_drop_last else 1
        seed = args.seed if args.data_seed is None else args.data_seed
        prompts = prompts_of(self.prepared.examples)
        return RowOrder(lengths, prompts, args.train_sampling_strategy, batch, multiple, seed)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Return the loss of a device's batch, a scalar; its passes add up their gradients."""
        *first, last = inputs["passes"]
        losses = []
        for one in first:
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, one, num_items_in_batch))
        losses.append(super().training_step(model, last, num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of the batch; raise ``UserError`` if it is NaN or infinite."""
        bootstrap = self._bootstrap_values(model, inputs)
        logits = model(**inputs["model"]).logits
        at, now = read_values(logits, inputs, self.args.floor)
        total = self.objective.loss(inputs, at, now, now if bootstrap is None else bootstrap)
        # A shorter last batch is divided by the rows of a whole one: every row weighs the same. transformers divides by
        # the forward passes of this optimiser step, of which the last one of an epoch may have fewer.
        passes = getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
        share = passes / self.args.gradient_accumulation_steps if model.training else 1.0
        rows = min(self.args.train_batch_size, -(-len(self.prepared.examples) // self.args.world_size))
        loss = total * share / (rows * self.targets_per_row)
        if not bool(torch.isfinite(loss)):
            step = self.state.global_step
            raise UserError(f"the training loss is {loss.item()} at optimiser step {step}", UNSTABLE)
        return (loss, logits) if return_outputs else loss

    @torch.no_grad()
    def _bootstrap_values(self, model: Any, inputs: dict[str, Any]) -> Values | None:
        """Return the values that make the targets; None if the forward pass itself gives them."""
        if not self.objective.bootstraps or (self.target_network is None and inputs["bootstrap"] is None):
            return None
        given = {**inputs, **(inputs["bootstrap"] or {})}
        network = self.target_network
        logits = model(**given["model"]).logits if network is None else network.logits(given["model"])
        return read_values(logits, given, self.args.floor)[1]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return and log the held-out metrics, and those of the constant control as ``constant_…``.

        ``eval_dataset`` is read as that of the trainer, and takes its place; raises ``UserError`` if neither is given.
        """
        rows = self.eval_rollouts
        if eval_dataset is not None:
            given, form = load_rollouts(eval_dataset), self.settings.prompt_format
            rows = within(self._in_format(given, self.steps.tokenizer, form), self.steps, self.limit)
        if not rows:
            raise UserError("there are no held-out rollouts to evaluate on", "give `eval_dataset`")
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        scorer = ValueModel(model, self.steps, self.tilt)
        # Under FSDP every forward pass needs all processes.
        if self.accelerator.num_processes > 1 and not self.is_fsdp_enabled:
            scorer = ShardedScorer(
                scorer, self.accelerator.process_index, self.accelerator.num_processes, gather_object
            )
        control = self._constant if eval_dataset is None else {}
        constant = {f"constant_{k}": control[k] for k in COMPARED if k in control}
        found = held_out_metrics(rows, scorer) | constant
        model.train(was_training)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _constant_metrics(self) -> dict[str, float]:
        """Return the metrics of the constant value: the training rows' mean reward, or mean label."""

        def measured(log_values: list[float]) -> dict[str, float]:
            known = np.asarray([x for x in log_values if not math.isnan(x)])
            if not len(known):
                return {}
            rate = float(np.exp(self.tilt.log_probability(known)).mean())
            return held_out_metrics(self.eval_rollouts, ConstantValue(rate, self.steps, self.tilt))

        examples = self.prepared.examples
        labels = measured([x for e in examples for x in e.log_label.tolist()])
        found = measured([e.log_potential for e in examples]) or labels
        return found | {k: v for k, v in labels.items() if k.startswith("label_")}

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: Any = None,
    ) -> Any:
        """Train; ``True`` or ``"last"`` resumes from the newest intact checkpoint of ``output_dir``.

        Default: ``args.resume_from_checkpoint``. Raises ``UserError`` if ``output_dir`` holds a training of another trainer
        that is neither resumed nor replaced (``args.overwrite_output_dir``), the checkpoint belongs to another training, the
        loss or the gradients are not finite, or the disk is full.
        """
        out, given = Path(str(self.args.output_dir)), resume_from_checkpoint
        named = self.args.resume_from_checkpoint if given is None else given
        needed = (TARGET_NETWORK_FILE,) if self.target_network is not None else ()
        resume = checkpoint_to_resume(str(named or ""), out, needed)
        if resume:
            require_same_training(resume, self.settings)
        self._claim(out, resume)
        with left_as_found(out):
            result = super().train(resume, trial, ignore_keys_for_eval)
        if self.args.load_best_model_at_end and self.args.should_save:
            logger.warning("%s", kept_note(self.state, str(self.args.metric_for_best_model)))
        warning = ranking_warning(self.state.log_history, self._saved_step())
        if warning is not None and self.args.should_save:
            chosen = self.args.metric_for_best_model
            logger.warning("%s%s", f"the checkpoint chosen by {chosen}: " if chosen else "", warning)
        return result

    def _saved_step(self) -> int | None:
        """Return the optimiser step of the best checkpoint if its weights are kept in the end, else None: the last step."""
        return self.state.best_global_step if self.args.load_best_model_at_end else None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write weights, head, tokenizer, settings, log and card; default: into ``args.output_dir``.

        Raises ``UserError`` if a training of another trainer is there, unless ``args.overwrite_output_dir`` is set.
        """
        checkpoint = _internal_call and output_dir is not None
        if self.args.should_save and not checkpoint:
            self._claim(Path(output_dir or str(self.args.output_dir)))
        super().save_model(output_dir, _internal_call)

    def _claim(self, folder: Path, resume: str | None = None) -> None:
        """Check the first time that ``folder`` may be written: what this trainer wrote there, it may replace."""
        if folder.resolve() in self._claimed:
            return
        overwrite = self.args.overwrite_output_dir
        claim_output(folder, resume, overwrite)
        self._claimed.add(folder.resolve())
        if overwrite or resume:
            self.add_callback(PruneCheckpoints(folder, None if overwrite else resume))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the card is written with the weights (:mod:`rmtools.training.model_card`)."""

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Upload weights, head, tokenizer, settings, log and card; arguments as ``transformers.Trainer.push_to_hub``."""
        if self.args.should_save:
            self._claim(Path(str(self.args.output_dir)))  # it is saved there first
        if (
            hasattr(self.accelerator.unwrap_model(self.model), "peft_config")
            and Path(self.settings.base).is_dir()
        ):
            logger.warning(
                "the adapter's base is the folder %s: who downloads the adapter needs it too; `rmtools export --merge` "
                "writes a whole model",
                self.settings.base,
            )
        return super().push_to_hub(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write weights, head, tokenizer, settings and card; all files are written before the first is moved."""
        folder = Path(output_dir or str(self.args.output_dir))
        if not self.args.should_save:
            super()._save(str(folder), state_dict)
            return
        with replacing_files(folder, SETTINGS_FILE, instead_of=MODEL_FILES) as temporary:
            try:
                super()._save(str(temporary), state_dict)
                if self.target_network is not None and folder.name.startswith("checkpoint-"):
                    self.target_network.save(temporary)
            except SafetensorError as error:  # also for a full disk
                raise OSError(str(error)) from error
            (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle of this machine's paths
            step = None if folder.name.startswith("checkpoint-") else self._saved_step()
            write_records(temporary, folder, self.settings, self.state, step)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint; first remove one of that name, which a run before the resume may have left."""
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            remove_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        except (UserError, OSError, RuntimeError) as error:
            # torch.save reports a full disk as a RuntimeError of its archive writer.
            full = isinstance(error, OSError) or "inline_container" in str(error)
            if full or isinstance(error, UserError):
                remove_checkpoint(folder)
            if not full:
                raise
            reason = getattr(error, "strerror", None) or "the disk is full or the file too large"
            raise UserError(
                f"cannot write {folder}: {reason}; the checkpoints before it are unchanged",
                "free space, or choose another folder",
            ) from error

    def get_train_dataloader(self) -> Any:
        """Return the loader of the training rows; raise ``UserError`` if its arguments are refused."""
        with library_errors():
            return super().get_train_dataloader()

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Make optimiser and schedule, and wrap the model for its engine: the last step before a forward pass."""
        with library_errors():
            return super()._prepare_for_training(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch; nothing if the resumed checkpoint had all its steps (transformers would make one more)."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the gradient norm; raise ``UserError`` if it is not finite (fp16 skips such a step itself)."""
        found = super()._get_grad_norm(model, grad_norm=grad_norm)
        if found is not None and not self.args.fp16 and not math.isfinite(float(found)):
            step = self.state.global_step
            raise UserError(f"the gradients are not finite at optimiser step {step}", UNSTABLE)
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            require_tensors(folder, self.accelerator.unwrap_model(self.model))
        with unreadable_weights(folder):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.target_network is not None:
            self.target_network.load(folder)


def check_rows(args: PRMConfig, train: Rollouts, held_out: Rollouts | None) -> None:
    """Raise ``UserError`` if the rows do not fit the arguments, or the held-out ones not the others: before a model is loaded."""
    given = {
        "early_stopping_patience": args.early_stopping_patience,
        "load_best_model_at_end": args.load_best_model_at_end,
        "eval_strategy": args.eval_strategy != "no",
        "metric_for_best_model": args.metric_for_best_model and not args.best_by_default,
    }
    asked = [name for name, value in given.items() if value]
    if asked[:1] == ["early_stopping_patience"]:  # it sets the others
        asked = asked[:1]
    if asked and not held_out:
        raise UserError(
            f"{asked[0]} needs evaluations, but there are no held-out rollouts",
            "set eval_rollouts or eval_share (`eval_dataset` of the trainer), or leave "
            f"{' and '.join(asked)} out",
        )
    shared = {r.prompt for r in train} & {r.prompt for r in held_out or ()}
    if shared:
        raise UserError(
            f"{len(shared)} prompts are in the training and in the held-out rollouts: the metrics would describe "
            "rows the model was trained on",
            "make the held-out rollouts with another seed",
        )
    if args.bellman_residual and not any(at for r in train for at in r.children):
        raise UserError(
            "bellman_residual needs two independent next steps of a prefix, the training rollouts have no children",
            "make them with `rmtools rollout` and two or more children per prefix, or set bellman_residual: 0",
        )
    if args.bellman_residual and any(r.reward is None for r in train):
        raise UserError(
            "bellman_residual needs outcomes, and a training row has reward null",
            "give rollouts with rewards, or set bellman_residual: 0",
        )
    wanted = _asked_format(args, train)
    require_agreement(train, wanted)
    if held_out is not None and held_out.metadata.format_known:
        require_agreement(held_out, wanted)
        if train.metadata.format_known:
            form = train.metadata.prompt_format
            require_same_format(held_out.metadata.prompt_format, form, "the held-out rollouts'")


def _asked_format(args: PRMConfig, rows: Rollouts) -> AskedFormat:
    return asked_format(args.prompt_format, args.system, args.few_shot, rows.metadata.steps.delimiter)


def _check_types(model: object, args: object, peft_config: object) -> None:
    """Raise ``UserError`` unless these arguments of the trainer are of the types it takes."""
    from peft import PeftConfig

    if not (peft_config in ("lora", None) or isinstance(peft_config, PeftConfig)):
        raise UserError(
            f"`peft_config` is {peft_config!r}", "give a peft configuration, 'lora', or None for all weights"
        )
    if not isinstance(model, str | Path) and not hasattr(model, "name_or_path"):
        raise UserError(
            f"`model` must be a folder, a hub name or a model, got {type(model).__name__}",
            "name a language model",
        )
    if not isinstance(args, PRMConfig | None):
        raise UserError(
            f"`args` must be a PRMConfig, got {type(args).__name__}",
            "PRMConfig(**args) makes one of a dictionary",
        )


def _rows(train: Any, held_out: Any, steps: StepSettings | None) -> tuple[Rollouts, Rollouts | None]:
    """Return the rows to train on, with the metadata that the checkpoint records, and the held-out ones."""
    if train is None:
        raise UserError("there are no rollouts to train on", "give `train_dataset`")
    rollouts = load_rollouts(train)
    if steps is not None:
        rollouts = replace(
            rollouts, metadata=replace(rollouts.metadata, steps=steps, horizon=steps.max_steps)
        )
    return rollouts, None if held_out is None else load_rollouts(held_out)


def _model(model: Any, peft_config: Any, args: PRMConfig) -> Any:
    """Return the model to train, built from its name or checked."""
    from peft import PeftConfig
    from trl import ModelConfig

    if isinstance(model, str | Path):
        model = build_model(
            str(model),
            ModelConfig(use_peft=peft_config == "lora"),
            args.seed,
            bool(getattr(args, CHECKPOINTING)),
        )
        begun = beginning(source_name(model))
        if begun.format:
            logger.warning("%s", begun.sentence)
    if isinstance(peft_config, PeftConfig):
        model = with_adapter(model, peft_config, args.seed)
    require_trainable(model, args.objective().bootstraps)
    if type(getattr(model, head_name(model) or "score", None)) is torch.nn.Linear:
        keep_head_in_fp32(model)
    return model


def require_whole_weights(fsdp: bool, deepspeed: bool) -> None:
    """Raise ``UserError`` under an engine that shards the weights: the target network reads and saves them whole."""
    if fsdp or deepspeed:
        raise UserError(
            f"the target network (ema_decay) does not work under {'FSDP' if fsdp else 'DeepSpeed'}, which shards the weights",
            "set ema_decay: 0 to bootstrap from the current weights, use target mc or labels, or train with DDP",
        )
