"""What `verify scaling` concludes from its points, and the report it writes; on points made up by known laws."""

import dataclasses
import math
import re

import pytest

from rmtools.codec import from_json, to_json
from rmtools.stats.bootstrap import Interval
from rmtools.verify.scaling.audits import Audited
from rmtools.verify.scaling.baselines import METHODS, Baseline, BaselineTrial
from rmtools.verify.scaling.exact_families import FAMILIES, FamilyPoint
from rmtools.verify.scaling.jobs import Horizon
from rmtools.verify.scaling.points import Consistency, Point, Trial, Variance
from rmtools.verify.scaling.profile import FULL, MODELS, TRAINED
from rmtools.verify.scaling.report.bellman import audit_sentence, audit_table
from rmtools.verify.scaling.report.claims import conclusions
from rmtools.verify.scaling.report.comparisons import ratios_to_exact, variance_ratios
from rmtools.verify.scaling.report.findings import baselines_sentence, baselines_table, family_sentences
from rmtools.verify.scaling.report.growth import growth_of, line, need_of, needs_of
from rmtools.verify.scaling.report.page import claims_table, summary, write_report
from rmtools.verify.scaling.run import Scaling

DELTA = 0.25
T = (2, 4, 8, 16, 32)
P = {t: 0.8**t for t in T}
BUDGET = 30_000


def variance_of(model, t, sampler):
    """Return a made-up N Var(Zhat / Z): exponential for constant and planted, polynomial for the others."""
    every = sampler == "every-step"
    constant = sum(0.8**-k - 1 for k in range(1, t + 1)) if every else 1 / P[t] - 1
    planted = sum(math.sinh(min(k - 1, t - k + 1) * math.log(1.2)) ** 2 for k in range(1, t + 1))
    exact = 0.22 * t ** (1.05 if every else 0.8)
    return {
        "constant": constant,
        "untrained": 1.4 * constant,
        "mc-early": exact * (1 + 0.25 * t),
        "mc-late": exact * 1.25,
        "default-early": exact * (1 + 0.12 * t),
        "default-late": exact * 1.1,
        "planted": exact + (1.1 * planted if every else 0.1 * t),
        "exact": exact,
    }[model]


def made(law=variance_of, horizons=T, budget=BUDGET, predicted=None, interval=1.2):
    """Return a `Scaling` whose needs follow ``law`` (model, T, sampler) to N Var."""
    points, found = [], {}
    for sampler in ("default", "every-step"):
        for model in MODELS:
            for t in horizons:
                variance = law(model, t, sampler)
                n, most = max(variance / DELTA**2, 1.0), budget // t
                trials = [
                    Trial(m, 4, cv, cv / 20, (1 - math.exp(-m / n)) * 0.9, 1.0, 4.0 * m * t)
                    for k in (3, 2, 1, 0, -1)
                    if 1 <= (m := round(n * 2**k)) <= most and (cv := math.sqrt(variance / m))
                ] or [Trial(most, 2, math.sqrt(variance / most), 0.1, 0.1, 1.0, 4.0 * most * t)]
                censored = n > most
                tables = [Trial(64 * round(variance) + 1, 8, 0.125, 0.002, 0.9, 1.0, 0.0)]
                points.append(
                    Point(
                        model, t, sampler,
                        (predicted or law)(model, t, sampler) / DELTA**2,
                        None if censored else n,
                        None if censored else n / interval,
                        None if censored else n * interval,
                        censored, trials[0].n_particles, 1.3 * n,
                        n if censored and n < 2**17 else None,
                        float(t), 4.0 * t * min(n, most), 0.0 if model in ("constant", "exact") else 4.0 * t * min(n, most),
                        12.3, trials, tables if censored else [],
                    )
                )  # fmt: skip
    for t in horizons:
        for model in (*MODELS, *(f"default-{k}" for k in FULL.curve)):
            base = model if model in MODELS else "default-early"
            v = law(base, t, "every-step")
            if model not in MODELS:
                v *= 1 + 300 / int(model.split("-")[1])
            rms = math.sqrt(max(v / law("exact", t, "every-step") - 1, 1e-4)) / t
            found[f"{model} at {t}"] = Consistency(
                rms, rms, 0.9 * rms, 0.1, 0.2, v, law("exact", t, "every-step"), 3 * rms, 4.0
            )
    of = [Horizon(t, P[t], P[t] / 10, 0.9, 1e-4, 1000, t > 8) for t in horizons]
    profile = dataclasses.replace(FULL, horizons=tuple(horizons))
    return Scaling(
        profile,
        of,
        points,
        found,
        baselines(horizons),
        exact_families(),
        audits(found, horizons),
        variances(found, horizons),
    )


