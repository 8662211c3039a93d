"""The first screen of an audit: what its verdict is read from, and that terminal, page and card tell the same."""

import re
from dataclasses import replace

import numpy as np
import pytest
from audit_example import TILT, example_report, rollouts, visible

from rmtools import plots
from rmtools.auditing.cost import LimitingCost, Tabulated, best_of_n_cost
from rmtools.auditing.cost_tables import cost_tables
from rmtools.auditing.figures import audit_plots
from rmtools.auditing.first_screen import BEST_OF_N, EVERY_STEP, PERFECT, TRIGGERED, first_screen, theory_of
from rmtools.auditing.notes import disagreements
from rmtools.auditing.page import markdown, sections
from rmtools.auditing.table import whole
from rmtools.plots.page import page, template
from rmtools.stats.bootstrap import Interval
from rmtools.stats.pilot import PilotSampler, pilot_estimator

TABLES = Tabulated(
    sigma2=Interval(3.0, 2.5, 3.8),
    perfect=Interval(2.5, 2.4, 2.6),
    ratio=Interval(1.2, 1.1, 1.6),
    mad=Interval(1.0, 0.9, 1.1),
    n_prompts=4,
    uncovered=0.01,
    best_of_n=Interval(20.0, 18.0, 22.0),
)


def limited(decided):
    n = Interval(64.0, 48.0, 80.0)
    return LimitingCost(0.5, Interval(4.0, 3.0, 5.0), True, n, None, decided, float(decided), ((1,),))


def costing(report, **changes):
    model = replace(report.model, cost=replace(report.model.cost, **changes))
    return replace(report, models=(model, *report.models[1:]))


@pytest.fixture(scope="module")
def report():
    return example_report()


@pytest.fixture(scope="module")
def pilot():
    rng = np.random.default_rng(0)
    log_z = np.log(rng.gamma(4.0, 0.25, (8, 32)))  # V(n) = 1/4
    return pilot_estimator(log_z, PilotSampler(16, terminal="model"), 0.25, 96.0, 12.0).bootstrap(rng)


def test_the_verdict_with_tables_and_best_of_n(report):
    """sigma^2 over .25^2; the ratio is that of the tables, and so is best-of-N."""
    screen = costing(report, tabulated=TABLES, limiting=None).first_screen()
    assert screen.verdict == (
        "This PRM costs 1.2× [1.1, 1.6] the particles of a perfect one; 48 [40, 61] particles give Z within 25% on these "
        "prompts; best-of-N needs 320 [288, 352] for the same."
    )
    figures = {f.label.strip(): f.figure for f in screen.facts}
    assert figures["perfect value"] == "40 [39, 42]"
    assert (screen.theory.resampling, screen.theory.enumerated) == (EVERY_STEP, True)


def test_particles_are_those_of_the_pilot_if_there_is_one(report, pilot):
    """Best-of-N is then of the pilot's Z, the model's own last value; the theory stands beside it, named."""
    own = replace(report.model.cost.best_of_n, estimate=Interval(9.0, 8.0, 10.0), resolved=True)
    found = costing(report, pilot=pilot, tabulated=TABLES, best_of_n_own=own)
    screen = found.first_screen()
    islands = pilot.islands_for_cv
    assert f"; {whole(pilot.n_for_cv)} particles give" in screen.verdict
    assert "best-of-N needs 144 [128, 160]" in screen.verdict
    first, *others = screen.facts
    assert (first.remark, first.command) == (
        "for CV 0.25, by a pilot:",
        f"-n {16 * islands} --islands {islands}",
    )
    assert f"by a pilot: {first.command}" in found.answer()
    theory = next(f for f in others if f.label.strip() == "by theory")
    assert (theory.figure, theory.remark) == ("48 [40, 61]", "resampling at every step, terminal verifier")
    assert max(map(len, found.answer().splitlines())) <= 80
    assert "…" not in found.answer().partition("worst prefix")[0]
    paid = next(iter(cost_tables(found)))
    # What is paid is whole islands; tokens are those of an island, times their number.
    assert paid.rows[0][:3] == ("this PRM, as sampled", f"{16 * islands}", f"{96 * islands:,}")
    assert float(paid.rows[0][5]) == pytest.approx(12 / (32 * 8) * islands, rel=0.05)
    assert {row[3] == "0" for row in paid.rows if row[0].startswith("best-of-N")} == {False}


