"""The trainer end to end on a tiny model, its targets against a plain computation, and the checkpoint it writes."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import Child, Rollout, RolloutMetadata, Rollouts
from rmtools.errors import UserError
from rmtools.lm.checkpoint import SETTINGS_FILE, CheckpointSettings, fingerprint, load_value_model
from rmtools.lm.classifier import new_token_classifier, require_head
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepTokenizer
from rmtools.lm.value import ValueModel
from rmtools.particles.tilt import Tilt
from rmtools.training.config import PRMConfig
from rmtools.training.lora import lora_config, with_adapter
from rmtools.training.objective import read_values
from rmtools.training.provenance import LOG_FILE, checkpoint_settings
from rmtools.training.trainer import PRMTrainer


@pytest.fixture(scope="module")
def rollouts(policy, task, prompts):
    """Ragged rows with children and completions."""
    warm = Policy(policy.model, policy.steps, 1.6)
    rows = Collector(warm, task, Branching(2, 3, 2), np.random.default_rng(2)).collect(prompts)
    assert len({len(r.steps) for r in rows}) > 1
    return rows


def config(tmp_path, **changes):
    values = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "floor": 0.05,
        "disable_tqdm": True,
        "seed": 0,
        "dataloader_pin_memory": False,
    }
    return PRMConfig(**{**values, **changes})


def adapted(policy_folder):
    from trl import ModelConfig

    model = new_token_classifier(str(policy_folder), 0)
    return with_adapter(model, lora_config(ModelConfig(lora_r=4, lora_alpha=8)), 0)


def trainer_for(
    policy_folder, step_tokenizer, rows, tmp_path, held_out=(), model=None, settings=None, **changes
):
    return PRMTrainer(
        model or adapted(policy_folder),
        config(tmp_path, **changes),
        rows,
        held_out or None,
        step_tokenizer.tokenizer,
        steps=step_tokenizer.settings,
        settings=settings,
    )


def perturb(model, seed=0):
    """Random weights in adapters and head, so that values differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.2)


@pytest.mark.parametrize(
    ("target", "name"), [("td", "itakura_saito"), ("mc", "bce"), ("td_lambda", "poisson"), ("td", "mse")]
)
def test_three_steps_end_to_end(policy_folder, step_tokenizer, rollouts, tmp_path, target, name):
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts[:12],
        tmp_path,
        rollouts[12:],
        target=target,
        divergence=name,
        eval_strategy="steps",
        eval_steps=3,
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 3
    assert all(math.isfinite(x) for x in losses)
    metrics = next(row for row in trainer.state.log_history if "eval_brier" in row)
    assert 0 <= metrics["eval_brier"] <= 1
    assert math.isfinite(metrics["eval_mean_square_log_bellman"])
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert any("score" in n for n in moved)
    assert any("lora_A" in n or "lora_B" in n for n in moved)
    assert all("lora" in n or "modules_to_save" in n for n in moved)


def test_training_lowers_the_loss(policy_folder, step_tokenizer, rollouts, tmp_path):
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts,
        tmp_path,
        max_steps=25,
        target="mc",
        learning_rate=2e-2,
        per_device_train_batch_size=16,
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def batch_of(trainer, rows):
    from rmtools.training.examples import example

    (batch,) = trainer.data_collator([example(r, trainer.steps, trainer.tilt) for r in rows])["passes"]
    return batch


def log_targets(trainer, batch):
    """log U as the trainer makes them."""
    copy = trainer._bootstrap_values(trainer.model, batch)
    if copy is None and trainer.objective.bootstraps:
        with torch.no_grad():
            copy = read_values(trainer.model(**batch["model"]).logits, batch, trainer.args.floor)[1]
    return trainer.objective.targets(batch, copy)[0]


def plain_targets(rows, value, phi, lam):
    """log U by the definition, one prefix at a time, from the values of every text alone."""
    out = []
    for row in rows:
        ends = float(phi(row.reward))
        returns = [ends]
        for t in reversed(range(len(row.steps))):
            own = ends if t + 1 == len(row.steps) else value(row.prompt, row.steps[: t + 1])
            others = [
                phi(c.reward) if c.ended else value(row.prompt, [*row.steps[:t], c.text])
                for c in (row.children[t] if row.children else [])
            ]
            u = np.mean([own, *others])
            returns.append((1 - lam) * u + lam * returns[-1])
        out.append(returns[::-1])
    return out


