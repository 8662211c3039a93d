"""A report as a user meets it: printed, in a notebook, as a data frame, as a plot; and of a scorer written elsewhere."""

import ast
import inspect
from dataclasses import replace

import numpy as np
import pytest
from audit_example import example_report, rollouts, scored

import rmtools as rm
from rmtools.auditing import audit
from rmtools.auditing.first_screen import first_screen
from rmtools.auditing.metrics import FURTHER, METRICS, figure
from rmtools.auditing.notes import notes, provenance_notes, ranking_notes
from rmtools.auditing.page import PROMPTS, markdown, sections
from rmtools.auditing.table import as_text, not_negative
from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import RolloutMetadata
from rmtools.errors import UserError
from rmtools.lm.checkpoint import CheckpointSettings, fingerprint
from rmtools.lm.protocol import TreeValues
from rmtools.particles.tilt import Tilt
from rmtools.stats.bootstrap import Interval
from rmtools.stats.paired import PairedDifference

PAIR = PairedDifference(96, 2304, 2300, *(Interval(-0.5, -0.75, -0.25),) * 3, None, Interval(2.0, None, None))


@pytest.fixture(scope="module")
def report():
    return example_report()


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_a_report_answers_in_ten_lines_of_80_characters(report, n):
    models = [replace(m, role=f"compare {k}" if k > 2 else m.role) for k, m in enumerate(report.models * 4)]
    provenance = report.provenance | {"checkpoint": "a/very/long/path\n" * 9}
    pairs = {m.role: PAIR for m in models[3:n]}
    many = replace(report, models=tuple(models[:n]), pairs=pairs, provenance=provenance)
    lines = str(many).splitlines()
    assert len(many.first_screen().facts) <= 10
    assert len(lines) <= 16
    assert max(map(len, lines)) <= 80
    assert len(repr(many)) < 300


def test_the_answer_comes_first(report):
    """The verdict, particles, then the error with its interval, beside the constant's; the warnings are counted."""
    cost, error = report.model.cost, report.model.error
    title, *lines = str(report).splitlines()
    text = " ".join(lines)
    needed = f"{np.ceil(cost.limiting.n_for_cv.estimate):.0f} ["
    assert title.endswith("32 solutions of 8 prompts, terminal verifier")
    assert text.startswith(needed)
    assert text.index("best-of-N needs") < text.index("particles  ") < text.index("Bellman error")
    row = next(line for line in lines if line.startswith("particles  "))
    assert needed in row
    row = next(line for line in lines if line.startswith("Bellman error"))
    assert f"RMS b {error.exact.corrected.rms.estimate:.3g} [" in row
    assert row.endswith(f"enumerated; constant {report.models[1].error.exact.corrected.rms.estimate:.3g}")
    assert f"{len(report.warnings)} warning (" in text
    assert "…" not in text.partition("worst prefix")[0]
    assert repr(report) == "<AuditReport of runs/<b>prm</b>: 3 models, 8 prompts>"


@pytest.fixture
def degenerate(policy, task, prompts):
    """Audit rollouts that give a part of the figures only."""
    drawn = Collector(policy, task, Branching(4, 4, 3), np.random.default_rng(0)).collect(prompts[:4])

    def report(which):
        rows = [replace(r, reward=float(i % 2)) for i, r in enumerate(drawn)]
        if which == "one prompt":
            rows = rows[:4]
        elif which == "no children":
            rows = [replace(r, children=[], completions=[]) for r in rows]
        else:
            rows = [replace(r, reward=0.0) for r in rows]
        return audit(rows, LengthScorer(policy.steps, Tilt(0.05)))

    return report


@pytest.mark.parametrize("which", ["one prompt", "no children", "every reward is 0"])
def test_figures_that_are_missing_say_why(degenerate, which):
    report = degenerate(which)
    text = str(report)
    lines = text.splitlines()
    assert (len(lines) <= 16, max(map(len, lines)) <= 80) == (True, True)
    row = {label: next(x for x in lines if x.startswith(label)) for label in ("particles", "Bellman error")}
    why = {"one prompt": None, "no children": "no completions"}.get(which, which)
    assert (why is None) or row["particles"].endswith(f"not available: {why}")
    assert (why is None) or f"is not known ({why})" in " ".join(lines)
    assert ("not available: no children" in row["Bellman error"]) == (which == "no children")
    assert (", no intervals" in lines[0]) == (which == "one prompt")
    assert ("children=8, completions=3" in text) == (which == "no children")
    assert ("of 1 prompt," in lines[0]) == (which == "one prompt")
    for shown in (text, report.table(), markdown(report)):
        assert "[?, ?]" not in shown
        assert "1 prompts" not in shown