def variances(found, horizons):
    """Variances within 3% of sigma^2, of the language model up to T = 8."""
    return [
        Variance(t, v, max(64, round(25 * v)), 64, Interval(0.97, 0.92, 1.03), "tables" if t > 8 else "runs")
        for t in horizons
        for v in [found[f"constant at {t}"].sigma2]
    ]


def audits(found, horizons):
    """Audits whose intervals hold the tables' figures, but one RMS, and one N that is not resolved."""
    rows = []
    for model in TRAINED:
        for t in horizons:
            known = found[f"{model} at {t}"]
            rms, n = known.rms_policy * (3 if (model, t) == ("mc-late", 4) else 1), known.sigma2 / DELTA**2
            cost = None if (model, t) == ("mc-early", 2) else Interval(n, n / 2, None)
            rows.append(
                Audited(model, t, Interval(rms, rms / 2, rms * 2), None, cost, Interval(0.7, 0.6, 0.8))
            )
    return rows


def baselines(horizons):
    """Methods that need 2^T solutions, but SMC, which needs T; its_hub is not done in time."""
    found = []
    for t in horizons:
        for m in METHODS:
            need = None if m == "its-hub" and t > 4 else float(t if m == "smc" else 2**t)
            trials = [BaselineTrial(int(need or 64), 4, 0.8, 8.0 * (need or 64), 4.0)]
            found.append(Baseline(m, "default-late", t, 0.8, need, need, None, None, trials))
    return found


def exact_families():
    """Persistent: 16 sigma^2 at every step, 8 by default; hidden_prefix: doubles with every step."""
    found = []
    for family, steps in FAMILIES.items():
        for t in steps:
            sigma2 = t / 4 if family == "persistent" else 2.0**t
            for sampler in ("every-step", "default"):
                need = 8.0 if family == "persistent" and sampler == "default" else 16 * sigma2
                found.append(FamilyPoint(family, t, sampler, sigma2, need, need, need, int(4 * need)))
    return found


def claims(found):
    return {c.short: c for c in conclusions(found).claims}


def changed(found, change, **where):
    """Return ``found`` with ``change(point)`` in place of the points whose fields are ``where``."""
    points = [change(p) if all(getattr(p, k) in v for k, v in where.items()) else p for p in found.points]
    return dataclasses.replace(found, points=points)


def unknown(point):
    return dataclasses.replace(
        point,
        n_measured=None,
        low=None,
        high=None,
        censored=True,
        n_on_tables=None,
        n_largest=round(point.n_measured / 2),
    )


def test_known_laws_are_found():
    found = claims(made())
    assert {c.short: c.verdict for c in found.values() if c.holds is not True} == {}
    assert found["no reward model"].found.estimate == pytest.approx(1, abs=1e-9)
    assert found["trained, every-step"].found.estimate == pytest.approx(1.05)
    assert found["trained, default"].found.estimate == pytest.approx(0.8)
    assert found["near exact, default"].found.estimate == pytest.approx(1.1)
    assert found["constant's variance"].found.estimate == 0.97
    assert "0.97 [0.92, 1.03] at T = 16 on tables" in found["constant's variance"].detail
    # The same slope from N CV^2, which the grid of N does not round.
    assert "of all its runs the ratio is 1.00" in found["no reward model"].detail
    assert found["rank correlation"].found.estimate == pytest.approx(1)


