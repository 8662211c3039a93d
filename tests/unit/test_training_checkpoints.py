"""Checkpoints while training: the best of them, precision, what is saved, and the export."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training_trainer import adapted, config, trainer_for

from rmtools.data.encoding import encode_row
from rmtools.data.rollouts import RolloutMetadata, Rollouts
from rmtools.errors import UserError
from rmtools.lm.card import CARD_FILE
from rmtools.lm.checkpoint import SETTINGS_FILE, fingerprint, load_value_model
from rmtools.lm.classifier import Float32Head, new_token_classifier
from rmtools.lm.export import export_merged
from rmtools.lm.value import ValueModel
from rmtools.particles.tilt import Tilt
from rmtools.training.config import CHECKPOINTING
from rmtools.training.metrics import ranking_warning
from rmtools.training.model_card import model_card
from rmtools.training.provenance import base_rate, checkpoint_settings
from rmtools.training.small_models import small_gpt2
from rmtools.training.trainer import PRMTrainer

# Evaluate and save at every optimiser step.
EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_the_base_rate_is_that_of_the_outcomes_where_there_are_any(rollouts):
    labelled = [replace(r, labels=[1.0] * len(r.steps)) for r in rollouts]
    assert base_rate(labelled) == pytest.approx(np.mean([r.reward for r in rollouts]))
    assert base_rate([replace(r, reward=None) for r in labelled]) == 1.0


def test_the_card_has_the_last_metrics(remembered):
    log = [{"step": 1, "eval_brier": 0.4}, {"step": 2, "loss": 1.0}, {"step": 3, "eval_brier": 0.25}]
    described = replace(remembered, training={**remembered.training, "global_steps": 3})
    text = str(model_card(described, log))
    assert "after 3 optimiser steps" in text
    assert "| brier | 0.25 |" in text


@pytest.mark.parametrize(
    ("metric", "greater"), [("rms_log_bellman", False), ("auc", True), ("last_auc", True)]
)
def test_the_best_checkpoint_is_what_is_saved(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered, metric, greater
):
    """The learning rate is so high that the metric goes up and down."""
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts[12:],
        tmp_path,
        rollouts[:12],
        settings=remembered,
        max_steps=6,
        learning_rate=0.3,
        **EVERY_STEP,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.train()
    seen = {
        row["step"]: row[f"eval_{metric}"] for row in trainer.state.log_history if f"eval_{metric}" in row
    }
    best = (max if greater else min)(seen.values())
    assert trainer.state.best_metric == best
    assert len(set(seen.values())) > 1
    assert trainer.evaluate()[f"eval_{metric}"] == pytest.approx(best, rel=1e-5)


def test_a_metric_that_the_held_out_rows_do_not_resolve(policy_folder, step_tokenizer, rollouts, tmp_path):
    """All held-out outcomes are equal: there is no AUC."""
    failed = [replace(r, reward=0.0) for r in rollouts[12:]]
    with pytest.raises(UserError, match=r"metric_for_best_model is auc.*brier, ece"):
        trainer_for(
            policy_folder,
            step_tokenizer,
            rollouts[:12],
            tmp_path,
            failed,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            metric_for_best_model="auc",
        )


def test_a_checkpoint_while_training_is_a_checkpoint(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered
):
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts,
        tmp_path,
        settings=remembered,
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    folder = tmp_path / "out" / "checkpoint-2"
    _, settings = load_value_model(folder)
    assert settings.training["global_steps"] == 2
    assert not (folder / "training_args.bin").exists()


def test_the_model_card_has_the_figures(policy_folder, step_tokenizer, rollouts, tmp_path, remembered):
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts[:12],
        tmp_path,
        rollouts[12:],
        settings=remembered,
        eval_strategy="steps",
        eval_steps=3,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "prm"))
    card = (tmp_path / "prm" / CARD_FILE).read_text()
    figures = next(row for row in trainer.state.log_history if "eval_brier" in row)
    for name in ("brier", "ece", "rms_log_bellman", "t_rms_log_bellman", "constant_rms_log_bellman"):
        assert f"| {name} | {figures[f'eval_{name}']:.4g} |" in card
    assert str(tmp_path) not in card
    assert "`td_lambda`" in card
    written = json.loads((tmp_path / "prm" / SETTINGS_FILE).read_text())
    assert {"target", "divergence", "rollouts_fingerprint", "versions", "global_steps"} <= set(
        written["training"]
    )


def test_a_hub_model_is_identified_by_its_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--model"
    (folder / "snapshots" / "abc123").mkdir(parents=True)
    (folder / "snapshots" / "abc123" / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc123")
    assert fingerprint("some/model") == "abc123"
    assert fingerprint("some/other") == ""
    assert fingerprint("no model: at all") == ""
    assert fingerprint(tmp_path) == ""


# Precision and memory


def test_the_head_stays_in_fp32_under_bf16(policy_folder, step_tokenizer, rollouts, tmp_path):
    """Under autocast a plain head returns bf16 logits: three digits, where log values near the floor need six."""
    model = adapted(policy_folder)
    trainer = trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, model=model, bf16=True)
    seen, inner = [], model.base_model.model
    for module in (inner.score, inner.model.layers[0].mlp.down_proj):
        module.register_forward_hook(lambda m, i, out: seen.append((type(m).__name__, out.dtype)))
    trainer.train()
    assert len(losses(trainer)) == 3
    assert np.isfinite(losses(trainer)).all()
    assert {dtype for name, dtype in seen if name == "ModulesToSaveWrapper"} == {torch.float32}
    assert {dtype for name, dtype in seen if name == "Linear"} == {torch.bfloat16}


def test_a_head_loaded_in_bf16_computes_in_fp32(policy_folder):
    model = new_token_classifier(str(policy_folder), 0, dtype=torch.bfloat16)
    assert isinstance(model.score, Float32Head)
    assert model.score.weight.dtype == torch.float32
    assert next(model.model.parameters()).dtype == torch.bfloat16
    assert model(input_ids=torch.arange(4, 12)[None]).logits.dtype == torch.float32


@pytest.mark.parametrize("full", [False, True])
def test_activation_checkpointing_changes_memory_not_losses(
    policy_folder, step_tokenizer, rollouts, tmp_path, full
):
    found = []
    for on in (False, True):
        torch.manual_seed(3)
        model = new_token_classifier(str(policy_folder), 0) if full else adapted(policy_folder)
        trainer = trainer_for(
            policy_folder, step_tokenizer, rollouts, tmp_path, model=model, **{CHECKPOINTING: on}
        )
        trainer.train()
        found.append(losses(trainer))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_full_fine_tuning_moves_every_weight(policy_folder, step_tokenizer, rollouts, tmp_path, remembered):
    model = new_token_classifier(str(policy_folder), 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, model=model, settings=remembered)
    trainer.train()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if "embed" not in n)
    trainer.save_model(str(tmp_path / "prm"))
    again, _ = load_value_model(tmp_path / "prm")
    tree = [step_tokenizer.encode(r.prompt, r.steps) for r in rollouts[:3]]
    for a, b in zip(
        again.score(tree), ValueModel(model, step_tokenizer, Tilt(0.05)).score(tree), strict=True
    ):
        np.testing.assert_allclose(a.log_value, b.log_value, atol=1e-5)


def test_an_adapter_on_a_base_stored_in_bf16_reloads_to_its_own_values(
    policy_folder, step_tokenizer, rollouts, tmp_path, settings
):
    """Training is in fp32 unless asked otherwise, whatever the files hold: loading has to be, too."""
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(policy_folder, dtype=torch.bfloat16).save_pretrained(base)
    step_tokenizer.tokenizer.save_pretrained(base)
    metadata = RolloutMetadata(str(base), fingerprint(base), "crossing", 3, settings, 1.0, 5)
    remembered = checkpoint_settings(str(base), Rollouts(rollouts, metadata, "rollouts"), config(tmp_path))
    trainer = trainer_for(
        base, step_tokenizer, rollouts, tmp_path, settings=remembered, learning_rate=0.05, max_steps=6
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "prm"))
    export_merged(tmp_path / "prm", tmp_path / "merged")
    trees = [step_tokenizer.encode(r.prompt, r.steps) for r in rollouts[:4]]
    live = ValueModel(trainer.model, step_tokenizer, Tilt(0.05)).score(trees)
    for folder in ("prm", "merged"):
        for a, b in zip(live, load_value_model(tmp_path / folder)[0].score(trees), strict=True):
            np.testing.assert_allclose(b.log_value, a.log_value, atol=1e-5)


@pytest.mark.parametrize("kind", ["Phi", "Phi3", "Starcoder2"])
def test_dropout_is_off_under_every_name(tmp_path, kind):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "residual_dropout", "embedding_dropout"), 0.3)
    made = getattr(transformers, f"{kind}Config")(
        vocab_size=32, num_key_value_heads=2, pad_token_id=0, eos_token_id=2, bos_token_id=1, **sizes, **drops
    )
    getattr(transformers, f"{kind}ForCausalLM")(made).save_pretrained(tmp_path / kind)
    model = new_token_classifier(str(tmp_path / kind), 0).train()
    ids = torch.arange(4, 12)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


# Export


def plain_probabilities(folder, text):
    """P(right) after every token, by transformers alone: rmtools registers nothing with it."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model, tokenizer = (c.from_pretrained(folder) for c in (AutoModelForTokenClassification, AutoTokenizer))
    with torch.inference_mode():
        logits = model.eval()(**tokenizer(text, return_tensors="pt")).logits
    return torch.softmax(logits.double(), -1)[0, :, 1].numpy()


