"""The audit's own parts: what is added to the estimators of rmtools.core, by hand and on a tiny model."""

import itertools
import json
import math
from dataclasses import replace

import datasets
import numpy as np
import pytest

from rmtools.auditing import AuditReport, audit, read_report
from rmtools.auditing.card import write_card
from rmtools.auditing.metrics import METRICS, figure, not_met, thresholds
from rmtools.auditing.page import write_report
from rmtools.auditing.table import as_text
from rmtools.codec import from_json, to_json
from rmtools.core import solve
from rmtools.data.collect import Branching, Collector
from rmtools.data.load import load_rollouts
from rmtools.data.rollouts import RolloutMetadata
from rmtools.errors import UserError
from rmtools.exact.bounds import paper_counts, particle_bound
from rmtools.lm.checkpoint import fingerprint, load_value_model
from rmtools.lm.enumerate import tabulate
from rmtools.lm.policy import Policy
from rmtools.lm.protocol import TreeValues
from rmtools.lm.value import ConstantValue
from rmtools.particles.tilt import Tilt
from rmtools.stats.alternative_costs import alternative_costs
from rmtools.stats.bootstrap import Interval, bootstrap_all
from rmtools.verify.language_model import measure_accuracy, output_law

TILT = Tilt(0.05)


@pytest.fixture(scope="module")
def rows(policy, task, prompts):
    return Collector(policy, task, Branching(8, 4, 4), np.random.default_rng(0)).collect(prompts)


@pytest.fixture(scope="module")
def metadata(policy, policy_folder, settings):
    return RolloutMetadata(str(policy_folder), fingerprint(policy_folder), "crossing", 3, settings, 1.0, 0)


@pytest.fixture(scope="module")
def report(rows, metadata, value_folder, policy, task):
    return audit((rows, metadata), value_folder, compare=[value_folder], policy=policy, task=task)


def test_everything_is_audited(report):
    roles = ["model", "compare 1", "constant", "position only", "untrained", "oracle"]
    assert [m.role for m in report.models] == roles
    model, again = report.models[:2]
    assert model.error.exact is not None
    assert model.cost.tabulated is not None
    assert model.cost.tabulated.n_prompts == 8
    assert model.error.sampled is not None
    assert again.error.sampled is not None
    assert (
        again.error.sampled.ratio_error.mean_square.estimate
        == model.error.sampled.ratio_error.mean_square.estimate
    )
    pair = report.pairs["compare 1"]
    for name in ("squared_ratio_error", "mean_square_corrected", "signed_mean", "brier", "sigma2"):
        assert getattr(pair, name) == Interval(0.0, 0.0, 0.0)
    oracle = report.models[-1]
    assert oracle.error.sampled is None
    assert oracle.error.binned is not None
    assert oracle.cost.sigma2 is not None


def test_round_trip(report, tmp_path):
    write_report(report, tmp_path)
    file = tmp_path / "audit.json"
    again = read_report(file)
    assert to_json(again) == to_json(report)
    assert (str(again), again.table()) == (str(report), report.table())
    assert max(map(len, as_text(report.models, 0.25, 0.05).splitlines())) <= 80
    written = json.loads(file.read_text())
    for model in written["models"]:  # as the first audits of this schema
        del model["cost"]["limiting"]
        if model["cost"]["tabulated"]:
            del model["cost"]["tabulated"]["limiting"]
    file.write_text(json.dumps(written))
    assert read_report(file).model.cost.limiting is None
    assert read_report(file).model.cost.tabulated.limiting is None
    file.write_text(json.dumps({**written, "schema_version": 3}))
    with pytest.raises(UserError, match=r"schema version 3.*rmtools 0\.1\.0"):
        read_report(file)


def test_the_cost_of_enumerated_solutions_is_pooled(report, rows, policy, task, value_folder):
    value, _ = load_value_model(value_folder)
    cost = perfect = z_square = 0.0
    for prompt in dict.fromkeys(r.prompt for r in rows):
        exact = solve(tabulate(policy, value, prompt, task.step_choices(prompt, []), task.reward, 3e-3).model)
        z2 = math.exp(2 * exact.log_z)
        cost, perfect, z_square = (
            cost + z2 * exact.sigma2,
            perfect + z2 * exact.sigma2_true_value,
            z_square + z2,
        )
    found = report.model.cost.tabulated
    assert found.sigma2.estimate == pytest.approx(cost / z_square)
    assert found.ratio.estimate == pytest.approx(cost / perfect)
    assert found.sigma2.contains(found.sigma2.estimate)


