"""Mistakes seen in other trainers of process reward models: each test fails where the mistake is made."""

import json
import math

import numpy as np
import pytest
import torch
from test_training_trainer import adapted, config, perturb, trainer_for

from rmtools.data.rollouts import Rollout
from rmtools.errors import UserError
from rmtools.lm.classifier import require_head
from rmtools.lm.value import ValueModel, log_value_from_logits
from rmtools.particles.tilt import Tilt
from rmtools.training.batching import Collator
from rmtools.training.examples import example, prepare
from rmtools.training.losses import bce
from rmtools.training.objective import Objective
from rmtools.training.trainer import PRMTrainer, require_whole_weights

STEPS = ["u r3 \n", "s r3 \n", "d r2 \n"]
ROW = Rollout("p", "r2 . \nc01 . \n", STEPS, None, labels=[0.75, None, 0.25])


def targets(row, step_tokenizer, floor=0.01):
    objective = Objective("labels", "bce", floor)
    log_target, known = objective.targets(Collator(0)([example(row, step_tokenizer, Tilt(floor))]))
    return ((log_target.exp() - floor) / (1 - floor))[0], known[0]


def test_a_soft_label_is_not_cast_to_zero(step_tokenizer):
    """int(0.75) is 0."""
    p, _ = targets(ROW, step_tokenizer)
    assert p[1].item() == pytest.approx(0.75, abs=1e-6)
    assert p[3].item() == pytest.approx(0.25, abs=1e-6)


def test_a_missing_label_is_not_cast_to_right(step_tokenizer):
    """-100 in a column of booleans is True."""
    _, known = targets(ROW, step_tokenizer)
    assert known.tolist() == [True, True, False, True]


