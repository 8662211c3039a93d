"""Wrong arguments of the public face: each is refused in one sentence that names it, before work begins."""

from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch

import rmtools as rm
from rmtools.lm.prompt_format import PromptFormat
from rmtools.lm.value import ConstantValue

TILT = rm.Tilt(0.05)
RNG = np.random.default_rng(0)
MODEL = rm.families.product(horizon=4, ratio=2.0)


class Own:
    """A scorer as a user writes it, with one thing wrong at a time."""

    def __init__(self, steps, **changes):
        inner = ConstantValue(0.5, steps, TILT)
        for name in ("steps", "tilt", "name", "is_probability", "score", "start", "advance"):
            setattr(self, name, changes.get(name, getattr(inner, name)))
        self.steps = changes.get("tokenizer", steps)
        self.name = changes.get("name", "own")
        if "prompt_format" in changes:
            self.prompt_format = changes["prompt_format"]


def shifted(own, log_value):
    """The scorer of `own`'s kind whose every value is ``log_value``."""
    inner = ConstantValue(0.5, own.steps, TILT)

    def score(trees, progress=None):
        found = inner.score(trees, progress)
        return [
            replace(
                v, log_value=v.log_value * 0 + log_value, children=[c * 0 + log_value for c in v.children]
            )
            for v in found
        ]

    own.score = score
    own.start = lambda prompts: (torch.full((len(prompts),), log_value), inner.start(prompts)[1])
    own.advance = lambda state, tokens: (
        torch.full((len(tokens),), log_value),
        inner.advance(state, tokens)[1],
    )
    return own


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": lambda prompt, steps: 0}, ["own.score(prompt, steps)", "'steps'"]),
        ({"score": lambda trees, progress=None: 3}, ["own.score", "int"]),
        ({"score": lambda trees, progress=None: [0.5] * len(trees)}, ["own.score", "float", "list"]),
        ({"score": lambda trees, progress=None: []}, ["own", "0 of"]),
        ({"score": 3}, ["own.score", "method", "int"]),
        ({"tilt": 0.05}, ["own.tilt", "Tilt", "float"]),
        ({"name": 3}, ["3.name", "str", "int"]),
        ({"prompt_format": "chat"}, ["own.prompt_format", "'chat'"]),
    ],
)
def test_an_audited_scorer_is_checked(policy, rollouts, change, words):
    with pytest.raises(rm.UserError) as error:
        rm.audit(rollouts, Own(policy.steps, **change))
    assert all(word in error.value.fact for word in words), error.value
    assert error.value.fix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start": lambda prompts: 3}, ["own.start", "int"]),
        ({"start": lambda prompts: (1, 2, 3)}, ["own.start", "tuple of 3"]),
        ({"start": lambda: 3}, ["own.start()", "too many"]),
        ({"advance": lambda state, tokens: torch.zeros(1)}, ["own.advance", "Tensor"]),
        ({"tokenizer": "\n"}, ["own.steps", "StepTokenizer", "str"]),
        ({"prompt_format": "chat"}, ["own.prompt_format", "'chat'"]),
    ],
)
def test_a_sampled_scorer_is_checked(policy, prompts, change, words):
    with pytest.raises(rm.UserError) as error:
        rm.sample(Own(policy.steps, **change), prompts[:1], policy=policy, n_particles=2)
    assert all(word in error.value.fact for word in words), error.value
    assert error.value.fix


@pytest.mark.parametrize("log_value", [0.5, -4.0, -np.inf])
def test_audit_and_sampler_refuse_the_same_values_in_the_same_words(policy, prompts, rollouts, log_value):
    own = shifted(Own(policy.steps), log_value)
    errors = []
    for call in (
        lambda: rm.audit(rollouts, own),
        lambda: rm.sample(own, prompts[:1], policy=policy, n_particles=2),
    ):
        with pytest.raises(rm.UserError) as error:
            call()
        errors.append((error.value.fact.split(" at the prefix ")[0], error.value.fix))
        assert "r" in error.value.fact.split(" at the prefix ")[1]
    assert errors[0] == errors[1]
    assert errors[0][0].startswith("own gives")


def test_an_error_inside_a_scorer_keeps_its_traceback(policy, rollouts):
    def score(trees, progress=None):
        return 1 + "a"

    with pytest.raises(TypeError) as error:
        rm.audit(rollouts, Own(policy.steps, score=score))
    assert error.traceback[-1].name == "score"


