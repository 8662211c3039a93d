"""The claim's parts: tables, looked-up values, the search for the needed N, consistency, stages and prompts."""

import itertools
import math

import numpy as np
import pytest
import torch

from rmtools.core import solve
from rmtools.data.tasks.crossing import MOVES, Crossing
from rmtools.errors import UserError
from rmtools.exact import families
from rmtools.exact.bounds import persistent_sigma2
from rmtools.lm.enumerate import enumerate_prefixes
from rmtools.lm.particles import LMParticles
from rmtools.lm.tokenizers import word_tokenizer
from rmtools.particles.smc import smc
from rmtools.particles.tilt import Tilt
from rmtools.verify.scaling.baselines import measure_baseline
from rmtools.verify.scaling.exact_families import measure_family
from rmtools.verify.scaling.measure import SAMPLERS, Runs, run_models, run_tables, search
from rmtools.verify.scaling.points import Setting, consistency, measure_variance
from rmtools.verify.scaling.policy import _point_at_columns
from rmtools.verify.scaling.prompts import alike_prompts, random_success
from rmtools.verify.scaling.stages import Stages
from rmtools.verify.scaling.tables import enumerate_states, load_tables, merge_states, save_tables
from rmtools.verify.scaling.values import TableValue, exact_values, planted_values

TILT = Tilt(0.02)


@pytest.fixture(scope="module")
def tables(policy, task, prompts):
    return [enumerate_states(policy, task, p, 1e-3) for p in prompts[:3]]


@pytest.fixture(scope="module")
def choices(task):
    return task.step_choices("", [])


def looked_up(tables, values, choices, policy):
    return TableValue(tables, values, choices, policy.steps, TILT, "table")


def test_every_prefix_a_state_is_the_enumeration(policy, task, value, choices, tables):
    table = tables[0]
    found = enumerate_prefixes(policy, table.prompt, choices, task.reward, 1e-3)
    assert table.uncovered == pytest.approx(found.uncovered, abs=1e-9)
    assert sorted(map(len, table.rules)) == sorted(map(len, found.rules))
    by_table, by_enumeration = solve(table.model(table.log_values(value))), solve(found.score(value).model)
    for name in ("log_z", "sigma2", "bellman_error", "sigma2_true_value"):
        assert getattr(by_table, name) == pytest.approx(getattr(by_enumeration, name), rel=1e-5)
    reach = np.exp(found.score(value).model.log_reach[-1])
    assert table.success == pytest.approx(reach @ found.rewards, abs=1e-9)


def test_merged_tables_are_exact_where_merged_prefixes_are_one(policy, task, prompts):
    """After one step the first is the last: every state is one prefix, and its law the policy's."""
    rng = np.random.default_rng(0)
    merged = merge_states(policy, task, prompts[0], 3, rng, 1e-3)
    whole = enumerate_states(policy, task, prompts[0], 1e-3)
    for t in (0, 1):
        np.testing.assert_allclose(
            np.sort(merged.rules[t], axis=0), np.sort(whole.rules[t], axis=0), atol=1e-6
        )
    assert len(merged.rewards) < len(whole.rewards)
    assert len(merged.layers[-1].state) <= 3 * len(merged.rewards)
    # Few prefixes stand for a state: a mean over them, not the truth.
    assert merged.success == pytest.approx(whole.success, rel=0.3)


def test_values_of_merged_states_are_means_over_their_prefixes(policy, task, value, prompts):
    table = merge_states(policy, task, prompts[0], 2, np.random.default_rng(0), 1e-3)
    found = table.log_values(value)
    read, scored = value.start([value.steps.prompt_ids(table.prompt)])
    for t, layer in enumerate(table.layers[:-1], start=1):
        read, scored = value.advance(scored.select(layer.parent), layer.tokens)
        for s in range(len(found[t])):
            own = np.exp(read.double().numpy()[layer.state == s])
            assert len(own) >= 1
            assert math.exp(found[t][s]) == pytest.approx(own.mean(), rel=1e-5)


