"""What an audit says to do next: on exact models whose values are right, on a wrong scale, or wrongly ranked; and its command."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_example import example_report, visible
from test_auditing_first_screen import TABLES, costing

from rmtools.auditing.model_audit import AuditOptions, Subject, audit_model
from rmtools.auditing.next_step import next_step
from rmtools.codec import from_json, to_json
from rmtools.core import Tilt
from rmtools.data.rollouts import Child, Rollout
from rmtools.data.scoring import ScoredRollouts
from rmtools.stats.bootstrap import Interval
from rmtools.stats.scale_check import ScaleCheck, scale_check

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from audit_population import constant, draw_rollouts, noisy, random_trees, with_values

FLOOR = 0.1
TILT = Tilt(FLOOR)
PROVENANCE = {
    "checkpoint": "org/prm",
    "policy": "runs/my policy",
    "task": "gsm8k",
    "delta_cv": 0.25,
    "floor": FLOOR,
    "n_prompts": 48,
}


def stretched(slope, offset=0.0):
    """Log odds of p times ``slope`` plus ``offset``: the order is kept."""

    def value(model, rng):
        def one(v):
            p = np.clip(np.exp(TILT.log_probability(v)), 1e-9, 1 - 1e-9)
            return TILT.log_value(-np.logaddexp(0, -(slope * np.log(p / (1 - p)) + offset)))

        return with_values(model, [one(v) for v in model.log_true_value[:-1]])

    return value


def blurred(sd):
    """True values with independent lognormal errors, within the floor and 1."""

    def value(model, rng):
        found = noisy(sd)(model, rng).log_value[:-1]
        return with_values(model, [v.clip(np.log(FLOOR), 0.0) for v in found])

    return value


def shuffled(model, rng):
    """True values of one prompt and depth in another order: calibrated, and no ranking."""
    return with_values(model, [rng.permutation(v) for v in model.log_true_value[:-1]])


def audited(population, prompts, trajectories, rng, role="model"):
    """The audit of a population's values on rollouts of its first prompts: 8 next steps, 4 completions at every prefix."""
    horizon = population.horizon
    drawn = draw_rollouts(population.roots(np.arange(prompts)), trajectories, 8, 4, rng)
    value, child = drawn.values(population.joined)
    reward = np.exp(TILT.log_probability(np.log(drawn.potential))).clip(0, 1)
    extra = np.exp(TILT.log_probability(np.log(drawn.extra))).clip(0, 1)
    rows = []
    for g in range(prompts):
        for i in range(trajectories):
            states = [str(int(s[g, i])) for s in drawn.path]
            last = np.exp(TILT.log_probability(child[g, i, -1])).clip(0, 1)
            children = [
                [
                    Child(str(int(s)), t == horizon - 1, float(last[k + 1]) if t == horizon - 1 else None)
                    for k, s in enumerate(drawn.children[t][g, i, 1:])
                ]
                for t in range(horizon)
            ]
            completions = [extra[g, i, t].tolist() for t in range(horizon)]
            rows.append(Rollout(f"{g}", f"{g}", states[1:], float(reward[g, i]), children, completions))
    n = prompts * trajectories
    scored = ScoredRollouts(
        prompt=np.repeat(np.arange(prompts), trajectories),
        log_value=[*value.reshape(n, -1)],
        own_log_value=[*value.reshape(n, -1)],
        reward=reward.ravel(),
        prefix_trajectory=np.repeat(np.arange(n), horizon),
        prefix_depth=np.tile(np.arange(horizon), n),
        prefix_log_value=value[..., :-1].ravel(),
        child_log_value=child.reshape(n * horizon, -1),
        child_present=np.ones((n * horizon, 8), dtype=bool),
        horizon=horizon,
    )
    return audit_model(Subject(role, role, TILT), rows, scored, AuditOptions(), rng)


def decided(kind, seed, prompts=48, trajectories=8):
    rng = np.random.default_rng(seed)
    trees = random_trees(prompts, 3, 3, FLOOR, rng)
    population = trees if kind is None else trees.valued(kind, rng)
    return next_step([audited(population, prompts, trajectories, rng)], PROVENANCE)


