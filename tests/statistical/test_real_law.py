"""Local decoding and ``generate`` follow one law on published tokenizers with several end tokens each.

The models draw every token from a law that is known (tests/assets.py), so the law of whole solutions is computed exactly:
which steps they have, where the delimiter, an end token or a limit ends them.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from assets import ASSETS, fixed_law_model, real_tokenizer, token_id
from scipy import stats

from rmtools.lm.policy import Policy, end_ids
from rmtools.lm.steps import StepSettings, StepTokenizer

NAMES = ["llama3_1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "gemma3"))]
SETTINGS = StepSettings("\n", max_steps=3, max_step_tokens=4)
N, BATCH = 300, 60
BY_GENERATE = 120  # it sorts and copies rows of 128,000 to 262,000 words


def model_of(name):
    """A law over words, newlines that hold a step or none, and the end tokens; the policy, and probabilities by id."""
    tokenizer, ends = real_tokenizer(name), ASSETS[name].end_tokens
    texts = {"\n": 0.2, "\n\n": 0.1, "a": 0.3, " b": 0.15}
    law = {token_id(tokenizer, text): p for text, p in texts.items()} | dict.fromkeys(ends, 0.25 / len(ends))
    model = fixed_law_model(name, law)
    steps = StepTokenizer(tokenizer, SETTINGS, end_ids(model.generation_config, tokenizer))
    return Policy(model, steps), law


def solutions(law, text_of, ends, least=1e-5):
    """The law of solutions, as tuples of token ids, by the definition of a step; (probability, steps) of each."""
    found, stack = {}, [((), (), 1.0)]  # finished steps, the one begun, probability
    while stack:
        done, begun, p = stack.pop()
        for i, q in law.items():
            if p * q < least:
                continue
            step = (*begun, i)
            before, newline, _ = "".join(map(text_of, step)).lstrip().partition("\n")
            over = i in ends
            closed = over or (before and newline) or len(step) == SETTINGS.max_step_tokens
            steps, rest = ((*done, step), ()) if closed else (done, step)
            if over or len(steps) == SETTINGS.max_steps:
                found[steps] = p * q
            else:
                stack.append((steps, rest, p * q))
    return found


def chi_square(drawn, exact):
    """p of drawn solutions against the exact law; cells of an expected count below 5 are one cell with the rest."""
    n = len(drawn)
    counts = Counter(drawn)
    cells = [s for s, p in exact.items() if p * n >= 5]
    seen = np.asarray([counts[s] for s in cells])
    expected = np.asarray([exact[s] for s in cells]) * n
    assert len(cells) >= 2
    return stats.chisquare([*seen, n - seen.sum()], [*expected, n - expected.sum()]).pvalue


def lengths(drawn, exact, most=5):
    """p of the numbers of tokens; solutions of up to ``most`` are all in ``exact``."""
    law, counts = Counter(), Counter(sum(map(len, steps)) for steps in drawn)
    for steps, p in exact.items():
        law[sum(map(len, steps))] += p
    seen = [counts[k] for k in range(1, most + 1)]
    expected = [law[k] * len(drawn) for k in range(1, most + 1)]
    return stats.chisquare([*seen, len(drawn) - sum(seen)], [*expected, len(drawn) - sum(expected)]).pvalue


def drawn_here(policy):
    found = []
    for batch in range(N // BATCH):
        generator = torch.Generator().manual_seed(batch)
        state, node = policy.start([policy.steps.prompt_ids("Q\n")]), torch.zeros(BATCH, dtype=torch.long)
        own = [()] * BATCH
        while not bool(state.ended[node].all()):
            step = policy.decode_step(state, node, generator)
            rows = [tuple(i for i in row if i >= 0) for row in step.tokens.tolist()]
            own = [(*s, rows[u]) if rows[u] else s for s, u in zip(own, step.node.tolist(), strict=True)]
            state, node = step.state, step.node
        found += own
    return found


def drawn_whole(policy):
    state = policy.start([policy.steps.prompt_ids("Q\n")])
    found = []
    for batch in range(N // BATCH):
        generator = torch.Generator().manual_seed(1000 + batch)
        found += policy.decode_solutions(state, torch.zeros(BATCH, dtype=torch.long), generator)
    return [tuple(map(tuple, steps)) for steps in found]


def drawn_by_generate(policy):
    found, rng = [], np.random.default_rng(5)
    most = SETTINGS.max_steps * SETTINGS.max_step_tokens
    for _ in range(BY_GENERATE // BATCH):
        ids = torch.tensor([policy.steps.prompt_ids("Q\n")] * BATCH)
        torch.manual_seed(int(rng.integers(2**63)))
        out = policy.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            max_new_tokens=most,
            top_k=0,
            pad_token_id=policy.steps.pad_id,
        )
        for row in out[:, ids.shape[1] :].tolist():
            end = next((k + 1 for k, i in enumerate(row) if i in policy.steps.end_ids), len(row))
            found.append(tuple(map(tuple, policy.steps.cut(row[:end])[: SETTINGS.max_steps])))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_decoding_and_generate_follow_the_exact_law(name):
    """``generate`` stops at the end tokens of the model's own settings, which the test does not pass to it."""
    policy, law = model_of(name)
    tokenizer = real_tokenizer(name)
    assert set(policy.steps.end_ids) == set(ASSETS[name].end_tokens)
    exact = solutions(law, lambda i: tokenizer.decode([i]), set(ASSETS[name].end_tokens))
    assert sum(exact.values()) > 0.8  # the rest is longer than any cell
    for drawn in (drawn_here(policy), drawn_whole(policy), drawn_by_generate(policy)):
        assert chi_square(drawn, exact) > 1e-4
        assert lengths(drawn, exact) > 1e-4


@pytest.mark.slow
def test_one_end_token_alone_is_another_law():
    """What the test above says of a policy that goes on behind all end tokens but the tokenizer's own."""
    policy, law = model_of("llama3_1")
    alone = Policy(policy.model, StepTokenizer(policy.steps.tokenizer, SETTINGS))
    exact = solutions(law, lambda i: alone.steps.tokenizer.decode([i]), set(policy.steps.end_ids))
    drawn = drawn_here(alone)
    assert chi_square(drawn, exact) < 1e-12
    assert lengths(drawn, exact) < 1e-12