def test_tables_come_back(tables, value, tmp_path):
    save_tables(tmp_path / "t.npz", tables)
    for a, b in zip(tables, load_tables(tmp_path / "t.npz"), strict=True):
        assert a.prompt == b.prompt
        assert a.uncovered == b.uncovered
        for x, y in zip(a.log_values(value), b.log_values(value), strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(a.probability[0], b.probability[0])


def test_a_prefix_has_the_value_of_its_state(policy, tables, choices):
    values = [exact_values(t, TILT) for t in tables]
    scorer = looked_up(tables, values, choices, policy)
    ids = [policy.steps.prompt_ids(t.prompt) for t in tables]
    read, state = scorer.start(ids)
    np.testing.assert_allclose(read, [v[0][0] for v in values])
    rng, at = np.random.default_rng(1), np.zeros(len(tables), dtype=int)
    for t in range(tables[0].horizon):
        chosen = [
            int(rng.choice(np.flatnonzero(table.rules[t][s]))) for table, s in zip(tables, at, strict=True)
        ]
        at = np.asarray([table.children[t][s, c] for table, s, c in zip(tables, at, chosen, strict=True)])
        tokens = torch.tensor([policy.steps.step_ids(choices[c]) for c in chosen])
        read, state = scorer.advance(state, tokens)
        np.testing.assert_allclose(read, [v[t + 1][s] for v, s in zip(values, at, strict=True)])
    # Without a new token a prefix stays; of a step that no table lists it has the floor's value.
    still, _ = scorer.advance(state, torch.full((len(tables), 3), -1))
    np.testing.assert_array_equal(still, read)
    lost, state = scorer.advance(scorer.start(ids)[1], torch.full((len(tables), 2), policy.steps.pad_id))
    np.testing.assert_allclose(lost, math.log(TILT.floor))
    again, _ = scorer.advance(state, torch.tensor([policy.steps.step_ids(choices[0])] * len(tables)))
    np.testing.assert_allclose(again, math.log(TILT.floor))
    with pytest.raises(UserError, match="growing"):
        scorer.score([])


def test_the_sampler_estimates_z_with_looked_up_values(policy, task, tables, choices):
    """The exact value of listed steps: what leaves the table has the floor's potential."""
    table = tables[0]
    scorer = looked_up([table], [exact_values(table, TILT)], choices, policy)
    root = LMParticles.start(policy, scorer, [table.prompt] * 400, terminal="verifier", reward=task.reward)
    z = np.exp(smc(root, 8, rng=np.random.default_rng(3), islands=1).log_z)
    truth = TILT.floor + (1 - TILT.floor) * table.success * (1 - table.uncovered)
    assert abs(z.mean() - truth) <= 4.5 * z.std(ddof=1) / 20


def test_the_planted_bias_is_the_bellman_error_and_leaves_ends_exact(tables):
    for table in tables:
        exact, planted = exact_values(table, TILT), planted_values(table, TILT, 0.2)
        np.testing.assert_array_equal(planted[0], exact[0])
        np.testing.assert_array_equal(planted[-1], exact[-1])
        off = [np.abs(p - e) for p, e in zip(planted, exact, strict=True)]
        for t in (1, 2):
            np.testing.assert_allclose(off[t], math.log(1.2) * min(t, table.horizon - t), atol=1e-12)
        solved = solve(table.model(planted))
        assert solved.bellman_error == pytest.approx(0.2, rel=1e-6)
        # Prefixes that share the first step share the sign: the class of target probability nearest 1/2.
        share = table.rules[0][0] * np.exp(exact[1][table.children[0][0]])
        share = share[share > 0] / share.sum()
        sign = np.sign(planted[1] - exact[1])
        best = min(
            abs(sum(c) - 0.5) for r in range(1, len(share) + 1) for c in itertools.combinations(share, r)
        )
        mass = sum(s for s, x in zip(share, sign, strict=True) if x < 0)
        assert abs(mass - 0.5) == pytest.approx(best, abs=1e-9)


def test_runs_of_models_and_tables_have_one_law(policy, task, tables, choices):
    """Shares of right solutions and Zhat of the language models against those of the finite models."""
    values = [exact_values(t, TILT) for t in tables]
    rng = np.random.default_rng(5)
    scorer = looked_up(tables, values, choices, policy)
    prompts = [t.prompt for t in tables]
    of_models = run_models(policy, scorer, task, prompts, SAMPLERS["every-step"], rng)(6, 300)
    models = [t.model(v) for t, v in zip(tables, values, strict=True)]
    of_tables = run_tables(models, TILT, SAMPLERS["every-step"], rng)(6, 4000)
    assert of_models.log_z.shape == (3, 300)
    assert of_models.resampled == of_tables.resampled == task.horizon - 1
    assert of_models.tokens > 6 * task.horizon
    uncovered = max(t.uncovered for t in tables)
    for a, b in ((np.exp(of_models.log_z), np.exp(of_tables.log_z)), (of_models.right, of_tables.right)):
        error = np.hypot(a.std(axis=1) / math.sqrt(300), b.std(axis=1) / math.sqrt(4000))
        assert (np.abs(a.mean(axis=1) - b.mean(axis=1)) <= 4.5 * error + uncovered * b.mean(axis=1)).all()


def law(variance, right=lambda n: 1.0):
    """Return runs of 64 prompts whose Zhat is log-normal with relative variance ``variance(n)``."""
    rng = np.random.default_rng(0)

    def run(n, k):
        s = math.sqrt(math.log1p(variance(n)))
        return Runs(n, s * rng.normal(size=(64, k)) - s * s / 2, np.full((64, k), right(n)), 0.0, float(n))

    return run


@pytest.mark.parametrize("predicted", [40, 160, 600])
def test_the_search_finds_the_needed_particles(predicted):
    found = search(
        law(lambda n: 10 / n, lambda n: 1 - 2 / n), predicted, 10**5, 0.25, 0.9, np.random.default_rng(1)
    )
    assert 160 / 1.6 <= found.n_for_cv.estimate <= 160 * 1.6
    assert found.n_for_cv.low <= found.n_for_cv.estimate <= (found.n_for_cv.high or math.inf)
    assert 20 <= found.n_for_success.estimate <= 40
    sizes = [t.n_particles for t in found.tried]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= 4 * predicted
    # Runs are spent where the answer is close.
    runs = {t.n_particles: t.runs for t in found.tried}
    assert runs[min(runs, key=lambda n: abs(n - 160))] == 8
    assert runs[sizes[0]] <= 4 or predicted == 40


def test_what_the_budget_does_not_reach_is_censored():
    found = search(law(lambda n: 10 / n), 160, 50, 0.25, 0.9, np.random.default_rng(1))
    assert found.n_for_cv is None
    assert found.tried[0].n_particles == 50
    assert found.n_for_success is not None
    found = search(law(lambda n: 10 / n, lambda n: 0.1), math.inf, 50, 0.25, 0.9, np.random.default_rng(1))
    assert (found.n_for_cv, found.n_for_success) == (None, None)


def test_far_below_the_prediction_only_the_largest_is_tried():
    found = search(law(lambda n: 1000 / n), 16000, 100, 0.25, 0.9, np.random.default_rng(1))
    assert (found.n_for_cv, [(t.n_particles, t.runs) for t in found.tried]) == (None, [(100, 2)])


def test_runs_that_find_nothing_right_show_no_accuracy():
    """Below 50 particles no run finds a right solution: all agree on the floor, and Zhat seems to have no variance."""
    found = search(
        law(lambda n: 10 / n if n > 50 else 1e-9, lambda n: float(n > 50)),
        4,
        40,
        0.25,
        0.9,
        np.random.default_rng(1),
    )
    assert (found.n_for_cv, found.n_for_success) == (None, None)
    found = search(
        law(lambda n: 10 / n if n > 50 else 1e-9, lambda n: float(n > 50)),
        9,
        10**4,
        0.25,
        0.9,
        np.random.default_rng(1),
    )
    assert found.n_for_cv.estimate > 100


def test_an_n_below_one_that_fails_is_not_needed_enough():
    """CV is not monotone in N: 32 particles fail where 16 do not."""
    found = search(
        law(lambda n: 1.0 if 20 < n < 50 else 0.01), 64, 10**4, 0.25, 0.9, np.random.default_rng(1)
    )
    assert found.n_for_cv.estimate >= 50


def test_consistency_against_paths():
    """Moments of b against sums over all paths of a small model."""
    model = families.random_tree(4, 2, 0.4, 0.05, np.random.default_rng(2))
    solved = solve(model)
    paths = list(itertools.product(range(2), repeat=4))
    rows = []
    for path in paths:
        s, p, q, b = 0, 1.0, 1.0, []
        for t, c in enumerate(path):
            b.append(solved.log_bellman_error[t][s])
            p, q = p * model.policy[t][s, c], q * model.target_policy[t][s, c]
            s = model.child(t)[s, c]
        rows.append((p, q, b))
    p, q = np.asarray([r[0] for r in rows]), np.asarray([r[1] for r in rows])
    b = np.asarray([r[2] for r in rows])
    found = consistency([model])
    assert p.sum() == pytest.approx(1)
    assert q.sum() == pytest.approx(1)
    assert found.rms_policy == pytest.approx(math.sqrt((p @ b**2).mean()))
    assert found.rms_target == pytest.approx(math.sqrt((q @ b**2).mean()))
    assert found.rms_gauge_fixed == pytest.approx(math.sqrt((q @ (b - q @ b) ** 2).mean()))
    assert found.path_sum == pytest.approx(q @ b.sum(axis=1))
    assert found.path_sum_sd == pytest.approx(math.sqrt(q @ (b.sum(axis=1) - q @ b.sum(axis=1)) ** 2))
    assert found.largest == pytest.approx(np.abs(b).max())
    assert (found.sigma2, found.sigma2_perfect) == pytest.approx((solved.sigma2, solved.sigma2_true_value))
    other = families.random_tree(4, 2, 0.1, 0.05, np.random.default_rng(3))
    z2, each = np.exp([2 * solve(m).log_z for m in (model, other)]), [solve(m).sigma2 for m in (model, other)]
    assert consistency([model, other]).sigma2 == pytest.approx(z2 @ each / z2.sum())


def test_variances_are_those_of_theory(setting):
    """N Var(Zhat / Z) of exact models is sigma^2, pooled; the interval covers it, and is as wide as the runs say."""
    models = [families.random_tree(4, 2, 0.4, 0.05, np.random.default_rng(seed)) for seed in range(8)]
    found = measure_variance(setting, None, models, True, np.random.default_rng(5))
    assert (found.source, found.runs) == ("tables", 128)
    assert found.n_particles >= 25 * found.sigma2 == 25 * consistency(models).sigma2
    assert found.relative.low < 1 < found.relative.high
    assert found.relative.estimate == pytest.approx(1, abs=0.15)
    # Eight variances of 128 runs each: a standard error of at least (2 / (8 * 127))^(1/2).
    assert found.relative.high - found.relative.low > 3 * math.sqrt(2 / (8 * 127))


def test_prompts_are_alike(task):
    assert random_success("r2 . \nc13 . \nc02 . \n") == pytest.approx(2 / 9)
    chosen = alike_prompts(task, 20, np.random.default_rng(0))
    drawn = task.prompts(200, np.random.default_rng(1))[0]
    assert len(set(chosen)) == 20
    spread = [np.std([math.log(random_success(p)) for p in some]) for some in (chosen, drawn)]
    assert spread[0] < spread[1] / 3


class TestStages:
    def open(self, folder, **configuration):
        return Stages.open(folder, configuration)

    def test_finished_ones_are_kept_and_an_interrupted_one_begins_again(self, tmp_path):
        made = []

        def make(path):
            made.append(path.name)
            path.mkdir()
            (path / "a").write_text("one")

        stages = self.open(tmp_path, n=1)
        stages.run("x", make)

        def interrupted(path):
            path.mkdir()
            (path / "half").write_text("")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stages.run("y", interrupted)
        again = self.open(tmp_path, n=1)
        again.run("x", make)
        again.run("y", make)
        assert made == ["x", "y"]
        assert sorted(p.name for p in (tmp_path / "y").iterdir()) == ["a"]
        assert set(self.open(tmp_path, n=1).done) == {"x", "y"}

    @pytest.mark.parametrize("change", ["edit", "add", "remove", "rename"])
    def test_what_was_changed_is_refused(self, tmp_path, change):
        def make(path):
            path.mkdir()
            (path / "a").write_text("one")

        self.open(tmp_path, n=1).run("x", make)
        file = tmp_path / "x" / "a"
        if change == "edit":
            file.write_text("two")
        elif change == "add":
            (tmp_path / "x" / "b").write_text("")
        elif change == "remove":
            file.unlink()
        else:
            file.rename(tmp_path / "x" / "c")
        with pytest.raises(UserError, match="the stage x left") as error:
            self.open(tmp_path, n=1)
        assert "remove" in str(error.value)

    def test_another_configuration_is_refused(self, tmp_path):
        self.open(tmp_path, n=1, seed=0).run("x", lambda path: path.write_text("one"))
        with pytest.raises(UserError, match=r"another configuration \(seed\)"):
            self.open(tmp_path, n=1, seed=2)


@pytest.fixture(scope="module")
def setting(policy, task, tables):
    return Setting(task, policy, tables, TILT, 0.25, 0.9, 1e5, 1024)


def test_rejection_succeeds_as_often_as_its_tables_say(setting, value):
    """At every N the share of prompts with a right solution is 1 - (1 - p)^N; the N needed is as the formula has it."""
    found = measure_baseline(setting, "rejection", "none", value, 1e6, np.random.default_rng(7))
    p = np.asarray([t.success * (1 - t.uncovered) for t in setting.tables])
    for trial in found.trials:
        law = 1 - (1 - p) ** trial.n_particles
        error = math.sqrt((law * (1 - law)).sum() / trial.runs) / len(p)
        assert abs(trial.success - law.mean()) <= 4.5 * error + max(t.uncovered for t in setting.tables)
        assert trial.value_tokens == 0
    least = next(n for n in itertools.count(1) if (1 - (1 - p) ** n).mean() >= found.asked)
    assert found.expected in (least, least - 1)
    assert found.n_for_success <= 2 * least


def test_other_methods_choose_as_they_are_named(setting):
    """A value that knows every reward makes each method right as soon as one of its solutions is."""
    values = [exact_values(t, TILT) for t in setting.tables]
    choices = setting.task.step_choices("", [])
    knows = looked_up(setting.tables, values, choices, setting.policy)
    for name in ("best-of-n", "beam", "smc"):
        found = measure_baseline(setting, name, "exact", knows, 1e5, np.random.default_rng(8))
        assert found.n_for_success is not None
        assert found.low <= found.n_for_success
        sizes = [t.n_particles for t in found.trials]
        assert sizes == sorted(sizes, reverse=True)
    # The best by a value that knows every reward is what rejection finds: right with 1 - (1 - p)^N.
    best = measure_baseline(setting, "best-of-n", "exact", knows, 1e5, np.random.default_rng(12))
    p = np.asarray([t.success * (1 - t.uncovered) for t in setting.tables])
    for trial in best.trials:
        law = 1 - (1 - p) ** trial.n_particles
        error = math.sqrt((law * (1 - law)).sum() / trial.runs) / len(p)
        assert abs(trial.success - law.mean()) <= 4.5 * error + max(t.uncovered for t in setting.tables)
    # Many right walks share the votes: a majority needs more than the best of N, or is not done.
    votes = measure_baseline(setting, "weighted-majority", "exact", knows, 1e4, np.random.default_rng(9))
    assert all(0 <= t.success <= 1 for t in votes.trials)
    spent = measure_baseline(setting, "beam", "exact", knows, 10.0, np.random.default_rng(9))
    assert (spent.n_for_success, spent.trials) == (None, [])


def test_its_particle_filter_runs_on_our_models(setting, value):
    found = measure_baseline(setting, "its-hub", "trained", value, 3000.0, np.random.default_rng(10))
    assert [t.n_particles for t in found.trials][-1] == 1
    # Without a cache every step reads all before it.
    assert found.trials[-1].tokens > 3 * setting.task.horizon * 3
    assert 0 <= found.trials[0].success <= 1


def test_exact_families_need_what_theory_says():
    """Persistent at every step: sigma^2 / delta^2; by default it never resamples, and V* = 1 leaves nothing to estimate."""
    rng = np.random.default_rng(11)
    every = measure_family("persistent", 32, "every-step", 4096, rng)
    assert every.sigma2 == pytest.approx(persistent_sigma2(32, 0.05))
    assert every.n_measured == pytest.approx(every.sigma2 / 0.25**2, rel=0.5)
    default = measure_family("persistent", 32, "default", 4096, rng)
    assert default.n_measured <= 2
    assert measure_family("hidden_prefix", 9, "default", 16, rng).n_measured is None


def test_positions_of_a_step_hold_a_code_of_the_column_that_it_enters():
    tasks, rng = [Crossing(t) for t in (2, 4)], np.random.default_rng(0)
    tokenizer = word_tokenizer(tasks[0].vocabulary())
    positions = torch.zeros(40, 8)
    _point_at_columns(positions, [2, 4], 3, 0)
    for task in tasks:
        prompt = task.prompts(1, rng)[0][0]
        steps = task.demonstration(prompt, 1.0, rng)
        words = tokenizer.convert_ids_to_tokens(tokenizer(prompt + "".join(steps))["input_ids"])
        columns = [i for i, word in enumerate(words) if word.startswith("c")]
        moves = [i for i, word in enumerate(words) if word.strip() in MOVES]
        assert len(columns) == len(moves) == task.horizon
        for column, move in zip(columns, moves, strict=True):
            for read_at in (move - 1, move):
                assert torch.equal(positions[read_at, 4:], positions[column, :4])
    assert len({tuple(row) for row in positions[:, :4].tolist()}) == 40