def test_a_scorer_of_a_prompt_format_is_taken(policy, rollouts):
    report = rm.audit(rollouts, Own(policy.steps, prompt_format=PromptFormat()), controls=False)
    assert report.model.name == "own"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"delta_cv": "a"}, "`delta_cv`"),
        ({"delta_tv": None}, "`delta_tv`"),
        ({"progress": 3}, "`progress`"),
        ({"controls": "no"}, "`controls`"),
        ({"device": "gpu"}, "`device`"),
        ({"device": "mps"}, "`device`"),
        ({"device": 3.5}, "`device`"),
        ({"dtype": "float16"}, "`dtype`"),
        ({"task": "crosing"}, "crosing"),
        ({"task": 3}, "`task`"),
        ({"policy": 3}, "`policy`"),
        ({"compare": 3}, "`compare`"),
        ({"compare": "nowhere"}, "nowhere"),
    ],
)
def test_arguments_of_audit(policy, rollouts, change, word):
    with pytest.raises(rm.UserError) as error:
        rm.audit(rollouts, Own(policy.steps), **change)
    assert word in error.value.fact
    assert error.value.fix


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"device": "gpu"}, "`device`"),
        ({"trace": "no"}, "`trace`"),
        ({"progress": 3}, "`progress`"),
        ({"observe": 3}, "`observe`"),
    ],
)
def test_arguments_of_sample_are_checked_before_models_are_loaded(change, word):
    with pytest.raises(rm.UserError) as error:
        rm.sample("nowhere", ["a\n"], **change)
    assert word in error.value.fact


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda folder, s: rm.load_policy(folder, 8), "`settings`"),
        (lambda folder, s: rm.load_policy(folder, s, "hot"), "`temperature`"),
        (lambda folder, s: rm.load_policy(folder, s, device="gpu"), "`device`"),
        (lambda folder, s: rm.load_policy(3, s), "3"),
        (lambda folder, s: rm.load_policy(folder / "config.json", s), "file"),
        (lambda folder, s: rm.load_value_model(3), "3"),
        (lambda folder, s: rm.load_value_model(folder, device="gpu"), "`device`"),
        (lambda folder, s: rm.sample(str(folder / "config.json"), ["a\n"]), "file"),
    ],
)
def test_arguments_of_loaders(policy_folder, settings, call, word):
    with pytest.raises(rm.UserError) as error:
        call(policy_folder, settings)
    assert word in error.value.fact
    assert error.value.fix


ROWS = [{"prompt": "1 + 1?", "completions": ["It is 2."], "labels": [True]}]


def test_a_pandas_table_is_read_as_its_rows():
    frame = pandas.DataFrame(ROWS)
    assert list(rm.load_rollouts(frame)) == list(rm.load_rollouts(ROWS))
    with pytest.raises(rm.UserError) as error:
        rm.sample("nowhere", frame)
    assert "nowhere" in error.value.fact


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rm.families.random_tree(60, 3, 0.1, 0.1, RNG), ["10^28.8"]),
        (lambda: rm.families.implicit(60, 3, RNG), ["10^28.8"]),
        (lambda: rm.families.product(10**6, 2.0), ["product(1000000)", "10^11.7"]),
        (lambda: rm.families.persistent(10**9, 0.1), ["persistent"]),
        (lambda: rm.families.needle(10**9, 2), ["needle"]),
        (lambda: rm.families.hidden_prefix(10**9, 2), ["hidden_prefix"]),
        (lambda: rm.families.perturb(3, 0.1, "terminal", RNG), ["`model`", "int"]),
        (lambda: rm.solve(None), ["`model`", "NoneType"]),
        (lambda: rm.solve(MODEL.particles(groups=2)), ["`model`", "FiniteParticles"]),
        (lambda: rm.smc(MODEL.particles(groups=2), 4, rng=RNG, history="no"), ["`history`"]),
        (lambda: rm.load_rollouts(ROWS, skip_bad="no"), ["`skip_bad`"]),
        (lambda: rm.load_rollouts("nope.jsonl"), ["nope.jsonl", "no such folder or file"]),
    ],
)
def test_arguments_of_exact_models_and_data(call, words):
    with pytest.raises(rm.UserError) as error:
        call()
    assert all(word in error.value.fact for word in words), error.value
    assert error.value.fix


def test_the_largest_models_that_are_held():
    assert len(rm.families.product(2000, 2.0).log_value) == 2001
    assert len(rm.families.needle(10_000, 2).log_value) == 10_001


def test_one_model_and_names_are_taken_in_place_of_objects(policy_folder, value_folder, task):
    """`compare` of one model, the policy and the task by name, the device by its name: the same report."""
    rollouts = rm.collect_rollouts(
        policy_folder, 6, task=task, trajectories=2, children=2, max_step_tokens=6, seed=1
    )
    policy = rm.load_policy(policy_folder, rollouts.metadata.steps)
    options = {"controls": False, "prompts_limit": 3}
    named = rm.audit(
        rollouts,
        value_folder,
        compare=str(value_folder),
        policy=str(policy_folder),
        task="crossing",
        device="cpu",
        **options,
    )
    given = rm.audit(
        rollouts,
        value_folder,
        compare=[value_folder],
        policy=policy,
        task=task,
        **options,
    )
    assert str(named) == str(given)
    assert [m.role for m in named.models] == ["model", "compare 1"]
    own = Own(policy.steps)
    assert rm.audit(rollouts, own, compare=own, **options).models[1].role == "compare 1"