def test_a_command_is_never_cut(report, pilot):
    """Flags and their values stay together, in lines of their own where they do not fit; on the page each flag is whole."""
    sampler = replace(
        pilot.sampler, resampling="multinomial", ess_threshold=0.123, pool_size=16, terminal="verifier"
    )
    found = costing(report, pilot=replace(pilot, sampler=sampler, islands_for_cv=123456))
    command = found.first_screen().facts[0].command
    assert command.endswith(
        "--pool-size 16 --resampling multinomial --ess-threshold 0.123 --terminal verifier"
    )
    lines = found.answer().splitlines()
    assert max(map(len, lines)) <= 80
    flags = [line.strip() for line in lines if line.startswith(" ") and line.lstrip().startswith("-")]
    assert (" ".join(flags), len(flags)) == (command, 3)
    html = page("audit", sections(found, drawn=False))
    for flag in ("-n 1975296", "--islands 123456", "--resampling multinomial"):
        assert f"<span>{flag}</span>" in html
    assert command in " ".join(visible(html).split())
    assert f"`{command}`" in markdown(found)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (Interval(2.0, 1.6, 2.4), "best-of-N needs 144 [128, 160] for the same, 2× [1.6, 2.4] as many."),
        (Interval(0.5, 0.4, 0.6), "best-of-N needs 144 [128, 160] for the same, 0.5× [0.4, 0.6] as many."),
        (Interval(1.1, 0.9, 1.4), ", 1.1× [0.9, 1.4] as many (no difference is resolved)."),
        (None, "best-of-N needs 144 [128, 160] for the same."),
    ],
)
def test_best_of_n_is_compared_by_the_paired_ratio(report, pilot, times, words):
    own = replace(report.model.cost.best_of_n, estimate=Interval(9.0, 8.0, 10.0), resolved=True)
    found = costing(report, pilot=replace(pilot, best_of_n=times), best_of_n_own=own)
    assert found.first_screen().verdict.endswith(words)
    if times is not None:  # n is more than enough
        cut = replace(pilot, best_of_n=times, n_for_cv=Interval(16.0, 16.0, 16.0))
        assert "as many" not in costing(report, pilot=cut, best_of_n_own=own).first_screen().verdict


@pytest.mark.parametrize(
    ("best", "begins"),
    [
        (
            Interval(9.0, 8.0, 10.0),
            "Best-of-N needs 144 [128, 160] solutions for Z within 25% on these prompts; how many",
        ),
        (
            Interval(0.01, 0.0, 0.02),
            "A single solution is enough for Z within 25% on these prompts: final values hardly",
        ),
        (None, "How many particles this PRM needs for Z within 25% on these prompts is not known"),
    ],
)
def test_a_target_of_its_own_without_a_pilot(report, best, begins):
    """What is known stands first; what is not says what counts it."""
    found = None if best is None else replace(report.model.cost.best_of_n, estimate=best, resolved=True)
    cost = replace(report.model.cost, sigma2=None, limiting=None, tabulated=None, best_of_n=found)
    own = replace(report, models=(replace(report.model, terminal="model", cost=cost),))
    screen = own.first_screen()
    assert screen.verdict.startswith(begins)
    assert "is not known (its own ends are the target, and only a pilot counts them)" in screen.verdict
    assert "its Bellman error is " in screen.verdict
    assert screen.facts[0].remark == "only a pilot counts them"
    assert max(map(len, own.answer().splitlines())) <= 80


def test_a_pilot_that_resolves_nothing_gives_way_to_the_theory(report, pilot):
    silent = replace(pilot, resolved=False, n_for_cv=None, islands_for_cv=None, reason="too few islands")
    found = costing(report, pilot=silent)
    assert found.first_screen() == report.first_screen()
    assert ("model", "the pilot: too few islands") in disagreements(found.model)


@pytest.mark.parametrize(
    ("decided", "resampling", "needed"), [(True, TRIGGERED, 64.0), (False, EVERY_STEP, 48.0)]
)
def test_the_limiting_schedule_counts_only_where_it_is_decided(report, decided, resampling, needed):
    sigma2 = replace(report.model.cost.sigma2, estimate=Interval(3.0, 2.0, 4.0), resolved=True)
    theory = theory_of(costing(report, limiting=limited(decided), sigma2=sigma2).models)
    assert theory.resampling == resampling
    assert theory.needed("model", 0.25).estimate == needed
    tables = replace(TABLES, limiting=limited(decided), perfect_limiting=Interval(3.0, 2.0, 4.0))
    theory = theory_of(costing(report, limiting=None, tabulated=tables).models)
    assert (theory.resampling, theory.needed("model", 0.25).estimate) == (resampling, needed)
    assert theory.sigma2[PERFECT].estimate == (3.0 if decided else 2.5)
    # The control was not enumerated: its estimate from rollouts does not stand beside exact ones.
    assert theory.sigma2["constant"] is None


def test_what_is_not_above_its_noise_is_not_counted(report):
    cost = report.model.cost
    for estimate, resolved in ((Interval(-7.7, -9.0, 1.0), True), (Interval(3.0, 2.0, 4.0), False)):
        found = replace(cost.sigma2, estimate=estimate, resolved=resolved)
        text = costing(report, sigma2=found, limiting=None).answer()
        assert "how many particles this PRM needs is not resolved" in " ".join(text.split())
        assert "-7.7" not in text
        assert "-123" not in text


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (Interval(1.0, 0.9, 1.1), "best-of-N needs 16 [15, 18] for the same: fewer than with this PRM."),
        (Interval(3.0, 1.0, 5.0), "best-of-N needs 48 [16, 80] for the same (the intervals overlap)."),
        (Interval(9.0, 8.0, 10.0), "best-of-N needs 144 [128, 160] for the same."),
    ],
)
def test_the_verdict_does_not_claim_more_than_is_known(report, best, words):
    screen = costing(report, tabulated=replace(TABLES, best_of_n=best), limiting=None).first_screen()
    assert screen.verdict.endswith(words)


