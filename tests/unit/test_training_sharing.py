"""Rows that begin alike share tokens, and a batch is read in passes of few tokens: the gradients are the same."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_training_trainer import perturb, trainer_for

from rmtools.errors import UserError
from rmtools.lm.memory import KEPT_PER_COLUMN
from rmtools.training import trainer as trainer_module

OBJECTIVES = [
    {"target": "mc", "divergence": "bce"},
    {"target": "td_lambda", "divergence": "itakura_saito"},
    {"target": "td", "divergence": "mse", "bellman_residual": 0.5, "ema_decay": 0.0},
    {"target": "td", "divergence": "poisson", "ema_decay": 0.0},
]


@pytest.fixture(scope="module")
def rows(policy, task, prompts):
    """Six solutions of each of three prompts, with alternatives."""
    import numpy as np

    from rmtools.data.collect import Branching, Collector
    from rmtools.lm.policy import Policy

    warm = Policy(policy.model, policy.steps, 1.6)
    return Collector(warm, task, Branching(6, 2), np.random.default_rng(3)).collect(prompts[:3])


def gradients(trainer):
    """Loss and gradients of one training step on all rows."""
    perturb(trainer.model)
    trainer.current_gradient_accumulation_steps = 1  # as the training loop sets it
    data = trainer.train_dataset
    inputs = trainer.data_collator([data[i] for i in range(len(data))])
    loss = trainer.training_step(trainer.model, inputs)
    return inputs["passes"], loss, {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o['target']}-{o['divergence']}")
def test_the_gradients_are_those_of_rows_read_alone(
    policy_folder, step_tokenizer, rows, tmp_path, monkeypatch, objective
):
    def made(**more):
        return trainer_for(
            policy_folder,
            step_tokenizer,
            rows,
            tmp_path,
            per_device_train_batch_size=len(rows),
            **objective,
            **more,
        )

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "longest_shared_row", lambda model: 0)
        (alone,), expected, whole = gradients(made())
    (shared,), loss, found = gradients(made())
    several, total, parts = gradients(made(max_tokens_per_batch=90))
    sizes = [one["model"]["input_ids"].numel() for one in several]
    assert shared["model"]["input_ids"].numel() < 0.7 * alone["model"]["input_ids"].numel()
    assert len(several) > 1
    assert all(size <= 90 or len(one["length"]) == 1 for size, one in zip(sizes, several, strict=True))
    assert sum(len(one["length"]) for one in several) == len(rows)
    for value, gradient in ((loss, found), (total, parts)):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        assert gradient.keys() == whole.keys()
        for name, one in gradient.items():
            torch.testing.assert_close(one, whole[name], rtol=1e-3, atol=1e-5, msg=name)


def test_rows_come_by_prompt_where_that_saves_two_thirds(policy_folder, step_tokenizer, rows, tmp_path):
    def order(chosen, **more):
        trainer = trainer_for(policy_folder, step_tokenizer, chosen, tmp_path, target="mc", **more)
        return trainer.args.train_sampling_strategy

    long = [replace(r, prompt=r.prompt + "c13 . \n" * 14, ids=None) for r in rows]
    assert order(long) == "group_by_prompt"
    assert order(long[::6]) == "group_by_length"  # one row a prompt
    assert order(long, train_sampling_strategy="random") == "random"


@pytest.mark.parametrize(
    "given",
    [{"divergence": "contrastive"}, {"deepspeed": '{"train_batch_size": 4}'}, {"max_tokens_per_batch": 0}],
)
def test_what_passes_cannot_do_is_refused(policy_folder, step_tokenizer, rows, tmp_path, given):
    with pytest.raises(UserError, match="max_tokens_per_batch"):
        trainer_for(
            policy_folder,
            step_tokenizer,
            rows,
            tmp_path,
            **{"max_tokens_per_batch": 90, "target": "mc", **given},
        )


def test_by_default_passes_hold_what_the_memory_does(
    policy_folder, step_tokenizer, rows, tmp_path, monkeypatch
):
    """A wider or deeper model keeps more of a token; the loss of fewer rows than a batch is still their mean."""

    def passes(**more):
        trainer = trainer_for(
            policy_folder, step_tokenizer, rows, tmp_path, target="mc", per_device_train_batch_size=64, **more
        )
        return gradients(trainer)

    (_,), whole, _ = passes()
    numbers = 90 * KEPT_PER_COLUMN * 2 * 32  # 90 tokens, two layers of width 32
    memory = SimpleNamespace(total=4 * 4 * numbers, available=2**32)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    several, loss, _ = passes()
    assert len(several) > 1
    assert max(one["model"]["input_ids"].numel() for one in several) <= 90
    torch.testing.assert_close(loss, whole)
    (_,), contrasted, _ = passes(divergence="contrastive")
    assert torch.isfinite(contrasted)