def test_adapter_merged_and_plain_values_agree(policy_folder, step_tokenizer, rollouts, tmp_path, remembered):
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts,
        tmp_path,
        settings=remembered,
        learning_rate=0.05,
        max_steps=6,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "prm"))
    export_merged(tmp_path / "prm", tmp_path / "merged")
    trees = [step_tokenizer.encode(r.prompt, r.steps) for r in rollouts[:4]]
    live = ValueModel(trainer.model, step_tokenizer, Tilt(0.05)).score(trees)
    reloaded = load_value_model(tmp_path / "prm")[0].score(trees)
    merged = load_value_model(tmp_path / "merged")[0].score(trees)
    for a, b, c in zip(live, reloaded, merged, strict=True):
        np.testing.assert_allclose(b.log_value, a.log_value, atol=1e-5)
        np.testing.assert_allclose(c.log_value, a.log_value, atol=1e-5)
    assert not np.allclose(live[0].log_value, live[0].log_value[0])
    row = rollouts[0]
    p = plain_probabilities(tmp_path / "merged", row.prompt + "".join(row.steps))[trees[0].reads]
    np.testing.assert_allclose(np.log(0.05 + 0.95 * p), live[0].log_value, atol=1e-5)


def test_export_over_something_else_is_refused(value_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        export_merged(value_folder, tmp_path)
    with pytest.raises(UserError, match="checkpoint itself"):
        export_merged(value_folder, value_folder)
    shutil.copytree(value_folder, tmp_path / "trained")
    with pytest.raises(UserError, match="holds something else"):
        export_merged(value_folder, tmp_path / "trained")
    shutil.rmtree(tmp_path / "trained")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


# The model card


def test_the_licence_is_that_of_the_base(policy_folder, remembered, tmp_path):
    """From the base's own card; left out if that is missing, damaged or silent."""
    import shutil

    from huggingface_hub import ModelCard

    base = tmp_path / "base"
    shutil.copytree(policy_folder, base)
    log = [{"step": 3, "eval_brier": 0.25, "eval_auc": float("nan")}]
    training = {**remembered.training, "global_steps": 3}
    settings = replace(remembered, base=str(base), training=training)
    for text, found in (("---\nlicense: mit\n---\n", "mit"), ("---\na: [\n---\n", None), ("# Mine\n", None)):
        (base / CARD_FILE).write_text(text)
        data = ModelCard(str(model_card(settings, log))).data
        assert data.license == found
    assert data.base_model == "base"
    assert data.datasets == ["crossing"]
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [("brier", 0.25)]


def test_a_card_needs_no_network(remembered, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("the card used the network"))
    training = {**remembered.training, "global_steps": 3}
    assert "base_model: some/model" in str(
        model_card(replace(remembered, base="some/model", training=training), [])
    )


RANKED = {"auc_within": 0.7, "auc_within_low": 0.6, "auc_within_high": 0.8, "brier": 0.2}
NOT_RANKED = {"auc_within": 0.48, "auc_within_low": 0.42, "auc_within_high": 0.54, "brier": 0.2}


@pytest.mark.parametrize(("figures", "warned"), [(RANKED, False), (NOT_RANKED, True)])
def test_a_best_checkpoint_that_does_not_rank_is_not_chosen_silently(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered, monkeypatch, caplog, figures, warned
):
    """The error is least at the first of two steps, whose figures are the card's."""
    seen = iter([1.2, 0.7, 0.9])  # the constant's, then each step's
    made = "rmtools.training.trainer.held_out_metrics"
    monkeypatch.setattr(made, lambda rows, scorer: {**figures, "rms_log_bellman": next(seen)})
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts[12:],
        tmp_path,
        rollouts[:12],
        settings=remembered,
        max_steps=2,
        **EVERY_STEP,
        load_best_model_at_end=True,
        metric_for_best_model="rms_log_bellman",
    )
    with caplog.at_level("WARNING"):
        trainer.train()
    said = [m for m in caplog.messages if "chosen by rms_log_bellman" in m]
    assert len(said) == warned
    assert all(text in m for m in said for text in ("0.7 against 1.2", "0.48 [0.42, 0.54]", "step 1"))
    trainer.save_model(str(tmp_path / "prm"))
    card = (tmp_path / "prm" / CARD_FILE).read_text()
    assert "after 1 optimiser steps" in card
    assert "| rms_log_bellman | 0.7 |" in card
    assert ("0.48 [0.42, 0.54]" in card) == warned