def test_particles_are_counted_from_tables(report, rows, policy, task, value_folder):
    """At the cost pooled from exact models; from the rollouts where there are no tables. Best-of-N is the variance of phi."""
    model = report.model
    assert model.cost.counted_from == "tables"
    scorer, _ = load_value_model(value_folder)
    prompts = list(dict.fromkeys(r.prompt for r in rows))
    exact = [
        solve(tabulate(policy, scorer, p, task.step_choices(p, []), task.reward, 3e-3).model) for p in prompts
    ]
    weight = np.exp([2 * e.log_z for e in exact])
    cv, tv = report.provenance["delta_cv"], report.provenance["delta_tv"]
    expected = np.average([e.n_for_cv(cv) for e in exact], weights=weight)
    assert model.cost.n_for_cv.estimate == pytest.approx(max(expected, 1), rel=1e-6)
    expected = np.average([e.n_for_tv(tv) for e in exact], weights=weight)
    assert model.cost.n_for_tv.estimate == pytest.approx(max(expected, 1), rel=1e-6)
    limits = [e.limiting_schedule(0.5) for e in exact]
    limiting = model.cost.tabulated.limiting
    assert limiting.times == tuple(its.times for its in limits)
    sigma2 = np.average([its.sigma2 for its in limits], weights=weight)
    assert limiting.sigma2.estimate == pytest.approx(sigma2, rel=1e-6)
    assert limiting.n_for_cv.estimate == pytest.approx(max(sigma2 / cv**2, 1), rel=1e-6)
    expected = [e.n_for_tv(tv, schedule=its.times) for e, its in zip(exact, limits, strict=True)]
    assert limiting.n_for_tv.estimate == pytest.approx(max(np.average(expected, weights=weight), 1), rel=1e-6)
    assert limiting.decided == all(its.decided(limiting.n_for_cv.estimate) for its in limits)
    squares = [np.exp(e._model.log_reach[-1] + 2 * e._model.log_value[-1]).sum() for e in exact]
    expected = np.average(np.array(squares) / weight - 1, weights=weight)
    assert model.cost.tabulated.best_of_n.estimate == pytest.approx(expected, rel=1e-6)
    perfect = model.cost.tabulated.perfect_limiting.estimate
    assert model.cost.tabulated.limiting_ratio.estimate == pytest.approx(sigma2 / perfect)
    assert perfect < sigma2
    other = next(m for m in report.models if m.cost.tabulated is None and m.cost.sigma2 is not None)
    assert other.cost.counted_from == "rollouts"


def test_triggered_resampling_costs_what_the_rollouts_tell(report, rows):
    """A schedule per prompt; constant values never trigger, and no resampling is best of N: the variance of phi."""
    limiting = {m.role: m.cost.limiting for m in report.models}
    prompts = len({r.prompt for r in rows})
    assert {len(its.times) for its in limiting.values()} == {prompts}
    constant = limiting["constant"]
    assert set(constant.times) == {()}
    assert constant.decided
    assert constant.decided_share == 1
    squares = []
    for prompt in dict.fromkeys(r.prompt for r in rows):
        phi = np.exp(TILT.log_potential(np.array([r.outcome for r in rows if r.prompt == prompt])))
        mean, n = np.mean(phi**2), len(phi)
        squares.append([mean, (np.sum(phi) ** 2 - n * mean) / (n * (n - 1))])
    mean, z_square = np.sum(squares, axis=0)
    assert constant.sigma2.estimate == pytest.approx(mean / z_square - 1)


