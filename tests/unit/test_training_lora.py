"""The model that is trained: a seeded head, adapters beside it, no dropout."""

import pytest
import torch

from rmtools.lm.classifier import new_token_classifier
from rmtools.training.lora import lora_config, with_adapter


def test_seeds_of_the_head(policy_folder):
    a, b, c = (new_token_classifier(str(policy_folder), s).score.weight for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("targets", [None, ["all-linear"], ["q_proj", "v_proj"]])
def test_lora_leaves_the_head_whole(policy_folder, targets):
    from trl import ModelConfig

    config = lora_config(ModelConfig(lora_target_modules=targets))
    model = with_adapter(new_token_classifier(str(policy_folder), 0), config, 0)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("score.modules_to_save" in n for n in names)
    assert not any("score" in n and "lora" in n for n in names)
    assert any("lora" in n for n in names)


def test_the_flags_of_lora_reach_it():
    from trl import ModelConfig

    flags = {"lora_r": 3, "lora_alpha": 24, "use_rslora": True, "use_dora": True}
    found = lora_config(ModelConfig(**flags))
    assert (found.r, found.lora_alpha, found.use_rslora, found.use_dora) == (3, 24, True, True)
    assert (found.lora_dropout, found.bias) == (0.0, "none")


def test_the_classifier_has_no_dropout(policy_folder):
    """In training mode two passes agree: dropout would perturb the bootstrap target too."""
    model = new_token_classifier(str(policy_folder), 0).train()
    assert all(m.p == 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    ids = torch.arange(4, 12)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
