"""The copy that makes bootstrap targets: an average of the weights after every optimiser step."""

import numpy as np
import pytest
import torch
from test_training_trainer import RAGGED, adapted, batch_of, log_targets, perturb, rollouts, trainer_for

from rmtools.training.target_network import TargetNetwork

__all__ = ["rollouts"]


def test_the_copy_is_an_exponential_moving_average():
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data[:] = 1.0
    copy, current = TargetNetwork(model, 0.9), TargetNetwork(model, 0.0)
    expected = 1.0
    for step in (2.0, 5.0):
        model.weight.data[:] = step
        for each in (copy, current):
            each.on_step_end(None, None, None)
        expected = 0.9 * expected + 0.1 * step
        np.testing.assert_allclose(copy.weights["weight"], expected, rtol=1e-6)
        np.testing.assert_allclose(current.weights["weight"], step)


def test_targets_come_from_the_copy_not_the_current_weights(policy_folder, step_tokenizer, tmp_path):
    model = adapted(policy_folder)
    perturb(model)
    trainer = trainer_for(policy_folder, step_tokenizer, RAGGED, tmp_path, model=model, ema_decay=0.98)
    batch = batch_of(trainer, RAGGED)
    before = log_targets(trainer, batch)
    perturb(model, 1)
    torch.testing.assert_close(log_targets(trainer, batch), before)
    trainer.target_network.on_step_end(None, None, None)
    assert not torch.allclose(log_targets(trainer, batch), before)


def test_the_copy_moves_with_every_optimiser_step(policy_folder, step_tokenizer, rollouts, tmp_path):
    """The average after training is the recursion over the weights after each step; accumulation does not count."""
    from transformers import TrainerCallback

    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})

    trainer = trainer_for(
        policy_folder, step_tokenizer, rollouts, tmp_path, ema_decay=0.7, gradient_accumulation_steps=2
    )
    trainer.add_callback(Watch())
    average = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert len(seen) == 3
    for weights in seen:
        average = {n: 0.7 * w + 0.3 * weights[n] for n, w in average.items()}
    for name, w in average.items():
        torch.testing.assert_close(trainer.target_network.weights[name], w)


def test_without_a_lag_targets_follow_the_current_weights(policy_folder, step_tokenizer, tmp_path):
    model = adapted(policy_folder)
    trainer = trainer_for(policy_folder, step_tokenizer, RAGGED, tmp_path, model=model, ema_decay=0.0)
    assert trainer.target_network is None
    batch = batch_of(trainer, RAGGED)
    before = trainer.compute_loss(model, batch).item()
    perturb(model)
    assert trainer.compute_loss(model, batch).item() != pytest.approx(before, rel=1e-3)


def test_the_copy_of_bf16_weights_is_kept_in_fp32():
    """Steps of a fiftieth of a small change are below what bf16 resolves: the copy would stand still."""
    model = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    model.weight.data[:] = 1.0
    copy = TargetNetwork(model, 0.98)
    model.weight.data[:] = 1.05
    for _ in range(500):
        copy.on_step_end(None, None, None)
    assert copy.weights["weight"].item() == pytest.approx(model.weight.float().item(), abs=1e-3)