def test_guided_weights_by_hand(report, rows, value_folder):
    """Weights V(s_t) / V(s_0), normalised within prompt and depth; b enumerated or sampled, here sampled."""
    from rmtools.data.scoring import score_rollouts

    value, _ = load_value_model(value_folder)
    scored = score_rollouts(rows, value)
    b = scored.errors().log_error
    total = weight = 0.0
    for g in range(scored.prompt.max() + 1):
        for t in range(scored.horizon):
            at = (scored.prefix_prompt == g) & (scored.prefix_depth == t)
            if at.any():
                v = np.exp(scored.prefix_log_value[at])
                total += at.sum() * (v * b[at]).sum() / v.sum()
                weight += at.sum()
    assert report.model.error.sampled_guided.signed_mean.estimate == pytest.approx(total / weight)
    assert (
        report.model.error.sampled_guided.counts.effective_sample_size
        < report.model.error.sampled.counts.effective_sample_size
    )


def test_worst_prefixes_are_enumerated_ones(report):
    sizes = [abs(w.log_error) for w in report.model.breakdowns.worst]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(report.model.error.exact.plug_in.largest)
    worst = report.model.breakdowns.worst[0]
    assert worst.standard_error == 0
    assert sum(c.drawn for c in worst.children) <= worst.n_children == 4
    assert len({(w.prompt_id, w.steps) for w in report.model.breakdowns.worst}) == len(
        report.model.breakdowns.worst
    )


def test_by_prompt_and_by_value_add_up(report, rows):
    prompts = report.model.breakdowns.by_prompt
    assert sum(p.n_trajectories for p in prompts) == len(rows)
    assert np.mean([p.success for p in prompts]) == pytest.approx(np.mean([r.reward for r in rows]))
    prefixes = sum(len(r.steps) for r in rows)
    assert sum(p.n_prefixes for p in prompts) == prefixes
    assert sum(b.n_prefixes for b in report.model.breakdowns.by_value) == prefixes
    total = sum(p.signed_mean * p.n_prefixes for p in prompts)
    assert total / prefixes == pytest.approx(report.model.error.sampled.signed_mean.estimate)
    ends = [(b.low, b.high) for b in report.model.breakdowns.by_value]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))


def test_alternative_costs_by_hand():
    """Two prompts, potentials .1 + .9 r; weights Z^2 from pairs; a draw from the target fails with .1 (1 - p) / Z."""
    rng = np.random.default_rng(0)
    rewards = [np.array([0.0, 0.0]), np.array([0.0, 1.0])]
    potentials = [0.1 + 0.9 * r for r in rewards]
    found = alternative_costs(rewards, potentials, 20.0, 0.05).bootstrap(rng)
    weight = np.array([0.01, 0.1])
    assert found.rejection_solutions.estimate == pytest.approx((0.1 + 0.55) / weight.sum())
    failing = 0.1 * 0.5 / 0.55 + 0.05
    assert found.best_of_n_solutions.estimate == pytest.approx(math.log(failing) / math.log(0.5))
    assert found.prompts_without_success == 1
    nobody = alternative_costs([np.zeros(2)] * 2, [np.full(2, 0.1)] * 2, 20.0, 0.05).bootstrap(rng)
    assert (nobody.best_of_n_solutions, nobody.smc_tokens) == (None, None)
    assert nobody.rejection_tokens.estimate == pytest.approx(200.0)
    few = [(rng.random(4) < 0.3).astype(float) for _ in range(5)]
    estimator = alternative_costs(few, [0.1 + 0.9 * r for r in few], 20.0, 0.05)
    uncut = bootstrap_all(estimator.sums, np.random.default_rng(1))
    found = estimator.bootstrap(np.random.default_rng(1))
    for n, raw in (
        (found.rejection_solutions, uncut["rejection"]),
        (found.best_of_n_solutions, uncut["best"]),
    ):
        assert raw.low < 1
        assert n == Interval(raw.estimate, 1.0, raw.high)
    assert found.rejection_tokens.low == 20
    soft = alternative_costs([np.full(2, 0.5)], [np.full(2, 0.55)], 20.0, 0.05).bootstrap(rng)
    assert soft.best_of_n_solutions is None


def test_the_papers_count_is_the_theorems():
    found = paper_counts(2.0, math.log(1.1), 4, 0.05)
    assert found.log10_particles == pytest.approx(math.log10(particle_bound(2.0, 4, 0.1, 0.05)))
    assert paper_counts(1e9, 50.0, 64, 0.05).pool_size is None


