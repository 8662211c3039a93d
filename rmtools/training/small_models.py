"""Small language models trained from scratch with trl's SFTTrainer, for recipes without pretrained weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.errors import UserError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast


def small_llama(
    tokenizer: "PreTrainedTokenizerFast",
    hidden: int,
    layers: int,
    context: int,
    seed: int,
    initializer_range: float = 0.02,
    rope_theta: float = 10_000.0,
) -> "LlamaForCausalLM":
    """Return a Llama with four heads and random weights drawn with ``seed``.

    Embeddings are not tied to the head: tied ones do not learn the task ``crossing`` reliably. transformers' defaults for
    the last two suit large models: a small one learns to add modulo 10 with .1 and 100 only (docs/log.md).

    Raises ``UserError`` if ``hidden`` cannot be split into four heads of even width.
    """
    if hidden % 8:
        raise UserError(
            f"hidden is {hidden}, not a multiple of 8: four heads need an even width",
            f"use for example {hidden // 8 * 8 + 8}",
        )
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            initializer_range=initializer_range,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def small_gpt2(
    tokenizer: "PreTrainedTokenizerFast", hidden: int, layers: int, context: int, seed: int
) -> "GPT2LMHeadModel":
    """Return a GPT-2 with four heads and random weights drawn with ``seed``.

    For prompts of several lengths: its positions are absolute, and where a column of `crossing` stands depends on the length,
    which a small model with relative positions hardly learns to take into account (docs/log.md).
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=context,
            n_embd=hidden,
            n_layer=layers,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_language_model(
    model: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[str],
    answers: Sequence[str],
    folder: Path,
    *,
    learn_prompts: bool = False,
    **arguments: Any,
) -> None:
    """Train on answers, each closed by the end-of-sequence token, and write model and tokenizer into ``folder``.

    Parameters
    ----------
    prompts, answers : sequence of str
        N each, tokenised separately; the prompt's tokens carry no loss unless ``learn_prompts``.
    arguments
        Of trl's ``SFTConfig``: max_steps, per_device_train_batch_size, learning_rate, seed. Rows come in their order
        unless ``train_sampling_strategy`` says otherwise.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from rmtools.training.config import CHECKPOINTING

    asked, given = tokenizer(list(prompts))["input_ids"], tokenizer(list(answers))["input_ids"]
    end = [tokenizer.eos_token_id]
    ids = [p + a + end for p, a in zip(asked, given, strict=True)]
    # trl does not tokenise rows that have ids and labels.
    labels = (
        ids if learn_prompts else [[-100] * len(p) + row[len(p) :] for p, row in zip(asked, ids, strict=True)]
    )
    config = SFTConfig(
        output_dir=str(folder),
        warmup_steps=30,
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        bf16=False,
        disable_tqdm=False,
        **{CHECKPOINTING: False, "train_sampling_strategy": "sequential", **arguments},
    )
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(str(folder))