@pytest.mark.parametrize(
    ("kind", "do", "words"),
    [
        (None, "sample", "consistent"),
        (blurred(0.1), "sample", "consistent"),
        (stretched(3.0, 1.0), "calibrate", "right ranking"),
        (stretched(0.25, -1.5), "calibrate", "wrong scale"),
        (shuffled, "train", "wrong ranking"),
        (constant(0.4), "train", "wrong ranking"),
    ],
)
def test_values_of_exact_models(kind, do, words):
    found = decided(kind, 1)
    assert (found.do, words in found.why) == (do, True), found


@pytest.mark.parametrize("kind", [None, stretched(3.0, 1.0), shuffled])
def test_a_tiny_sample_tells_nothing(kind):
    found = decided(kind, 1, prompts=4)
    assert found.do == "more data"
    assert "4 prompts do not hold" in found.why
    words = shlex.split(found.command)
    assert words[:2] == ["rmtools", "rollout"]
    assert words[words.index("--policy") + 1] == "runs/my policy"
    assert words[words.index("--prompts") + 1] == "64"


@pytest.fixture(scope="module")
def report():
    found = example_report()
    return replace(found, next=next_step(found.models, found.provenance))


def judged(report, within, scale=None, tables=None):
    """The next step of the example's first model with another ranking, scale and enumerated costs."""
    found = costing(report, tabulated=tables, limiting=None)
    calibration = replace(report.model.calibration, auc_within=within, scale=scale)
    error = replace(found.model.error, exact=None, exact_guided=None, sampled=None, sampled_guided=None)
    prompts = replace(found.model.breakdowns, by_prompt=found.model.breakdowns.by_prompt * 4)
    model = replace(found.model, calibration=calibration, error=error, breakdowns=prompts)
    return next_step([model, *found.models[1:]], PROVENANCE)


GOOD, LOW, WIDE = Interval(0.8, 0.7, 0.9), Interval(0.55, 0.52, 0.6), Interval(0.6, 0.45, 0.75)
RIGHT, WRONG, SLIGHT = ScaleCheck(0.4, 0.3, 32), ScaleCheck(0.001, 0.3, 32), ScaleCheck(0.001, 0.02, 32)


@pytest.mark.parametrize(
    ("within", "scale", "ratio", "do"),
    [
        (GOOD, RIGHT, None, "sample"),
        (GOOD, WRONG, None, "calibrate"),
        (GOOD, SLIGHT, None, "sample"),
        (GOOD, ScaleCheck(None, 0.3, 32), None, "more data"),
        (GOOD, None, None, "sample"),  # no probability
        (LOW, WRONG, None, "train"),
        (WIDE, WRONG, None, "more data"),
        (Interval(1.0, None, None), WRONG, None, "more data"),
        (Interval(float("nan"), None, None), WRONG, None, "more data"),
        (None, None, None, "more data"),
        (LOW, WRONG, Interval(1.4, 1.1, 1.9), "sample"),
        (LOW, WRONG, Interval(1.4, 0.9, 2.5), "train"),
        (GOOD, WRONG, Interval(5.0, 3.0, 9.0), "calibrate"),
        (GOOD, RIGHT, Interval(5.0, 3.0, 9.0), "train"),
        (GOOD, RIGHT, Interval(2.5, 1.5, 4.0), "sample"),
    ],
)
def test_the_rules_in_their_order(report, within, scale, ratio, do):
    tables = None if ratio is None else replace(TABLES, ratio=ratio)
    assert judged(report, within, scale, tables).do == do