def law_with(**changes):
    """Return the law with other values of some models: functions (law, T, sampler)."""

    def law(model, t, sampler):
        return changes.get(model.replace("-", "_"), lambda law, *at: law(model, *at))(variance_of, t, sampler)

    return law


def off(found, by):
    return changed(found, lambda p: dataclasses.replace(p, n_predicted=p.n_predicted * by(p)))


FAILING = {
    "no reward model": lambda: made(law_with(constant=lambda law, t, s: 0.75**-t - 1)),
    "trained, every-step": lambda: made(
        law_with(
            **{
                m: lambda law, t, s: 0.1 * t**2
                for m in ("mc_late", "mc_early", "default_late", "default_early")
            }
        )
    ),
    "persistent bias": lambda: made(law_with(planted=lambda law, t, s: law("exact", t, s) * 2 / t**0.1)),
    "prediction within ×2": lambda: off(made(), lambda p: 3.0),
    "rank correlation": lambda: off(made(), lambda p: p.n_predicted**-2),
    "near exact, default": lambda: made(law_with(default_late=lambda law, t, s: 1.6 * law("exact", t, s))),
    "constant's variance": lambda: dataclasses.replace(
        made(),
        variances=[
            dataclasses.replace(v, relative=Interval(1.16, 1.05, 1.3)) if v.horizon == 8 else v
            for v in made().variances
        ],
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_claim_that_does_not_hold_fails(name):
    found = FAILING[name]()
    claim = claims(found)[name]
    assert claim.verdict == "fails"
    assert ("fails", claim.asked) in {(row[1], row[3]) for row in claims_table(conclusions(found)).rows}


def test_laws_are_told_apart():
    points = made().points
    shapes = {m: growth_of(points, m, "default").shape for m in MODELS}
    assert shapes == {m: "exponential" if m in ("constant", "untrained") else "polynomial" for m in MODELS}
    assert growth_of(points, "planted", "every-step").shape == "exponential"
    assert growth_of(made(horizons=(2, 4, 8)).points, "constant", "default").shape == "not resolved"
    constant = growth_of(points, "constant", "default")
    assert constant.exponential.slope.estimate == pytest.approx(-math.log(0.8), rel=0.1)


def test_a_slope_has_the_interval_of_its_points():
    slope = line([0.0, 1.0], [0.0, 3.0], [0.3, 0.4]).slope
    assert (slope.estimate, slope.low) == pytest.approx((3.0, 3 - 1.959964 * 0.5))


def test_an_interval_is_never_finer_than_the_search():
    point = made(interval=1.01).points[2]
    assert need_of(point).sd == pytest.approx(math.log(2) / 2 / 1.959964)
    wide = dataclasses.replace(point, low=point.n_measured / 4, high=point.n_measured * 4)
    assert need_of(wide).sd == pytest.approx(math.log(4) / 1.959964)
    # An end that is not available lies beyond the largest N.
    assert (
        need_of(dataclasses.replace(point, high=None)).sd > math.log(point.n_largest / point.n_measured) / 4
    )


def test_a_censored_constant_is_left_out_and_said():
    claim = claims(changed(made(), unknown, model=["constant"], horizon=[8], sampler=["default"]))[
        "no reward model"
    ]
    assert claim.found.estimate == pytest.approx(1, abs=1e-9)
    assert "T = 8 censored, left out" in claim.detail


def test_a_censored_trained_model_bounds_the_slope_from_below():
    trained = {"model": ["mc-early", "mc-late", "default-early", "default-late"], "sampler": ["default"]}
    some = claims(changed(made(), unknown, horizon=[32], **trained))["trained, default"]
    assert (some.holds, some.found.high) == (None, None)
    steep = made(law_with(**{m.replace("-", "_"): lambda law, t, s: 0.01 * t**2.2 for m in trained["model"]}))
    assert claims(changed(steep, unknown, horizon=[32], **trained))["trained, default"].holds is False
    # A bound in the middle or below says nothing of the slope.
    assert claims(changed(made(), unknown, horizon=[4], **trained))["trained, default"].holds is True


def test_a_censored_model_is_at_least_so_much_dearer_than_the_exact_value():
    found = changed(made(), unknown, model=["default-late"], sampler=["default"], horizon=[16])
    (ratio,) = (r for r in ratios_to_exact(found.points, "default-late", "default") if r.bound)
    assert (ratio.horizon, ratio.found.high) == (16, None)
    assert claims(found)["near exact, default"].verdict == "not resolved"
    assert {n.source for n in needs_of(found.points, "default-late", "default")} == {"runs", "bound"}


def test_a_censored_point_counts_against_the_prediction_only_if_it_is_beyond_twice_of_it():
    found = made()
    large = [p for p in found.points if p.n_predicted >= 64 and p.n_measured is not None]
    beyond = changed(
        found,
        lambda p: dataclasses.replace(unknown(p), n_predicted=p.n_measured / 5),
        model=["mc-early"],
        horizon=[32],
        sampler=["default"],
    )
    claim = claims(beyond)["prediction within ×2"]
    assert claim.found.estimate == pytest.approx((len(large) - 1) / len(large))
    within = claims(changed(found, unknown, model=["mc-early"], horizon=[32], sampler=["default"]))
    assert within["prediction within ×2"].found.estimate == 1


def test_a_failure_says_how_near_it_is():
    claim = next(
        c for c in conclusions(FAILING["near exact, default"]()).claims if c.short == "near exact, default"
    )
    assert claim.margin.startswith("The interval reaches what was asked")
    clear = made(law_with(default_late=lambda law, t, s: 9 * law("exact", t, s)))
    assert claims(clear)["near exact, default"].margin == ""
    wide = changed(
        made(),
        lambda p: dataclasses.replace(p, low=p.low / 9, high=p.high * 9),
        model=["mc-late", "default-late"],
        sampler=["default"],
    )
    claim = claims(wide)["trained, default"]
    assert (claim.verdict, claim.margin) == (
        "fails",
        "The estimate is what was asked, its interval is too wide.",
    )


def test_ratios_of_variances_are_not_rounded_by_the_search():
    """Ratios 1.1 and 1.25 by construction, though N is rounded; intervals from the errors of the runs."""
    found = made()
    for model, ratio in (("default-late", 1.1), ("mc-late", 1.25)):
        rows = variance_ratios(found.points, model, "default")
        assert [r.horizon for r in rows] == list(T)
        for r in rows:
            assert r.found.estimate == pytest.approx(ratio)
            assert r.found.low < ratio < r.found.high < 1.2 * ratio
    assert "from N CV(Ẑ)² of the runs 1.10 [" in claims(found)["near exact, default"].detail


def test_two_horizons_are_no_law():
    found = claims(made(horizons=(2, 4, 8)))
    assert found["trained, default"].found is not None
    assert {found[n].verdict for n in ("trained, default", "trained, every-step", "persistent bias")} == {
        "not resolved"
    }


def test_nothing_measured_is_not_resolved():
    empty = dataclasses.replace(made(), points=[], consistency={}, variances=[])
    assert {c.verdict for c in conclusions(empty).claims} == {"not resolved"}


def test_the_terminal_has_few_short_lines():
    lines = str(summary(made())).splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Particles needed as solutions grow longer (full run, T = 2, 4, 8, 16, 32)"
    assert re.fullmatch(r"N, T = 4 to 32 +×870 constant, ×5.3 default-late, ×5.3 exact", lines[1])
    assert any(
        line.startswith("persistent bias") and "fails" in line
        for line in str(summary(FAILING["persistent bias"]())).splitlines()
    )


def test_other_methods_are_told_by_tokens_and_exact_families_by_particles():
    found = made()
    text = baselines_sentence(found)
    assert "at T = 32 SMC with default-late takes 260 tokens" in text
    assert "rejection 132,000,000 times as many" in text
    assert "its-hub does not get there (0.80 at most)" in text
    rows = {(row[0], row[1]): row for row in baselines_table(found).rows}
    assert rows["4", "its-hub"][3] == "16 [16, ?]"
    assert rows["8", "its-hub"][3] == "–"
    persistent, hidden = family_sentences(found.families)
    assert "256 particles are needed at every step, 8 by default" in persistent
    assert "from T = 6 to 15 it grows by 512" in hidden
    without = dataclasses.replace(found, baselines=[], families=[])
    assert family_sentences(without.families) == ()
    assert baselines_sentence(without).startswith("Other methods were not measured")


@pytest.mark.slow
def test_the_report_shows_its_pictures_and_failures_and_asks_for_nothing(tmp_path):
    found = made(
        law_with(default_late=lambda law, t, s: 2 * law("exact", t, s)), horizons=(2, 4, 8), budget=1500
    )
    # What a pilot did not resolve.
    found = changed(
        found,
        lambda p: dataclasses.replace(p, n_predicted=None),
        model=["untrained"],
        sampler=["default"],
    )
    silent = dataclasses.replace(found, profile=dataclasses.replace(found.profile, name="silent", also=None))
    found = from_json(Scaling, to_json(dataclasses.replace(found, also=silent)))
    write_report(found, tmp_path, "rmtools verify scaling --quick")
    page = (tmp_path / "scaling.html").read_text()
    plots = list(tmp_path.glob("*.svg"))
    assert page.count('<img src="data:image/svg+xml;base64,') == len(plots) - 1 == 12
    assert not re.search(r"https?://|<script|url\(", page)
    assert (tmp_path / "silent" / "scaling.html").exists()
    assert "What fails" in page
    assert "rmtools verify scaling --quick" in page
    text = (tmp_path / "scaling.md").read_text()
    assert text.splitlines()[2].startswith("![From 2 to 8 steps: ×")
    for plot in plots:
        assert f"({plot.name})" in text


def test_audits_stand_beside_the_tables():
    found = made()
    text = audit_sentence(found)
    assert "b for 19 of 20 models and horizons" in text
    assert "the 19 that it resolves" in text
    assert "every step for 19 of" in text
    rows = {(row[0], row[1]): row for row in audit_table(found).rows}
    assert len(rows) == 20
    assert rows["mc-early", "2"][6] == "–"
    known = found.consistency["default-late at 8"]
    assert rows["default-late", "8"][3] == f"{known.rms_policy:.3f}"


def test_a_need_beyond_the_tables_is_above_the_largest_n_tried_there():
    point = next(p for p in made().points if p.censored)
    beyond = dataclasses.replace(point, n_on_tables=None)
    assert need_of(beyond).source == "bound"
    assert need_of(beyond).n == pytest.approx(max(t.n_particles for t in point.trials_on_tables))
    assert need_of(dataclasses.replace(beyond, trials_on_tables=[])).n == pytest.approx(point.n_largest)


def test_a_bound_decides_only_for_the_exponential():
    """Of 4, 8, 16 on a power of T: a bound far above its continuation says exponential, one below it nothing."""

    def law(model, t, sampler):
        return 2.0 * t**1.2 if t < 32 else 1e6

    points = made(law, budget=20_000).points
    seen = growth_of(points, "exact", "default")
    assert (seen.bounds, seen.shape) == (1, "exponential")
    low = [
        dataclasses.replace(p, n_largest=16, trials_on_tables=[]) if p.horizon == 32 else p for p in points
    ]
    found = growth_of(low, "exact", "default")
    assert (found.bounds, found.shape) == (1, "not resolved")