def test_trajectories_without_children(rows, policy):
    """Only a lower bound is identified, and the report says so."""
    flat = [replace(r, children=[], completions=[]) for r in rows]
    report = audit(flat, ConstantValue(0.3, policy.steps, TILT))
    model = report.model
    assert (model.error.sampled, model.error.sampled_guided, model.error.paths) == (None,) * 3
    assert (model.cost.sigma2, model.breakdowns.worst) == (None, ())
    assert model.error.binned.squared_ratio_error_at_least.estimate > 0
    assert any("no children" in text for text in report.warnings)
    assert "mean (rho - 1)^2, at least" in report.table()
    assert "RMS b" not in report.table()
    assert figure(model, "rms_log_bellman") is None
    assert figure(model, "mean_square_bellman_at_least") > 0


@pytest.mark.parametrize("what", ["one prompt", "all wrong", "at the floor"])
def test_poor_rollouts_are_audited_as_far_as_they_go(rows, policy, what, tmp_path):
    value = ConstantValue(0.3, policy.steps, TILT)
    if what == "one prompt":
        rows = [r for r in rows if r.prompt == rows[0].prompt]
    elif what == "all wrong":
        ended = [[[replace(c, reward=0.0) if c.ended else c for c in at] for at in r.children] for r in rows]
        rows = [
            replace(r, reward=0.0, children=c, completions=[[0.0] * len(at) for at in r.completions])
            for r, c in zip(rows, ended, strict=True)
        ]
    else:
        value = ConstantValue(0.0, policy.steps, TILT)
    report = audit(rows, value)
    write_report(report, tmp_path)
    assert (report.model.cost.sigma2 is None) == (what == "all wrong")
    noted = {"one prompt": "one prompt", "all wrong": "every reward is 0", "at the floor": ""}[what]
    assert any(noted in text for text in report.warnings)
    assert to_json(from_json(AuditReport, to_json(report))) == to_json(report)


def test_nan_of_a_model_names_the_prefix(rows, policy):
    class Broken(ConstantValue):
        def score(self, trees, progress=None):
            found = super().score(trees, progress)
            found[3].log_value[2] = math.nan
            return found

    with pytest.raises(UserError, match=rf"NaN at a prefix of prompt {rows[3].prompt_id} after 2 steps"):
        audit(rows, Broken(0.3, policy.steps, TILT))


def test_rows_from_anywhere_are_the_same_audit(rows, policy, tmp_path):
    """A file, dictionaries, a data set: what `load_rollouts` reads, with the metadata it knows."""
    value = ConstantValue(0.3, policy.steps, TILT)
    flat = [
        {"prompt_id": r.prompt_id, "prompt": r.prompt, "steps": r.steps, "reward": r.reward} for r in rows
    ]
    file = tmp_path / "ours.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in flat))
    expected = to_json(audit(load_rollouts(flat), value))
    for given in (flat, str(file), file, datasets.Dataset.from_list(flat)):
        assert to_json(audit(given, value)) == expected
    trl = [{"prompt": "1 + 1?\n", "completions": ["2", "3"], "labels": [True, False]}]
    with pytest.raises(UserError, match="reward"):  # step labels without an outcome
        audit(trl, value)
    with pytest.raises(UserError, match="None"):
        audit(None, value)


@pytest.mark.parametrize("given", [object(), None, 3])
def test_what_is_no_scorer_is_refused(rows, policy, given):
    with pytest.raises(UserError, match="steps, tilt, name, score"):
        audit(rows, given)
    with pytest.raises(UserError, match="steps, tilt, name, score"):
        audit(rows, ConstantValue(0.3, policy.steps, TILT), compare=[given])


@pytest.mark.parametrize("change", ["rows", "prefixes", "column", "depths", "children"])
def test_values_of_the_wrong_shape_are_refused(rows, policy, change):
    class Misshapen(ConstantValue):
        def score(self, trees, progress=None):
            found = super().score(trees, progress)
            v = found[3]
            new = {
                "prefixes": (v.log_value[1:], v.children),
                "column": (v.log_value[:, None], v.children),
                "depths": (v.log_value, v.children[1:]),
                "children": (v.log_value, [np.append(v.children[0], 0.0), *v.children[1:]]),
            }
            return found[1:] if change == "rows" else [*found[:3], TreeValues(*new[change]), *found[4:]]

    with pytest.raises(UserError, match=r"constant 0\.3"):
        audit(rows, Misshapen(0.3, policy.steps, TILT), controls=False)