def test_best_of_n_is_the_variance_of_the_final_values(report):
    """Over pairs of trajectories, prompts pooled; whatever the values between."""
    rows = rollouts(np.random.default_rng(3))
    phi = np.exp(TILT.log_potential(np.asarray([r.reward for r in rows]))).reshape(8, 4)
    z_square = (phi.sum(1) ** 2 - np.sum(phi**2, 1)) / 12
    expected = np.sum(np.mean(phi**2, axis=1) - z_square) / z_square.sum()
    assert report.model.cost.best_of_n.estimate.estimate == pytest.approx(expected)
    assert {m.cost.best_of_n.estimate.estimate for m in report.models} == {report.model.cost.best_of_n.ratio}
    assert report.model.cost.best_of_n_own.estimate.estimate != pytest.approx(expected)
    assert best_of_n_cost([np.ones(3), np.ones(3)]) is None
    assert best_of_n_cost([np.array([1.0, 2.0]), np.ones(1)]) is None


def test_terminal_page_and_card_tell_the_same(report):
    found = costing(report, tabulated=TABLES)
    screen = found.first_screen()
    html = visible(page("audit", sections(found, drawn=False)))
    card, printed = markdown(found).replace("\\", ""), str(found)
    for shown in (html, card, printed, found._repr_html_()):
        words = " ".join(visible(shown).split())
        assert all(
            " ".join(part.split()) in words for part in (screen.verdict, *(f.figure for f in screen.facts))
        )
    # All but the answer and the warnings is folded.
    kept = [s.title for s in sections(found, drawn=False) if not s.folded]
    assert kept == ["", "Warnings"]
    assert card.count("<details>") == card.count("</details>") == len(sections(found, drawn=False)) - 3


def test_nothing_on_the_page_is_wider_than_a_telephone():
    """390 px are 24.4 rem: what needs more stands in a box that scrolls."""
    text = template().render(title="t", sections=[])
    style = text[text.index("<style>") : text.index("</style>")]
    assert "px" not in style.replace("2px", "").replace("1px", "")
    assert ".scroll { overflow-x: auto" in style
    wide = [
        (rule, float(size))
        for rule, body in re.findall(r"([^{};]+)\{([^{}]*)\}", style)
        for size in re.findall(r"(?<!max-)width:\s*([\d.]+)rem", body)
        if float(size) > 22
    ]
    assert [rule.strip() for rule, _ in wide] == ["td.long"]  # of tables, which scroll


def test_the_picture_has_the_counts_of_the_verdict(report, pilot):
    found = costing(report, tabulated=TABLES, pilot=pilot, best_of_n_own=None)
    name, first = next(iter(audit_plots(found.models, 0.25).items()))
    assert name == "particles"
    (ax,) = first.draw().axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [
        "this model, theory: 48",
        "perfect value: 40",
        f"the sampler, in a pilot: {np.ceil(pilot.n_for_cv.estimate):.0f}",
    ]
    assert "48 [40, 61]" in first.alternative
    drawn = next(iter(audit_plots(costing(report, tabulated=TABLES, limiting=None).models, 0.25).values()))
    assert next(t.get_text() for t in drawn.draw().axes[0].get_legend().get_texts()) == "best-of-N: 320"
    assert plots.style_of(BEST_OF_N)[0] == "best-of-N"


def test_estimates_that_exclude_each_other_are_named(report):
    def told(tables, estimate, exact=None):
        sigma2 = replace(report.model.cost.sigma2, estimate=estimate, resolved=True)
        model = costing(report, tabulated=tables, sigma2=sigma2).model
        return [text for _, text in disagreements(replace(model, error=replace(model.error, exact=exact)))]

    subset, apart = told(TABLES, Interval(9.0, 8.0, 10.0))
    assert "first 4 of 8 prompts" in subset
    assert "sigma^2 is 3 [2.5, 3.8] by the tables and 9 [8, 10] by the rollouts" in apart
    assert told(TABLES, Interval(4.0, 3.0, 10.0)) == [subset]
    assert told(replace(TABLES, n_prompts=8), Interval(4.0, 3.0, 10.0)) == []
    # The example's enumerated errors are random, as its sampled ones.
    (text,) = told(None, Interval(4.0, 3.0, 10.0), report.model.error.exact)
    assert text.startswith("RMS b is")


def test_the_worst_prefix_is_told_by_its_end_without_marks_of_turns(report):
    worst = replace(
        report.model.breakdowns.worst[0],
        prompt="<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n",
    )
    for steps, end in (((), "after How many?"), (("1 + 1 = 2\n",), "after How many? ⏎ 1 + 1 = 2")):
        shown = replace(report.model.breakdowns, worst=(replace(worst, steps=steps),))
        model = replace(report.model, breakdowns=shown)
        assert first_screen([model], report.provenance).facts[-1].remark == end


def test_a_first_screen_of_models_alone(report):
    assert first_screen(report.models, report.provenance) == report.first_screen()
