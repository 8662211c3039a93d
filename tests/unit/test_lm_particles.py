"""The laws of the particles: order of children, immutability, values that follow their prefix, independence."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rmtools.data.tasks import Crossing
from rmtools.errors import UserError
from rmtools.lm.implicit import ImplicitValue
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.tokenizers import word_tokenizer
from rmtools.lm.value import ConstantValue, ValueModel
from rmtools.particles.particle_gibbs import particle_gibbs
from rmtools.particles.protocol import only_looks
from rmtools.particles.smc import smc
from rmtools.particles.tilt import Tilt
from rmtools.sampling.sample_prompts import SamplerSettings, sample_prompts


def rng(seed=0):
    return np.random.default_rng(seed)


def start(policy, value, prompts, task, terminal="model"):
    return LMParticles.start(policy, value, prompts, terminal=terminal, reward=task.reward)


def values_of(particles, prompts, value, task, terminal):
    """The value of every prefix from its text alone, one pass a prefix."""
    rows = []
    for g, prompt in enumerate(prompts):
        row = []
        for steps, ended in zip(particles.steps()[g], particles.ended[g], strict=True):
            if ended and terminal == "verifier":
                row.append(float(value.tilt.log_potential(np.asarray(task.reward(prompt, steps)))))
            else:
                row.append(value.score([value.steps.encode(prompt, steps)])[0].log_value[-1])
        rows.append(row)
    return np.asarray(rows)


def test_root(policy, value, prompts, task):
    root = start(policy, value, [*prompts[:3], prompts[0]], task)
    assert root.shape == (4, 1)
    assert not root.ended.any()
    assert root.steps() == [[[]]] * 4
    assert root.log_value()[0, 0] == root.log_value()[3, 0]
    expected = [value.score([value.steps.encode(p, [])])[0].log_value[0] for p in prompts[:3]]
    np.testing.assert_allclose(root.log_value()[:3, 0], expected, atol=1e-5)


@pytest.mark.parametrize("terminal", ["model", "verifier"])
def test_values_are_those_of_the_text(policy, value, prompts, task, terminal):
    """After steps, selections with repetition and drops: as if every prefix were scored alone."""
    at = prompts[:3]
    particles = start(policy, value, at, task, terminal)
    draws = rng(3)
    for _ in range(task.horizon):
        particles = particles.extend(4, draws)
        np.testing.assert_allclose(
            particles.log_value(), values_of(particles, at, value, task, terminal), atol=2e-5
        )
        particles = particles.select(draws.integers(particles.shape[1], size=(3, 5)))
        np.testing.assert_allclose(
            particles.log_value(), values_of(particles, at, value, task, terminal), atol=2e-5
        )
    assert particles.ended.all()
    if terminal == "verifier":
        assert set(np.round(np.exp(particles.log_value()), 6).ravel()) <= {value.tilt.floor, 1.0}


def test_terminal_is_what_separates_the_last_values(policy, value, prompts, task):
    ends = {}
    for terminal in ("model", "verifier"):
        particles = start(policy, value, prompts[:2], task, terminal)
        for t in range(task.horizon):
            particles = particles.extend(8 if t == 0 else 1, rng(t))
        ends[terminal] = particles
    assert ends["model"].steps() == ends["verifier"].steps()
    assert not np.allclose(ends["model"].log_value(), ends["verifier"].log_value())


def test_extending_twice_from_the_same_object(policy, value, prompts, task):
    """Neither extension sees the other, and the parent stays what it was."""
    parent = start(policy, value, prompts[:2], task, "verifier").extend(6, rng(0))
    steps, values = parent.steps(), parent.log_value().copy()
    one = parent.extend(2, rng(1))
    other = parent.extend(2, rng(2)).extend(1, rng(3))
    again = parent.extend(2, rng(1))
    assert parent.steps() == steps
    np.testing.assert_array_equal(parent.log_value(), values)
    assert one.steps() == again.steps()
    assert one.steps() != other.steps()
    np.testing.assert_array_equal(one.log_value(), again.log_value())
    np.testing.assert_allclose(
        other.log_value(), values_of(other, prompts[:2], value, task, "verifier"), atol=2e-5
    )


@pytest.mark.parametrize("terminal", ["model", "verifier"])
def test_ended_prefixes_keep_no_cache(policy, value, prompts, task, terminal):
    particles = start(policy, value, prompts[:2], task, terminal)
    assert len(particles.state.cache) == 2
    for t in range(task.horizon):
        particles = particles.extend(6 if t == 0 else 1, rng(t))
        live = int((~particles.ended).sum())
        assert len(particles.state.cache) == len(particles.scored) <= live
    assert len(particles.state.cache) == 0


def test_a_step_at_the_length_limit_is_counted(policy, value, prompts, task, tokenizer):
    short = StepSettings(task.delimiter, task.horizon, max_step_tokens=2)
    steps = StepTokenizer(tokenizer, short)
    at = (Policy(policy.model, steps), ValueModel(value.model, steps, value.tilt))
    particles = start(*at, prompts[:2], task).extend(50, rng(0))
    texts = [s[-1] for g in particles.steps() for s in g]
    expected = sum(not t.endswith(task.delimiter) and "<eos>" not in t for t in texts)
    assert 80 < particles.cut == expected
    full = start(policy, value, prompts[:2], task).extend(50, rng(0))
    assert full.cut < 5


@pytest.mark.parametrize("terminal", ["model", "verifier"])
def test_joined_prefixes_go_on_as_they_would_alone(policy, value, prompts, task, terminal):
    one = start(policy, value, prompts[:2], task, terminal).extend(3, rng(0))
    other = start(policy, value, prompts[:2], task, terminal).extend(2, rng(1))
    both = one.join(other)
    assert both.shape == (2, 5)
    assert both.steps() == [a + b for a, b in zip(one.steps(), other.steps(), strict=True)]
    np.testing.assert_array_equal(both.log_value(), np.hstack([one.log_value(), other.log_value()]))
    later = both.extend(2, rng(2)).select(np.asarray([[0, 9, 4], [8, 8, 1]]))
    np.testing.assert_allclose(
        later.log_value(), values_of(later, prompts[:2], value, task, terminal), atol=2e-5
    )
    over = other
    while not over.ended.all():
        over = over.extend(1, rng(3))
    mixed = later.join(over)
    assert mixed.steps() == [a + b for a, b in zip(later.steps(), over.steps(), strict=True)]
    mixed = mixed.extend(1, rng(4))
    assert [g[3:] for g in mixed.steps()] == over.steps()
    np.testing.assert_allclose(
        mixed.log_value(), values_of(mixed, prompts[:2], value, task, terminal), atol=2e-5
    )


def test_particle_gibbs_on_a_language_model(policy, value, prompts, task):
    """The reference comes back unchanged where its slot is drawn, and its values are those of its text."""
    root = start(policy, value, prompts[:2], task, "verifier")
    first = particle_gibbs(root, 3, 1, rng=rng(0))
    result = particle_gibbs(root, 2, 6, rng=rng(1), reference=first.path)
    before = [g[0] for g in first.draws[0].steps()]
    for draw, kept in zip(result.draws, result.kept, strict=True):
        after = [g[0] for g in draw.steps()]
        assert all(a == b for a, b, same in zip(after, before, kept, strict=True) if same)
        np.testing.assert_allclose(
            draw.log_value(), values_of(draw, prompts[:2], value, task, "verifier"), atol=2e-5
        )
        before = after
    assert result.kept.any()
    assert not result.kept.all()


def test_tokens_are_counted_for_every_particle(policy, value, prompts, task):
    particles = start(policy, value, prompts[:2], task).extend(10, rng(0))
    for steps, decoded in zip(particles.steps(), particles.decoded, strict=True):
        by_hand = sum(len(policy.steps.step_ids(s[0])) for s in steps if s[0].endswith("\n"))
        assert decoded >= by_hand > 0
    assert len(set(particles.decoded.tolist())) == 2
    fewer = particles.select(np.zeros((2, 3), dtype=int))
    assert fewer.decoded.tolist() == particles.decoded.tolist()


def test_replicates_of_a_prompt_are_independent(policy, value, prompts, task):
    """Two groups of the same prompt agree on a step as often as independent draws do, and have the same law."""
    n = 3000
    pair = start(policy, value, [prompts[0]] * 2, task).extend(n, rng(5))
    a, b = ([s[0] for s in g] for g in pair.steps())
    kinds = sorted(set(a) | set(b))
    table = np.asarray([[x.count(k) for k in kinds] for x in (a, b)], float)
    common = table.sum(0) >= 10
    table = np.concatenate([table[:, common], table[:, ~common].sum(1, keepdims=True)], axis=1)
    assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > 1e-3
    p = table.sum(0) / (2 * n)
    agree = np.mean([x == y for x, y in zip(a, b, strict=True)])
    assert abs(agree - (p**2).sum()) < 4.5 * np.sqrt((p**2).sum() / n)


def test_values_do_not_depend_on_the_other_groups(policy, value, prompts, task):
    """The same prefix beside longer and other prompts: the same values to 1e-5."""
    many = start(policy, value, ["r2 . \n", *prompts], task).extend(12, rng(0)).extend(1, rng(1))
    alone = values_of(many, ["r2 . \n", *prompts], value, task, "model")
    np.testing.assert_allclose(many.log_value(), alone, atol=1e-5)


def test_a_constant_value_samples_too(policy, value, prompts, task):
    constant = ConstantValue(0.3, value.steps, value.tilt)
    particles = start(policy, constant, prompts[:2], task, "verifier").extend(4, rng(0))
    np.testing.assert_allclose(particles.log_value(), np.log(0.05 + 0.95 * 0.3))


def test_a_verifier_must_be_there(policy, value, prompts):
    with pytest.raises(UserError, match="'verifier'"):
        LMParticles.start(policy, value, prompts[:1], terminal="verifier")
    with pytest.raises(UserError, match="verifier, model"):
        LMParticles.start(policy, value, prompts[:1], terminal="judge")


class Wrong(ConstantValue):
    """A constant whose value at the second of the prefixes read after ``steps`` steps is another one."""

    def __init__(self, policy, steps, change):
        super().__init__(0.5, policy.steps, Tilt(0.05))
        self.left, self.change = steps, change

    def advance(self, state, tokens):
        values, state = super().advance(state, tokens)
        self.left -= 1
        return (self.change(values) if self.left == -1 else values), state


def with_second(number):
    return lambda values: torch.where(torch.arange(len(values)) == 1, number, values)


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_second(math.nan), ["NaN", "prefix"]),
        (with_second(math.inf), ["inf", "prefix"]),
        (with_second(0.3), ["0.3", "[-2.99573, 0]"]),
        (with_second(-4.0), ["-4", "[-2.99573, 0]"]),
        (with_second(-math.inf), ["-inf", "[-2.99573, 0]"]),
        (lambda values: values[1:], ["expected"]),
        (lambda values: values[:, None], ["expected"]),
        (lambda values: values.numpy(), ["ndarray", "expected"]),
    ],
)
def test_values_that_are_none_are_refused_where_they_enter(policy, prompts, steps, change, words):
    with pytest.raises(UserError) as error:
        LMParticles.start(policy, Wrong(policy, steps, change), prompts).extend(2, np.random.default_rng(0))
    assert all(word in error.value.fact for word in ["constant 0.5", *words]), error.value
    if steps == 0 and words[-1] != "expected":
        assert repr(prompts[1][-120:]) in error.value.fact
    elif words[-1] != "expected":  # the text of a step is in it, behind a prompt
        assert any(repr(p[-20:])[1:-1] in error.value.fact for p in prompts)


def test_a_value_above_1_is_allowed_if_it_is_no_probability_and_so_is_rounding(policy, prompts):
    value = Wrong(policy, 0, with_second(0.3))
    value.is_probability = False
    assert LMParticles.start(policy, value, prompts).log_value()[1, 0] == pytest.approx(0.3)
    rounded = Wrong(policy, 0, lambda values: with_second(1e-7)(values.float()))
    assert LMParticles.start(policy, rounded, prompts).log_value()[1, 0] == pytest.approx(1e-7)


def test_another_tokenizer_reads_the_text_of_the_steps(policy, value, prompts, task):
    words = task.vocabulary()
    other = StepTokenizer(word_tokenizer([*words[1:], words[0]]), value.steps.settings)
    reader = ValueModel(value.model, other, value.tilt, "other")
    particles = start(policy, reader, prompts[:2], task).extend(4, rng(0))
    np.testing.assert_allclose(
        particles.log_value(), values_of(particles, prompts[:2], reader, task, "model"), atol=2e-5
    )


def test_different_step_settings_are_refused(policy, value, prompts, task):
    longer = StepTokenizer(policy.steps.tokenizer, StepSettings("\n", 9))
    with pytest.raises(UserError, match="different step settings"):
        start(Policy(policy.model, longer), value, prompts[:1], task)


def test_a_prompt_that_is_too_long_is_refused(policy, value, task):
    long = Crossing(30).prompts(1, rng(0))[0][0]
    with pytest.raises(UserError, match=r"prompt 0\b.*\b93\b.*\b64\b"):
        start(policy, value, [long], task)


class Half:
    """A verifier that knows partial credit."""

    @staticmethod
    def reward(prompt, steps):
        return 0.25


def test_a_soft_reward_is_not_cast(policy, value, prompts, task):
    particles = LMParticles.start(policy, value, prompts[:1], terminal="verifier", reward=Half.reward)
    for t in range(task.horizon):
        particles = particles.extend(2 if t == 0 else 1, rng(t))
    np.testing.assert_allclose(particles.log_value(), float(Tilt(0.05).log_potential(np.asarray(0.25))))


@pytest.mark.parametrize("resampling", ["systematic", "none", "top_k"])
def test_records_of_the_sampler(policy, value, prompts, task, resampling):
    settings = SamplerSettings(6, 2, resampling, 0.5, "verifier")
    records = list(sample_prompts(policy, value, prompts[:3], settings, rng(0), task.reward))
    assert [r["prompt"] for r in records] == prompts[:3]
    for r in records:
        assert r["terminal"] == "verifier"
        assert (r["log_z"] is None) == (resampling == "top_k")
        assert len(r["samples"]) == 6
        assert len(r["ess"]) == len(r["ancestors"]) == task.horizon
        assert np.exp(
            [s["log_weight"] for s in r["samples"] if s["log_weight"] is not None]
        ).sum() == pytest.approx(1)
        assert all(s["reward"] == task.reward(r["prompt"], s["steps"]) for s in r["samples"])
        values = [s["log_value"] for s in r["samples"]]
        assert values[r["argmax"]] == max(values)
        # Keeping the best follows no law: there is nothing to draw.
        assert r["draw"] is None if resampling == "top_k" else 0 <= r["draw"] < 6


def test_records_without_a_verifier_and_bad_settings(policy, value, prompts):
    record = next(sample_prompts(policy, value, prompts[:1], SamplerSettings(3), rng(0)))
    assert "reward" not in record["samples"][0]
    assert "model's own last value" in record["estimates"]
    for wrong in ({"n_particles": 0}, {"n_particles": 2, "pool_size": 0}):
        with pytest.raises(UserError, match="at least 1"):
            SamplerSettings(**wrong)


def test_a_reference_shorter_than_the_run_stays_in_its_slot(uneven, value, prompts):
    """An ended reference is its own next prefix, while the particles beside it are extended further."""
    root = LMParticles.start(uneven, value, prompts)
    first = particle_gibbs(root, 4, 1, rng=np.random.default_rng(0))
    ends = [texts[0] for texts in first.path[-1].steps()]
    seen = []
    particle_gibbs(
        root,
        4,
        1,
        rng=np.random.default_rng(1),
        reference=first.path,
        observe=lambda s: seen.append(s.children.steps()),
    )
    assert len(seen) > min(map(len, ends))
    for t, texts in enumerate(seen, 1):
        assert [group[0] for group in texts] == [steps[:t] for steps in ends]


@pytest.mark.parametrize("ratio", [False, True])
@pytest.mark.parametrize(("m", "scheme"), [(1, "systematic"), (3, "multinomial"), (2, "top_k")])
def test_a_run_that_no_one_selects_from_frees_its_caches(policy, value, prompts, task, m, scheme, ratio):
    """Same draws and values; an observer that only looks meets parents without keys and values, another one usable parents."""
    if ratio:
        value = ImplicitValue(Policy(policy.model, policy.steps, 1.5), policy, value.tilt)
    terminal = "verifier" if m == 3 else "model"
    root = start(policy, value, prompts[:3], task, terminal)
    before = root.extend(4, rng(5))

    def held(particles):
        scored = particles.scored
        caches = [particles.state.cache, *([scored.target, scored.policy] if ratio else [scored])]
        return [c.nbytes for c in caches]

    def run(observe):
        return smc(root, 6, m, scheme, 0.9, rng(3), observe=observe)

    freed, steps = [], []

    @only_looks
    def look(step):
        if len(step.parents.state.cache) and (step.children.slot >= 0).any():
            freed.append(sum(held(step.parents)))
            assert min(held(step.children)) > 0

    one, other, watched = run(None), run(steps.append), run(look)
    assert len(freed) > 1
    assert not any(freed)
    for found in (one, watched):
        assert found.particles.steps() == other.particles.steps()
        for name in ("log_weights", "log_z", "ess", "ancestors"):
            np.testing.assert_array_equal(getattr(found, name), getattr(other, name))
        np.testing.assert_array_equal(found.particles.log_value(), other.particles.log_value())
    for step in steps:
        again, once_more = (step.parents.extend(2, rng(4)) for _ in range(2))
        assert again.steps() == once_more.steps()
        assert step.children.select(step.index).steps() == step.children.select(step.index).steps()
    # The root is what it was.
    assert root.extend(4, rng(5)).steps() == before.steps()


def test_particles_of_a_run_that_freed_its_caches_stay_usable(policy, value, prompts, task):
    particles = start(policy, value, prompts[:2], task).copied().extend(3, rng(0)).kept()
    one, other = particles.extend(2, rng(1)), particles.extend(2, rng(1))
    assert one.steps() == other.steps()
    np.testing.assert_array_equal(one.log_value(), other.log_value())


def test_prompts_that_do_not_fit_together_are_sampled_in_halves(policy, value, prompts, monkeypatch, caplog):
    """The copies of resampling included: whatever runs short, the rest of the work goes on."""
    select = LMParticles.select

    def short(self, index):
        if self.shape[0] > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return select(self, index)

    monkeypatch.setattr(LMParticles, "select", short)
    settings = SamplerSettings(4, 1, "systematic", 1.0)
    records = list(sample_prompts(policy, value, prompts[:3], settings, rng(0)))
    assert [r["prompt"] for r in records] == prompts[:3]
    assert "3 prompts" in caplog.text
    monkeypatch.setattr(LMParticles, "select", lambda self, index: torch.empty(1 << 60))
    with pytest.raises(UserError, match="one prompt"):
        list(sample_prompts(policy, value, prompts[:2], settings, rng(0)))


def test_islands_share_rows_and_draw_apart(policy, value, prompts, task):
    """Islands of two prompts draw what as many groups draw; equal prefixes of all islands of a prompt are one row."""
    k, n = 3, 4
    rows = []

    @only_looks
    def observe(step):
        live = step.children.slot >= 0
        texts = {(p, *steps) for p, g in enumerate(step.children.steps()) for steps in map(tuple, g)}
        rows.append((len(step.children.values), len(texts), int(live.sum()), len(step.children.state.ended)))

    joint = smc(
        start(policy, value, prompts[:2], task),
        k * n,
        1,
        "systematic",
        0.9,
        rng(4),
        observe=observe,
        islands=k,
    )
    apart = smc(
        start(policy, value, [p for p in prompts[:2] for _ in range(k)], task),
        n,
        1,
        "systematic",
        0.9,
        rng(4),
    )
    np.testing.assert_array_equal(joint.island_log_z.ravel(), apart.log_z)
    assert [s for g in joint.particles.steps() for s in g] == [s for g in apart.particles.steps() for s in g]
    assert joint.particles.decoded.tolist() == apart.particles.decoded.reshape(2, k).sum(axis=1).tolist()
    assert all(held == live for _, _, live, held in rows)
    first, texts, *_ = rows[0]
    assert first == texts < 2 * k * n  # some first steps are equal, and are held once