RAGGED = [
    Rollout(
        "a",
        "r2 . \nc13 . \n",
        ["s r2 \n", "u x \n"],
        0.25,
        [[Child("d x \n", False, None)], [Child("s x \n", True, 0.0), Child("s r2 \n", True, 1.0)]],
        [[1.0, 0.5], [0.75, 0.0]],
    ),
    Rollout("b", "r1 . \n", ["u r2 \n"], 1.0, [[Child("\n", True, 0.5)]], [[0.0, 0.0]]),
    Rollout("c", "r0 . \nc13 . \nc02 . \n", ["s r0 \n", "s x \n", "s x \n"], 0.0),
]


@pytest.mark.parametrize(
    ("target", "lam"), [("td", 0.0), ("td_lambda", 0.0), ("td_lambda", 0.3), ("td_lambda", 1.0)]
)
def test_targets_are_the_definition(policy_folder, step_tokenizer, tmp_path, target, lam):
    model = adapted(policy_folder)
    perturb(model)
    trainer = trainer_for(
        policy_folder, step_tokenizer, RAGGED, tmp_path, model=model, target=target, td_lambda=lam
    )
    scorer = ValueModel(model, step_tokenizer, Tilt(0.05))

    def value(prompt, steps):
        return math.exp(scorer.score([step_tokenizer.encode(prompt, steps)])[0].log_value[-1])

    expected = plain_targets(RAGGED, value, lambda r: 0.05 + 0.95 * r, lam)
    found = log_targets(trainer, batch_of(trainer, RAGGED)).exp().numpy()
    for row, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(row[: len(e)], e, rtol=2e-5)


def test_monte_carlo_targets_and_the_loss_by_hand(policy_folder, step_tokenizer, tmp_path):
    """Soft rewards stay soft; the loss is the mean over real prefixes, root and end included."""
    model = adapted(policy_folder)
    perturb(model)
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        RAGGED,
        tmp_path,
        model=model,
        target="mc",
        per_device_train_batch_size=3,
    )
    batch = batch_of(trainer, RAGGED)
    means = [
        [np.mean([0.25, 1.0, 0.5]), np.mean([0.25, 0.75, 0.0]), 0.25],
        [np.mean([1.0, 0.0, 0.0]), 1.0],
        [0.0] * 4,
    ]
    found = log_targets(trainer, batch).exp().numpy()
    losses = []
    scored = ValueModel(model, step_tokenizer, Tilt(0.05)).score(
        [step_tokenizer.encode(r.prompt, r.steps) for r in RAGGED]
    )
    for row, m, s in zip(found, means, scored, strict=True):
        u = 0.05 + 0.95 * np.asarray(m)
        np.testing.assert_allclose(row[: len(m)], u, rtol=1e-5)
        ratio = u / np.exp(s.log_value)
        losses += (ratio - np.log(ratio) - 1).tolist()
    model.eval()
    assert trainer.compute_loss(model, batch).item() == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_no_gradient_flows_through_the_target(policy_folder, step_tokenizer, tmp_path, decay):
    """The gradient is that of the same loss with the targets as constants."""
    model = adapted(policy_folder)
    perturb(model)
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        RAGGED,
        tmp_path,
        model=model,
        ema_decay=decay,
        divergence="poisson",
        per_device_train_batch_size=3,
    )
    batch = batch_of(trainer, RAGGED)
    trainer.compute_loss(model, batch).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    u = log_targets(trainer, batch).exp()
    now = read_values(model(**batch["model"]).logits, batch, 0.05)[1].prefix
    real = torch.arange(4)[None] <= batch["length"][:, None]
    (((u * (u.log() - now) - u + now.exp()) * real).sum() / real.sum()).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "gae"},
        {"divergence": "kl"},
        {"td_lambda": 1.5},
        {"td_lambda": float("nan")},
        {"ema_decay": 1.0},
        {"ema_decay": -0.1},
        {"floor": 0.0},
        {"floor": 1.5},
    ],
)
def test_wrong_settings_are_refused(tmp_path, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        config(tmp_path, **changes)


def test_a_tokenizer_of_another_model_is_refused(policy_folder, step_tokenizer, rollouts, tmp_path):
    tokenizer = copy.deepcopy(step_tokenizer.tokenizer)
    tokenizer.add_tokens([f"<{i}>" for i in range(100)])
    other = StepTokenizer(tokenizer, step_tokenizer.settings)
    with pytest.raises(UserError, match="embeddings"):
        trainer_for(policy_folder, other, rollouts, tmp_path)


def test_held_out_rows_that_do_not_fit_are_left_out(policy_folder, step_tokenizer, rollouts, tmp_path):
    """A cut solution has no outcome of its own."""
    sizes = [len(step_tokenizer.encode(r.prompt, r.steps).ids) for r in rollouts]
    limit = max(sizes[12:]) - 1
    trainer = trainer_for(
        policy_folder, step_tokenizer, rollouts[:12], tmp_path, rollouts[12:], max_length=limit
    )
    assert len(trainer.eval_rollouts) == sum(size <= limit for size in sizes[12:]) < len(rollouts[12:])


def test_evaluation_leaves_the_model_training(policy_folder, step_tokenizer, rollouts, tmp_path):
    trainer = trainer_for(policy_folder, step_tokenizer, rollouts[:12], tmp_path, rollouts[12:])
    trainer.model.train()
    trainer.evaluate()
    assert trainer.model.training


def test_rows_that_do_not_tokenise_apart_are_refused(policy_folder, step_tokenizer, tmp_path):
    with pytest.raises(UserError, match="a step is empty"):
        trainer_for(policy_folder, step_tokenizer, [Rollout("a", "r2 . \n", ["u r3 \n", ""], 1.0)], tmp_path)


# Checkpoints


@pytest.fixture(scope="module")
def saved(policy_folder, step_tokenizer, rollouts, tmp_path_factory, settings):
    folder = tmp_path_factory.mktemp("train") / "prm"
    metadata = RolloutMetadata(
        str(policy_folder), fingerprint(policy_folder), "crossing", 3, settings, 1.6, 5
    )
    remembered = checkpoint_settings(
        str(policy_folder), Rollouts(rollouts, metadata, "rollouts"), config(folder.parent)
    )
    trainer = trainer_for(policy_folder, step_tokenizer, rollouts, folder.parent, settings=remembered)
    trainer.train()
    trainer.save_model(str(folder))
    return folder, trainer


def test_the_checkpoint_reloads_with_the_same_values(saved, step_tokenizer, rollouts):
    folder, trainer = saved
    require_head(folder)
    again, settings = load_value_model(folder)
    trees = [
        step_tokenizer.encode(r.prompt, r.steps, [[c.text for c in at] for at in r.children])
        for r in rollouts
    ]
    expected = ValueModel(trainer.model, step_tokenizer, Tilt(0.05)).score(trees)
    for a, b in zip(again.score(trees), expected, strict=True):
        np.testing.assert_allclose(a.log_value, b.log_value, atol=1e-5)
        np.testing.assert_allclose(np.concatenate(a.children), np.concatenate(b.children), atol=1e-5)
    assert (settings.task, settings.horizon, settings.temperature, settings.seed) == ("crossing", 3, 1.6, 0)
    assert settings.base_rate == pytest.approx(np.mean([r.reward for r in rollouts]))
    assert settings.training["target"] == "td_lambda"
    assert again.tilt == Tilt(0.05)


def test_the_checkpoint_holds_all_and_nothing_temporary(saved):
    folder, _ = saved
    names = {p.name for p in folder.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        SETTINGS_FILE,
        LOG_FILE,
        "tokenizer.json",
    } <= names
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]
    log = json.loads((folder / LOG_FILE).read_text())
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3]