@pytest.mark.parametrize(
    ("bound", "shown"),
    [
        (Interval(-0.1, -0.2, 0.3), ""),
        (Interval(0.1, -0.2, 0.3), ""),
        (Interval(0.2, 0.1, 0.3), "(ρ-1)² ≥ 0.2 [0.1, 0.3]"),
    ],
)
def test_a_bound_of_a_square_is_read_by_its_sign(degenerate, bound, shown):
    report = degenerate("no children")
    binned = replace(report.model.error.binned, squared_ratio_error_at_least=bound)
    model = replace(report.model, error=replace(report.model.error, binned=binned))
    facts = first_screen([model], report.provenance).facts
    assert next(f.remark for f in facts if f.label == "Bellman error") == shown


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (Interval(2.0, 1.0, 3.0), "2 [1, 3]"),
        (Interval(2.0, -1.0, 3.0), "2 [0, 3] not resolved"),
        (Interval(-2.0, -3.0, 1.0), "not resolved, ≤ 1"),
        (Interval(-2.0, -3.0, -1.0), "not resolved"),
        (Interval(2.0, None, None), "2"),
    ],
)
def test_a_variance_is_not_negative(report, found, shown):
    """In the table and by prompt; the figures themselves keep what the estimate without bias gives."""
    assert not_negative(found) == shown
    sigma2 = replace(report.model.cost.sigma2, estimate=found, resolved=True)
    cost = replace(report.model.cost, sigma2=sigma2, limiting=None)
    prompts = tuple(replace(p, sigma2=found) for p in report.model.breakdowns.by_prompt)
    model = replace(report.model, cost=cost, breakdowns=replace(report.model.breakdowns, by_prompt=prompts))
    changed = replace(report, models=(model, *report.models[1:]))
    assert f"sigma^2, pooled {shown}" in " ".join(changed.table().split())
    assert ("is not resolved" in changed.first_screen().verdict) == (found.estimate <= 0)
    page = next(s for s in sections(changed, drawn=False) if s.title == PROMPTS)
    assert shown in page.blocks[0].rows[0]
    assert changed.to_frame().set_index(["model", "figure"]).estimate["model", "sigma2"] == found.estimate


def test_the_call_that_draws_what_is_missing_works(degenerate):
    line = next(x for x in str(degenerate("no children")).splitlines() if "collect_rollouts" in x)
    call = ast.parse(line.removeprefix("draw: "), mode="eval").body
    named = {k.arg: None for k in call.keywords}
    assert ast.unparse(call.func) == "rm.collect_rollouts"
    inspect.signature(rm.collect_rollouts).bind(*call.args, **named)
    assert {"children", "completions"} <= named.keys()


def test_a_warning_is_said_once(report):
    """Of several models it names them."""
    silent = [
        replace(m, cost=replace(m.cost, sigma2=replace(m.cost.sigma2, resolved=False)))
        for m in report.models[:2]
    ]
    texts = notes([], None, {}, silent, "")
    assert sum("Z^2 reaches 0" in text for text in texts) == 1
    assert any(text.startswith(f"{silent[0].role}, {silent[1].role}: sigma^2") for text in texts)


def test_the_print_states_terminal_unit_and_resampling(report):
    text = str(report)
    assert "terminal verifier" in text
    assert "nats" in text
    assert "theory: resampling when ESS ≤ N/2" in text


def test_a_model_with_its_own_ends_has_no_cost(report):
    model = replace(
        report.model,
        terminal="model",
        cost=replace(report.model.cost, n_for_cv=None, sigma2=None, influence=None, limiting=None),
    )
    text = str(replace(report, models=(model, *report.models[1:])))
    assert "terminal model" in text
    assert "not available: terminal is the model's" in text


def test_every_row_is_in_the_table(report):
    text = report.table()
    assert text.startswith(as_text(report.models, 0.25, 0.05))
    text = replace(report, pairs={"compare 1": PAIR}).table()
    assert "compare 1: this model minus that one" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_notebook_shows_escaped_text(report):
    html = replace(report, provenance=report.provenance | {"checkpoint": "<script>x</script>"})._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;x" in html
    assert html.count("<tr>") == 1 + len(report.first_screen().facts)


def test_a_frame_has_a_row_per_model_and_figure(report):
    frame = report.to_frame()
    assert list(frame.columns) == ["model", "figure", "estimate", "low", "high"]
    names = [name for name in METRICS | FURTHER if not name.startswith("abs_")]
    assert len(frame) == 3 * len(names)
    assert {t.kind for t in frame.dtypes[["estimate", "low", "high"]]} == {"f"}
    found = frame.set_index(["model", "figure"])
    for m in report.models:
        for name in METRICS.keys() & set(names):
            value = figure(m, name)
            assert found.estimate[m.role, name] == pytest.approx(
                np.nan if value is None else value, nan_ok=True
            )
    rms = report.models[1].error.exact.corrected.rms
    assert tuple(found.loc["constant", "rms_log_bellman"]) == (rms.estimate, rms.low, rms.high)
    assert np.isnan(found.loc["model", "perfect_ratio"]).all()


@pytest.mark.parametrize(
    ("name", "axes"),
    [("", 1), ("depth", 1), ("sizes", 2), ("distribution", 2), ("calibration", 1), ("particles", 1)],
)
def test_plots(report, name, axes):
    found = report.plot(name) if name else report.plot()
    assert len(found.axes) == axes
    assert found.axes[0].lines