def test_commands_are_whole(report):
    """They name model, policy and size, and parse as the shell reads them."""
    words = shlex.split(judged(report, LOW, None, replace(TABLES, ratio=Interval(1.2, 1.1, 1.6))).command)
    assert words[:4] == ["rmtools", "sample", "--model", "org/prm"]
    assert words[4:6] == ["--policy", "runs/my policy"]
    assert words[words.index("-n") + 1] == "61"  # the upper end of 48 [40, 61]
    about = {"published": {"format": "trl", "aggregate": "product"}}
    model = replace(report.model, calibration=replace(report.model.calibration, auc_within=None))
    assert next_step([model], PROVENANCE | about).do == "more data"
    words = judged(report, LOW, None).command.split()
    assert words[:2] == ["rmtools", "train"]
    assert "--model_name_or_path" not in words  # a checkpoint's own training begins with the policy again


def test_a_published_model_is_named_as_it_is_read(report):
    about = {"published": {"format": "trl", "aggregate": "product"}}

    def command(within, scale):
        calibration = replace(report.model.calibration, auc_within=within, scale=scale)
        empty = {"exact": None, "exact_guided": None, "sampled": None, "sampled_guided": None}
        error = replace(report.model.error, **empty)
        model = replace(report.model, calibration=calibration, error=error)
        return next_step([model], PROVENANCE | about).command

    assert "--model org/prm --prm-format trl --aggregate product --floor 0.1" in command(GOOD, WRONG)
    assert "--model_name_or_path org/prm --train_rollouts" in command(LOW, WRONG)


def test_the_scale_of_p_is_tested_with_the_level_it_says():
    """Of p as the outcomes' probability, 5% are called wrong, also with eight prompts; maps of p are found."""
    rng = np.random.default_rng(0)

    def resolved(changed, prompts, rounds=200):
        found = 0
        for _ in range(rounds):
            x = rng.normal(size=(prompts, 24)) + rng.normal(size=(prompts, 1))
            p = 1 / (1 + np.exp(-x))
            y = (rng.random(p.shape) < p).astype(float)
            depth = np.tile(np.arange(24) % 4, prompts)
            prompt = np.repeat(np.arange(prompts), 24)
            found += scale_check(changed(p.ravel(), depth), y.ravel(), prompt, depth, 0.01).resolved
        return found / rounds

    for prompts in (8, 40):
        assert resolved(lambda p, depth: p, prompts) < 0.05 + 4.5 * np.sqrt(0.05 * 0.95 / 200)
    for changed in (
        lambda p, depth: p**2 / (p**2 + (1 - p) ** 2),
        lambda p, depth: 0.7 * p,
        lambda p, depth: p ** (0.7 + 0.2 * depth),
    ):
        assert resolved(changed, 40, 20) > 0.9
    flat = scale_check(np.full(6, 0.5), np.array([0.0, 1, 0, 1, 0, 1]), np.arange(6), np.zeros(6), 0.01)
    assert flat.p_value == pytest.approx(1.0)
    assert scale_check(np.full(2, 0.5), np.ones(2), np.zeros(2), np.zeros(2), 0.01).p_value is None


def test_it_is_the_last_line_everywhere(report):
    """Terminal, notebook, page and card; a command that is pasted from the terminal is the command."""
    from rmtools.auditing.page import markdown, sections
    from rmtools.plots.page import page

    long = replace(
        report,
        next=replace(
            report.next, do="calibrate", why="w " * 60, command="rmtools sample " + "--flag value " * 12
        ),
    )
    printed = long.answer().splitlines()
    assert max(map(len, printed)) <= 80
    start = next(i for i, line in enumerate(printed) if line.startswith("next"))
    begun = next(i for i in range(start, len(printed)) if "rmtools sample" in printed[i])
    pasted = "\n".join(printed[begun:]).replace("\\\n", " ")
    assert shlex.split(pasted) == shlex.split(long.next.command)
    for shown in (
        report._repr_html_(),
        page("audit", sections(report, drawn=False)),
        markdown(report),
        str(report),
    ):
        words = " ".join(visible(shown).replace("\\", "").split())
        assert report.next.command.split(" --")[0] in words
    again = from_json(type(report.next), to_json(report.next), "the audit", "")
    assert again == report.next
    assert set(to_json(report)["next"]) == {"do", "why", "command"}