def test_ids_and_texts_of_prompts(rows, policy):
    """One text under two ids is one prompt; two texts under one id are refused."""
    value = ConstantValue(0.3, policy.steps, TILT)
    renamed = [replace(r, prompt_id=f"{r.prompt_id}-{i % 2}") for i, r in enumerate(rows)]
    assert audit(renamed, value, controls=False).provenance["n_prompts"] == 8
    with pytest.raises(UserError, match="two different prompts"):
        audit([replace(r, prompt_id="x") for r in rows], value)
    twice = audit([*rows, *rows], value, controls=False)
    assert any("exact repeats" in text for text in twice.warnings)


def test_every_compared_model_has_its_own_floor(rows, metadata, policy, task):
    """Enumerated next steps that end the solution are worth another potential to each."""
    values = [ConstantValue(0.3, policy.steps, Tilt(f)) for f in (0.05, 0.3)]
    both = audit((rows, metadata), values[0], compare=values[1:], policy=policy, task=task, controls=False)
    alone = audit((rows, metadata), values[1], policy=policy, task=task, controls=False)
    assert both.models[1].error.exact.corrected.rms.estimate == pytest.approx(
        alone.model.error.exact.corrected.rms.estimate
    )
    assert both.pairs["compare 1"].sigma2 is None


def test_terminals(rows, metadata, policy, task, value_folder):
    """With the model's own ends Z is the mean of those, and nothing is priced against the verifier's target."""
    report = audit((rows, metadata), value_folder, policy=policy, task=task, terminal="model")
    assert [m.terminal for m in report.models] == ["model"] + ["verifier"] * 4
    value, _ = load_value_model(value_folder)
    ends = [v.log_value[-1] for v in value.score([value.steps.encode(r.prompt, r.steps) for r in rows])]
    assert report.model.calibration.root.z.estimate == pytest.approx(np.exp(ends).mean())
    assert report.model.cost.alternatives is None
    assert report.model.error.exact is None
    assert report.models[1].cost.alternatives is not None


def test_prompts_limit(rows, policy):
    report = audit(rows, ConstantValue(0.3, policy.steps, TILT), controls=False, prompts_limit=2)
    assert report.provenance["n_prompts"] == 2
    with pytest.raises(UserError, match="prompts_limit"):
        audit(rows, ConstantValue(0.3, policy.steps, TILT), prompts_limit=0)
    with pytest.raises(UserError, match="no rollouts"):
        audit([], ConstantValue(0.3, policy.steps, TILT))


def test_thresholds(report):
    assert thresholds(["sigma2=1e3", "brier=.25"]) == {"sigma2": 1000.0, "brier": 0.25}
    with pytest.raises(UserError, match="no metric 'sigma'") as error:
        thresholds(["sigma=3"])
    assert all(name in error.value.fix for name in METRICS)
    for text in ("sigma2", "sigma2=", "sigma2=many", "sigma2=nan"):
        with pytest.raises(UserError, match="is no number"):
            thresholds([text])
    sigma2 = report.model.cost.sigma2.estimate.estimate
    assert not_met(report.model, {"sigma2": sigma2}) == []
    assert "should be at most" in not_met(report.model, {"sigma2": sigma2 - 1e-9})[0]
    assert "could not be estimated" in not_met(report.model, {"mean_square_bellman_at_least": 1.0})[0]
    assert figure(report.model, "abs_mean_log_bellman") == abs(report.model.error.exact.signed_mean.estimate)
    for name in METRICS:
        value = figure(report.model, name)
        assert value is None or math.isfinite(value)


def test_the_card_keeps_what_else_it_says(tmp_path):
    (tmp_path / "README.md").write_text("---\nlibrary_name: peft\n---\n\n# Mine\n")
    write_card(tmp_path, "## First")
    write_card(tmp_path, "## Second")
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: peft\n---\n\n# Mine\n")
    assert "First" not in text
    assert text.count("## Second") == 1
    (tmp_path / "README.md").write_text(text + "\nafter\n")
    write_card(tmp_path, "## Third")
    assert (tmp_path / "README.md").read_text().endswith("\nafter\n")