def test_a_row_without_labels_after_truncation_does_not_make_the_loss_nan(
    policy_folder, step_tokenizer, tmp_path
):
    late = Rollout("late", ROW.prompt, STEPS, None, labels=[None, None, 1.0])
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        [ROW, late] * 4,
        tmp_path,
        target="labels",
        divergence="bce",
        max_length=12,
    )
    trainer.train()
    assert len(trainer.prepared.dropped) == 4
    assert all(math.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # plain peft's own
def test_the_head_is_saved_with_the_adapter(policy_folder, step_tokenizer, tmp_path):
    """And it is the trained one: values after reloading through plain peft are those before saving."""
    from peft import AutoPeftModelForTokenClassification

    model = adapted(policy_folder)
    perturb(model)
    trainer = trainer_for(policy_folder, step_tokenizer, [ROW] * 4, tmp_path, model=model, target="labels")
    trainer.save_model(str(tmp_path / "saved"))
    require_head(tmp_path / "saved")
    again = AutoPeftModelForTokenClassification.from_pretrained(str(tmp_path / "saved"), num_labels=2)
    ids = torch.arange(4, 12)[None]
    torch.testing.assert_close(again.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_all_linear_with_token_classification_does_not_wrap_the_head(policy_folder):
    """peft raises a TypeError unless the head is excluded."""
    model = adapted(policy_folder)
    assert not any("score" in n and "lora" in n for n, _ in model.named_parameters())


def test_the_default_task_type_is_not_believed(policy_folder):
    """trl's ModelConfig says CAUSAL_LM unless told otherwise."""
    from trl import ModelConfig

    assert ModelConfig().lora_task_type == "CAUSAL_LM"
    assert adapted(policy_folder).peft_config["default"].task_type == "TOKEN_CLS"


def test_logits_are_read_at_the_last_token_of_each_step(step_tokenizer):
    """One position off is the first token of the next step."""
    batch = Collator(0)([example(ROW, step_tokenizer, Tilt(0.01))])
    ends = batch["model"]["input_ids"][0, batch["reads"][0]]
    assert [step_tokenizer.tokenizer.decode([i]) for i in ends.tolist()] == ["\n"] * 4
    assert batch["reads"][0].tolist() == [5, 8, 11, 14]


def test_training_and_inference_see_the_same_tokens(policy_folder, step_tokenizer):
    """Training packs parts that were tokenised apart; inference reads step by step: the same ids, the same values."""
    model = adapted(policy_folder)
    perturb(model)
    scorer = ValueModel(model, step_tokenizer, Tilt(0.05))
    batch = Collator(0)([example(ROW, step_tokenizer, Tilt(0.05))])
    text = ROW.prompt + "".join(STEPS)
    assert batch["model"]["input_ids"][0].tolist() == step_tokenizer.tokenizer(text)["input_ids"]
    with torch.no_grad():
        logits = model(**batch["model"]).logits[0, batch["reads"][0]]
    trained_on = log_value_from_logits(logits, 0.05)
    value, state = scorer.start([step_tokenizer.prompt_ids(ROW.prompt)])
    seen = [value]
    for step in STEPS:
        value, state = scorer.advance(state, torch.tensor([step_tokenizer.step_ids(step)]))
        seen.append(value)
    np.testing.assert_allclose(torch.cat(seen), trained_on, atol=1e-5)


def test_no_separator_stands_between_prompt_and_first_step(step_tokenizer):
    """Documentation and code disagreed elsewhere: here the text is prompt and steps concatenated, nothing else."""
    tree = step_tokenizer.encode(ROW.prompt, STEPS)
    assert step_tokenizer.tokenizer.decode(tree.ids) == ROW.prompt + "".join(STEPS)
    assert tree.reads[0] == len(step_tokenizer.prompt_ids(ROW.prompt)) - 1


def test_log_probabilities_near_one_and_zero_are_exact():
    """log(1 - sigmoid(x) + 1e-10) in bf16 is 0 from x = 6 on; here it is -x, and so is its gradient."""
    logits = torch.tensor([[0.0, 20.0], [0.0, -20.0]], requires_grad=True)
    loss = bce(torch.tensor([0.0, 1.0]), logits)
    np.testing.assert_allclose(loss.detach(), [20.0, 20.0], rtol=1e-6)
    np.testing.assert_allclose(torch.autograd.grad(loss.sum(), logits)[0], [[-1, 1], [1, -1]], atol=1e-6)


def test_evaluation_on_training_rows_is_refused(policy_folder, step_tokenizer, tmp_path):
    with pytest.raises(UserError, match="1 prompts"):
        trainer_for(policy_folder, step_tokenizer, [ROW], tmp_path, [ROW], target="labels")


@pytest.mark.parametrize("limit", range(6, 16))
def test_labels_and_places_agree_after_truncation(step_tokenizer, limit):
    """Elsewhere the counts of placeholders and labels part."""
    row = Rollout("p", ROW.prompt, STEPS, 1.0, labels=[1.0, 0.5, 0.0])
    for one in prepare([row], step_tokenizer, Tilt(0.01), "mc", limit).examples:
        assert len(one.log_label) == one.length == len(one.tree.reads) - 1
        assert one.tree.reads[-1] == len(one.tree.ids) - 1 < limit


def test_the_averaged_copy_is_refused_where_weights_are_sharded():
    for engines, name in (((True, False), "FSDP"), ((False, True), "DeepSpeed")):
        with pytest.raises(UserError, match=name):
            require_whole_weights(*engines)
    require_whole_weights(False, False)


def test_own_fields_of_the_configuration_are_few(tmp_path):
    """At most twenty, and all of them are documented."""
    from dataclasses import fields

    from transformers import TrainingArguments

    from rmtools.training.config import PRMConfig

    inherited = {f.name for f in fields(TrainingArguments)}
    own = [f for f in fields(PRMConfig) if f.name not in inherited]
    assert len(own) <= 20
    assert all(f.metadata["help"] for f in own)
    assert json.loads(config(tmp_path).to_json_string())["target"]
    assert PRMTrainer.__mro__[1].__name__ == "Trainer"