def test_consistency_that_improves_over_the_training_without_ranking_is_named():
    log = [{"step": s, **{f"eval_{k}": v for k, v in NOT_RANKED.items()}} for s in (10, 20)]
    log[0]["eval_rms_log_bellman"], log[1]["eval_rms_log_bellman"] = 0.9, 0.4
    assert "at the first evaluation (0.4 against 0.9" in ranking_warning(log)
    assert ranking_warning(log, 10) is None
    assert ranking_warning([]) is None


def test_it_stops_early_and_keeps_the_best(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered, monkeypatch, caplog
):
    """By auc_within: the error goes on falling while the ranking is lost. A resumed training counts on where it was."""
    ranking = {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.65, 4: 0.6, 5: 0.55}
    seen = iter(ranking)
    made = "rmtools.training.trainer.held_out_metrics"
    monkeypatch.setattr(
        made,
        lambda rows, scorer: {
            "auc_within": ranking[at := next(seen)],
            "rms_log_bellman": 1 / (1 + at),
            "brier": 0.2,
        },
    )
    options = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "early_stopping_patience": 2}

    def trained(**more):
        trainer = trainer_for(
            policy_folder,
            step_tokenizer,
            rollouts[12:],
            tmp_path,
            rollouts[:12],
            settings=remembered,
            **options,
            **more,
        )
        with caplog.at_level("WARNING"):
            trainer.train()
        return trainer

    trainer = trained()
    assert trainer.args.metric_for_best_model == "auc_within"
    assert (trainer.state.global_step, trainer.state.best_global_step) == (4, 2)
    assert any(
        "optimiser step 2 are kept: auc_within 0.7" in m and "stopped at step 4 of 6" in m
        for m in caplog.messages
    )
    best = load_value_model(tmp_path / "out" / "checkpoint-2")[0]
    trainer.save_model()
    trees = [step_tokenizer.encode(r.prompt, r.steps) for r in rollouts[:3]]
    for a, b in zip(load_value_model(tmp_path / "out")[0].score(trees), best.score(trees), strict=True):
        np.testing.assert_array_equal(a.log_value, b.log_value)
    assert "after 2 optimiser steps" in (tmp_path / "out" / CARD_FILE).read_text()
    seen = iter((0, 4))
    resumed = trained(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert (resumed.state.global_step, resumed.state.best_global_step) == (4, 2)


@pytest.mark.parametrize(
    ("figures", "metric", "greater"),
    [
        ({"auc_within": 0.5, "rms_log_bellman": 1.0, "brier": 0.2}, "auc_within", True),
        ({"rms_log_bellman": 1.0, "brier": 0.2, "auc": 0.5}, "brier", False),
        ({"label_auc": 0.5, "label_brier": 0.2}, "label_auc", True),
    ],
)
def test_the_default_metric_of_the_best_checkpoint_is_one_the_rows_resolve(
    policy_folder, step_tokenizer, rollouts, tmp_path, monkeypatch, figures, metric, greater
):
    monkeypatch.setattr("rmtools.training.trainer.held_out_metrics", lambda rows, scorer: figures)
    trainer = trainer_for(
        policy_folder, step_tokenizer, rollouts[12:], tmp_path, rollouts[:12], early_stopping_patience=1
    )
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == (metric, greater)


def test_a_best_checkpoint_without_an_evaluation_is_the_last_and_said(
    policy_folder, step_tokenizer, rollouts, tmp_path, caplog
):
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts[12:],
        tmp_path,
        rollouts[:12],
        max_steps=1,
        early_stopping_patience=1,
        eval_steps=1,
        eval_delay=50,
    )
    with caplog.at_level("WARNING"):
        trainer.train()
    assert any("never taken" in m for m in caplog.messages)