def test_the_audit_is_in_the_metadata_of_the_card(tmp_path):
    """Beside what training measured, in place of an earlier audit; a card without metadata gets some."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    path = tmp_path / "README.md"
    held = EvalResult("token-classification", "rollouts", "rollouts", "brier", 0.25, dataset_split="held out")
    data = ModelCardData(license="mit", model_name="prm", eval_results=[held])
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n# Mine\n")
    for value in (0.5, 0.125):
        write_card(tmp_path, "## Audit", {"brier": value, "sigma2": None})
    card = ModelCard(path.read_text())
    assert card.data.license == "mit"
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {("held out", "brier"): 0.25, ("audit", "brier"): 0.125}
    assert card.text.count("## Audit") == 1
    assert "# Mine" in card.text
    path.unlink()
    write_card(tmp_path, "## Audit", {"brier": 0.5})
    assert ModelCard(path.read_text()).data.eval_results[0].metric_value == 0.5
    path.write_text("---\na: [\n---\n# Mine\n")
    with pytest.raises(UserError, match="metadata"):
        write_card(tmp_path, "## Audit", {"brier": 0.5})
    assert path.read_text() == "---\na: [\n---\n# Mine\n"


@pytest.mark.slow
def test_the_sampler_at_a_given_number_of_particles(policy, task, prompts, value_folder):
    """Against the table: the CV that sigma^2 predicts, and the share of right solutions in the target."""
    value, _ = load_value_model(value_folder)
    exact, right = [], []
    for prompt in prompts:
        table = tabulate(policy, value, prompt, task.step_choices(prompt, []), task.reward, 0.0)
        found = solve(table.model)
        exact.append((math.exp(2 * found.log_z) * found.sigma2, math.exp(2 * found.log_z)))
        reward = np.asarray([task.reward(prompt, p) for p in table.paths])
        weight = table.path_probability * np.exp(value.tilt.log_potential(reward))
        right.append((weight * reward).sum() / weight.sum())
    n = 64
    result = measure_accuracy(
        policy, value, task, prompts, Interval(n - 0.5, None, None), 0.25, np.random.default_rng(0)
    )
    assert (result.n_particles, result.prompts) == (n, len(prompts))
    cost, z_square = np.sum(exact, axis=0)
    assert result.cv.estimate == pytest.approx(math.sqrt(cost / z_square / n), rel=0.1)
    assert result.target_success == pytest.approx(np.mean(right), abs=0.05)
    with pytest.raises(UserError, match="predicted number"):
        measure_accuracy(policy, value, task, prompts, None, 0.25, np.random.default_rng(0))
    with pytest.raises(UserError, match="1000000"):
        measure_accuracy(
            policy, value, task, prompts, Interval(1e6, None, None), 0.25, np.random.default_rng(0)
        )


def test_weighting_runs_by_their_z_gives_the_target():
    """Two outcomes, two particles drawn from one half each, weights 1 and 3: the target has 3/4, the output less."""
    rng = np.random.default_rng(0)
    good = rng.random((20_000, 2)) < 0.5
    weight = np.where(good, 3.0, 1.0)
    share = (weight * good).sum(1) / weight.sum(1)
    difference, success, target = output_law(np.log(weight.mean(1))[:, None], share[:, None], rng)
    assert target == pytest.approx(0.75, abs=0.01)
    assert success == pytest.approx(0.25 * 1 + 0.5 * 0.75, abs=0.01)
    assert difference.contains(-0.125)
    assert difference.high < 0


def test_the_implicit_model_has_no_error(rows, policy, metadata):
    """A ratio of two laws: its Bellman error is zero under the policy, whatever the other one is."""
    from rmtools.lm.implicit import ImplicitValue

    other = Policy(policy.model, policy.steps, 1.4)
    report = audit((rows, metadata), ImplicitValue(other, policy, TILT), policy=policy, controls=False)
    model = report.model
    assert model.calibration.prefixes is None
    assert model.error.exact is None
    assert model.cost.sigma2 is None
    assert model.error.sampled.ratio_error.mean_square.contains(0.0)
    assert model.error.sampled.plug_in.rms.estimate > 0.02
