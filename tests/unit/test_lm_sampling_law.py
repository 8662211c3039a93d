"""The law of a token: that of transformers' own processors, renormalised, whatever is left out."""

import math

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rmtools.errors import UserError
from rmtools.lm.sampling_law import BLOCK, FEW, FEW_WORDS, SamplingLaw, search_words

LAWS = [
    SamplingLaw(temperature=0.7),
    SamplingLaw(top_k=5),
    SamplingLaw(top_p=0.9),
    SamplingLaw(temperature=2.0, top_p=0.9999),
    SamplingLaw(min_p=0.1),
    SamplingLaw(temperature=0.5, top_k=40, top_p=0.8, min_p=0.05),
    SamplingLaw(temperature=1.5, top_k=2000, top_p=0.99),
]


def by_transformers(law, logits):
    """The same law from the processors that ``generate`` would use, in their order."""
    chain = [TemperatureLogitsWarper(law.temperature)] if law.temperature != 1 else []
    chain += [TopKLogitsWarper(law.top_k)] if law.top_k else []
    chain += [TopPLogitsWarper(law.top_p)] if law.top_p < 1 else []
    chain += [MinPLogitsWarper(law.min_p)] if law.min_p else []
    for warp in chain:
        logits = warp(None, logits)
    return logits.softmax(-1)


@pytest.mark.parametrize("law", LAWS, ids=SamplingLaw.described)
@pytest.mark.parametrize("words", [7, 3 * FEW])
def test_the_law_is_that_of_generate(law, words):
    logits = 3 * torch.randn(40, words, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, wanted = law.probabilities(logits), by_transformers(law, logits)
    torch.testing.assert_close(found, wanted, atol=1e-14, rtol=1e-12)
    assert ((found == 0) == (wanted == 0)).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(law.log_probabilities(logits), wanted.log(), atol=1e-12, rtol=1e-12)


def test_by_hand():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    for law, wanted in (
        (SamplingLaw(), [0.5, 0.25, 0.15, 0.1]),
        (SamplingLaw(top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (SamplingLaw(top_p=0.75), [2 / 3, 1 / 3, 0, 0]),
        (SamplingLaw(top_p=0.76), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        (SamplingLaw(min_p=0.25), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
        (SamplingLaw(top_k=3, top_p=0.8, min_p=0.4), [2 / 3, 1 / 3, 0, 0]),
    ):
        torch.testing.assert_close(law.probabilities(logits), torch.tensor(wanted), msg=law.described())


def test_a_token_that_is_left_out_is_never_drawn():
    law, n = SamplingLaw(top_k=3), 20_000
    p = law.probabilities(torch.tensor([[0.0, -50.0, 0.0, 1.0, -1.0]]))
    drawn = search_words(p, torch.zeros(n, dtype=torch.long), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=5)
    assert counts[[1, 4]].tolist() == [0, 0]
    assert abs(counts[3] / n - p[0, 3]) < 4.5 * math.sqrt(0.25 / n)


@pytest.mark.parametrize("words", [3 * BLOCK, FEW_WORDS + 1, 20 * BLOCK + 7])
def test_words_of_large_vocabularies_are_drawn_by_their_probabilities(words):
    """Chi-square of 100 equally probable sets of words, on two rows; a block without probability, one with a single word."""
    rng = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(2, words, generator=rng)
    logits[0, : BLOCK + 1] = -math.inf
    logits[0, BLOCK // 2] = 4.0
    logits[1, -5:] = -math.inf
    p, n = logits.softmax(-1), 20_000
    drawn = search_words(p, torch.arange(2).repeat(n), rng).reshape(n, 2)
    for row in range(2):
        assert (p[row, drawn[:, row]] > 0).all()
        order = torch.randperm(words, generator=rng)
        sets = (p[row, order].double().cumsum(0) * 100).long().clamp(max=99)
        place = torch.empty_like(order).scatter(0, order, sets)
        expected = torch.zeros(100, dtype=torch.float64).index_add(0, place, p[row].double()) * n
        seen = torch.bincount(place[drawn[:, row]], minlength=100)
        square = ((seen - expected) ** 2 / expected)[expected > 5].sum()
        assert square < 99 + 5 * math.sqrt(2 * 99)


@pytest.mark.parametrize("law", LAWS, ids=SamplingLaw.described)
def test_nan_logits_are_not_hidden(law):
    logits = torch.zeros(2, 9)
    logits[1, 3] = math.nan
    found = law.probabilities(logits)
    assert torch.isnan(found[1]).all()
    assert not torch.isnan(found[0]).any()


WRONG = {
    "temperature": (0.0, math.nan),
    "top_k": (-1, 1.5),
    "top_p": (0.0, 1.01, math.nan),
    "min_p": (-0.1, 2.0),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"`{name}`"):
        SamplingLaw(**{name: value})