def test_early_stopping_needs_held_out_rows(policy_folder, step_tokenizer, rollouts, tmp_path):
    with pytest.raises(UserError, match="early_stopping_patience needs evaluations") as error:
        trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, early_stopping_patience=1)
    assert "load_best" not in error.value.fix


@pytest.mark.parametrize("peft_config", [None, "lora"])
def test_a_head_of_another_name(tokenizer, step_tokenizer, rollouts, tmp_path, peft_config):
    """GPT-2 calls its head classifier, and has a dropout of .1 in front of it unless told otherwise."""
    small_gpt2(tokenizer, 16, 1, 128, seed=0).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    arguments = config(tmp_path, max_steps=2)
    trainer = PRMTrainer(tmp_path / "gpt2", arguments, rollouts[:8], peft_config=peft_config)
    trainer.train()
    trainer.save_model()
    loaded, settings = load_value_model(arguments.output_dir)
    assert isinstance(loaded.model.classifier, Float32Head)
    trees = [encode_row(r, step_tokenizer) for r in rollouts[:2]]
    trained = ValueModel(trainer.model, step_tokenizer, Tilt(settings.floor))
    for a, b in zip(loaded.score(trees), trained.score(trees), strict=True):
        np.testing.assert_allclose(a.log_value, b.log_value, atol=1e-5)
    start, _ = loaded.start([step_tokenizer.prompt_ids(rollouts[0].prompt)])
    np.testing.assert_allclose(start, loaded.score(trees)[0].log_value[:1], atol=1e-5)
