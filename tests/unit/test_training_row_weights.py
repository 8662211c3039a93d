"""What a row weighs in an epoch, and in which order rows come."""

from dataclasses import replace

import pytest
from test_training_trainer import RAGGED, adapted, batch_of, perturb, trainer_for


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 1), (2, 3), (1, 4), (4, 2)])
def test_every_row_weighs_the_same_in_an_epoch(policy_folder, step_tokenizer, tmp_path, batch, accumulation):
    """Nine rows of unequal length, the last optimiser step short of passes and of rows: what is descended sums to all rows'."""
    model = adapted(policy_folder)
    perturb(model)
    rows = RAGGED * 3
    values = {"target": "mc", "num_train_epochs": 1, "max_steps": -1, "learning_rate": 0.0}
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rows,
        tmp_path,
        model=model,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **values,
    )
    seen, step = [], trainer.training_step
    trainer.training_step = lambda *a, **k: seen.append(step(*a, **k)) or seen[-1]
    trainer.train()
    whole = trainer_for(
        policy_folder, step_tokenizer, rows, tmp_path, model=model, per_device_train_batch_size=9, target="mc"
    )
    expected = whole.compute_loss(model, batch_of(whole, rows)).item()
    assert len(seen) == -(-9 // batch)
    assert sum(x.item() for x in seen) * batch * accumulation / 9 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("target", "divergence", "residual"),
    [
        ("mc", "bce", 0.0),
        ("td_lambda", "itakura_saito", 0.0),
        ("td", "mse", 0.5),
        ("n_step", "poisson", 0.0),
        ("mc", "contrastive", 0.0),
        ("labels", "pqm", 0.0),
    ],
)
def test_a_filler_changes_nothing(
    policy_folder, step_tokenizer, rollouts, tmp_path, target, divergence, residual
):
    """Neither among rows nor alone, as a process may get it; no gradient of it is NaN."""
    values = {"target": target, "divergence": divergence, "bellman_residual": residual, "ema_decay": 0.0}
    rows = [replace(r, labels=[float(i % 2)] * len(r.steps)) for i, r in enumerate(rollouts)]
    trainer = trainer_for(policy_folder, step_tokenizer, rows, tmp_path, **values)
    perturb(trainer.model)
    data = trainer.train_dataset
    without, filled = (
        trainer.compute_loss(
            trainer.model, trainer.data_collator([data[i] for i in rows])["passes"][0]
        ).item()
        for rows in ([0, 1, 2], [0, 1, len(data), 2, len(data)])
    )
    assert filled == pytest.approx(without, rel=1e-6)
    only = trainer.compute_loss(trainer.model, trainer.data_collator([data[len(data)]] * 2)["passes"][0])
    only.backward()
    assert only.item() == 0
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert all(bool((p.grad == 0).all()) for p in trained)


def test_the_order_of_the_rows_has_a_seed_of_its_own(policy_folder, step_tokenizer, rollouts, tmp_path):
    def order(**seeds):
        return list(
            trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, **seeds)._get_train_sampler()
        )

    assert order(seed=0, data_seed=5) == order(seed=5) == order(seed=1, data_seed=5)
    assert order(seed=5, data_seed=0) == order(seed=0) != order(seed=5)
