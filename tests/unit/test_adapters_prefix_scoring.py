"""Values of a scorer made of one function enter the helpers by one check of their shape."""

import numpy as np
import pytest
import torch

from rmtools.adapters.prefix_scoring import advance_prefixes, score_trees, start_prefixes
from rmtools.errors import UserError


def zeros(prompts, steps):
    return [0.0] * len(prompts)


def one_more(prompts, steps):
    return np.zeros(len(prompts) + 1)


def one_less(prompts, steps):
    return np.zeros(len(prompts) - 1)


def column(prompts, steps):
    return np.zeros((len(prompts), 1))


@pytest.mark.parametrize("wrong", [one_more, one_less, column])
def test_one_number_per_prefix(wrong, step_tokenizer, prompts):
    trees = [step_tokenizer.encode(p, ["s r1 \n", "s r2 \n"], [["u r2 \n"], []]) for p in prompts[:2]]
    ids = [step_tokenizer.prompt_ids(p) for p in prompts[:3]]
    _, state = start_prefixes(ids, step_tokenizer, zeros)
    tokens = torch.tensor([[1], [-1], [2]])
    for call in (
        lambda f: score_trees(trees, step_tokenizer, f),
        lambda f: start_prefixes(ids, step_tokenizer, f),
        lambda f: advance_prefixes(state, tokens, f),
    ):
        with pytest.raises(UserError, match=wrong.__name__):
            call(wrong)
    values = score_trees(trees, step_tokenizer, zeros)
    assert [(v.log_value.shape, [c.shape for c in v.children]) for v in values] == [((3,), [(1,), (0,)])] * 2
    assert torch.isnan(advance_prefixes(state, tokens, zeros)[0]).tolist() == [False, True, False]