def test_the_untrained_control_is_made_again_from_the_seed(saved, policy_folder, step_tokenizer, rollouts):
    folder, _ = saved
    untrained, _ = load_value_model(folder, untrained=True)
    fresh = ValueModel(new_token_classifier(str(policy_folder), 0), step_tokenizer, Tilt(0.05))
    trees = [step_tokenizer.encode(r.prompt, r.steps) for r in rollouts[:4]]
    for a, b in zip(untrained.score(trees), fresh.score(trees), strict=True):
        np.testing.assert_array_equal(a.log_value, b.log_value)
    trained = load_value_model(folder)[0].score(trees)
    assert not np.allclose(trained[-1].log_value, a.log_value)


def test_a_whole_model_is_a_checkpoint_too(policy_folder, step_tokenizer, value_folder, tmp_path, settings):
    model = new_token_classifier(str(policy_folder), 3)
    folder = tmp_path / "whole"
    model.save_pretrained(folder)
    step_tokenizer.tokenizer.save_pretrained(folder)
    CheckpointSettings.load(value_folder).save(folder)
    again, _ = load_value_model(folder)
    tree = [step_tokenizer.encode("r2 . \n", ["u r3 \n"])]
    np.testing.assert_allclose(
        again.score(tree)[0].log_value,
        ValueModel(model, step_tokenizer, Tilt(0.05)).score(tree)[0].log_value,
        atol=1e-6,
    )


def test_settings_name_the_policy_relative_to_the_checkpoint(saved, policy_folder, tmp_path, monkeypatch):
    """Both folders can be moved together, and loading does not depend on the working directory."""
    folder, _ = saved
    stored = json.loads((folder / SETTINGS_FILE).read_text())["policy"]
    assert (folder / stored).resolve() == policy_folder.resolve()
    monkeypatch.chdir(tmp_path)
    settings = CheckpointSettings.load(folder)
    assert (tmp_path / settings.policy).resolve() == policy_folder.resolve()