def test_a_plot_that_does_not_exist(report):
    with pytest.raises(UserError) as error:
        report.plot("errors")
    assert "particles, sizes, distribution, depth, calibration" in error.value.fix


def test_a_paired_difference():
    lines = str(PAIR).splitlines()
    assert len(lines) == 5
    assert "96 prompts" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:]] == [*PAIR.figures()]
    assert lines[-1].split()[-1] == "2"
    assert PAIR._repr_html_().count("<tr>") == 5
    frame = PAIR.to_frame().set_index("figure")
    assert tuple(frame.loc["signed_mean"]) == (-0.5, -0.75, -0.25)
    assert np.isnan(frame.low["sigma2"])
    assert len(PAIR.plot().axes) == 4


class LengthScorer:
    """What a user writes: half of the value of a prefix is lost with each step."""

    name = "length"
    is_probability = True

    def __init__(self, steps, tilt):
        self.steps, self.tilt = steps, tilt

    def score(self, trees, progress=None):
        if progress is not None:
            progress(len(trees))
        values = [self.tilt.log_potential(0.5 ** np.arange(1, len(t.reads) + 1)) for t in trees]
        children = [
            [np.full(len(at), v[t + 1]) for t, at in enumerate(tree.child_reads)]
            for tree, v in zip(trees, values, strict=True)
        ]
        return [TreeValues(v, c) for v, c in zip(values, children, strict=True)]


def test_a_scorer_without_states_is_audited(policy, policy_folder, settings, task, prompts):
    """Five attributes are enough; what it cannot do, enumerated figures, is left out of its column alone."""
    rows = Collector(policy, task, Branching(4, 4, 4), np.random.default_rng(0)).collect(prompts[:4])
    metadata = RolloutMetadata(
        str(policy_folder), fingerprint(policy_folder), "crossing", 3, settings, 1.0, 0
    )
    scorer = LengthScorer(policy.steps, Tilt(0.05))
    report = audit((rows, metadata), scorer, compare=[scorer], policy=policy, task=task)
    assert [m.role for m in report.models] == ["model", "compare 1", "constant", "position only", "oracle"]
    model, _, constant, *_ = report.models
    assert model.error.exact is None
    assert constant.error.exact is not None
    halving = np.log(0.05 + 0.95 * 0.25) - np.log(0.05 + 0.95 * 0.5)
    first = model.error.sampled.by_depth[0].signed_mean
    assert first.estimate == pytest.approx(halving)
    assert len(str(report).splitlines()) <= 16
    assert report.pairs["compare 1"].signed_mean == Interval(0.0, 0.0, 0.0)


def ranking(report, **of_role):
    """The notes on ranking if each model had this AUC within prompt and depth."""
    models = [
        replace(
            m, calibration=replace(m.calibration, auc_within=of_role.get(m.role, Interval(0.5, 0.5, 0.5)))
        )
        for m in report.models
    ]
    return [text for m in models for _, text in ranking_notes(m, models)]


def test_a_consistent_model_that_does_not_rank_is_named(report):
    """The example's model has a smaller error than its constant; the constant itself is never named."""
    assert len(ranking(report)) == 1
    assert len(ranking(report, model=Interval(0.52, 0.46, 0.58))) == 1
    assert ranking(report, model=Interval(0.7, 0.6, 0.8)) == []
    unknown = ranking(report, model=Interval(0.7, 0.3, 0.9))
    assert len(unknown) == 1
    assert "not known" in unknown[0]


def test_the_example_ranks_as_its_values_do(report):
    """Of one prompt and depth, over prefixes of one and two steps, by a plain loop."""
    rng = np.random.default_rng(3)
    rows = rollouts(rng)
    of_model = scored(rows, rng, 0.1)
    wins = pairs = 0.0
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if a.prompt == b.prompt and a.reward > b.reward:
                better, worse = of_model.log_value[i][1:-1], of_model.log_value[j][1:-1]
                wins += np.sum(better > worse) + np.sum(better == worse) / 2
                pairs += len(better)
    assert report.model.calibration.auc_within.estimate == pytest.approx(wins / pairs)


@pytest.mark.parametrize("law", [{"temperature": 0.7}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_rollouts_of_another_law_are_said_above_the_figures(report, value_folder, law):
    """They measure another sampler than the checkpoint's: no figure is read before that."""
    its = CheckpointSettings.load(value_folder)
    own = {name: getattr(its, name) for name in ("temperature", "top_k", "top_p", "min_p", "prompt_format")}
    drawn = RolloutMetadata(
        its.policy, its.policy_fingerprint, its.task, its.horizon, its.steps, seed=0, **own
    )
    assert provenance_notes(drawn, its, "other") == []
    (text,) = provenance_notes(replace(drawn, **law), its, "other")
    found = replace(report, warnings=("few prompts", text))
    assert found.of_another == (text,)
    lines = str(found).splitlines()
    assert lines[1].startswith("WARNING: the rollouts were sampled at")
    assert len(lines) <= 18
    assert found._repr_html_().startswith("<p>WARNING: ")
    assert "WARNING" not in str(report)
