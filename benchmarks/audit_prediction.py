"""Particles predicted by an audit against the particles the sampler needs, and whether audits rank value models."""

import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from audit_coverage import N_RESAMPLES, verdict
from audit_needed import Sampler, smallest
from audit_population import Population, Rollouts, draw_rollouts

from rmtools.codec import from_json, to_json
from rmtools.stats.bootstrap import Interval
from rmtools.stats.influence import influence_estimator
from rmtools.stats.sigma2 import Sigma2, n_for_cv, n_for_tv, sigma2_estimator

CLOSE, ROUGH = (0.8, 1.25), (0.5, 2.0)
RANKING = 0.9
COMPLETIONS = 4
REPEATS = 20


@dataclass(frozen=True)
class Effort:
    """Accuracies asked for, trajectories of the audits in all, runs of each prompt at each N, seed of the runs."""

    delta_cv: float
    delta_tv: float
    trajectories: tuple[int, ...]
    runs: int
    seed: int


def audit_rollouts(population: Population, trajectories: int, rng: np.random.Generator) -> Rollouts:
    """Draw an audit's trajectories, as many of each prompt."""
    n = max(4, trajectories // len(population))
    return draw_rollouts(population.roots(np.arange(len(population))), n, 2, COMPLETIONS, rng)


def predicted(population: Population, rollouts: Rollouts, rng: np.random.Generator) -> Sigma2:
    """Return sigma^2 from rollouts, pooled."""
    log_value, _ = rollouts.values(population.joined)
    return sigma2_estimator(rollouts.parts(log_value)).bootstrap(rng, N_RESAMPLES)


def audited(
    population: Population, trajectories: int, effort: Effort, rng: np.random.Generator
) -> dict[str, Any]:
    """Return what an audit of fresh rollouts predicts."""
    rollouts = audit_rollouts(population, trajectories, rng)
    sigma2 = predicted(population, rollouts, rng).estimate
    log_value, _ = rollouts.values(population.joined)
    spread = influence_estimator(rollouts.spreads(log_value)).bootstrap(rng, N_RESAMPLES)
    return {
        "trajectories": int(rollouts.potential.size),
        "sigma2": to_json(sigma2),
        "sd": to_json(spread.sd),
        "mad_plug_in": spread.mad_plug_in,
        "n_for_cv": n_for_cv(sigma2.estimate, effort.delta_cv),
        "n_for_tv": n_for_tv(spread.sd.estimate, effort.delta_tv),
        "n_for_tv_plug_in": n_for_tv(spread.mad_plug_in, effort.delta_tv),
    }


def compare(
    kind: str, name: str, population: Population, effort: Effort, rng: np.random.Generator
) -> dict[str, Any]:
    """Return predicted and needed particles of one value model."""
    audits = [audited(population, n, effort, rng) for n in effort.trajectories]
    mad = population.pooled([e.influence_mad().value for e in population.exact])
    sampler = Sampler(population, "multinomial", 1.0, effort.runs, effort.seed)
    default = Sampler(population, "systematic", 0.5, effort.runs, effort.seed)
    needed_cv = smallest(lambda n: sampler.at(n).cv, effort.delta_cv, 0.5)
    needed_tv = smallest(lambda n: sampler.at(n).tv, effort.delta_tv, 1.0)
    row = {
        "kind": kind,
        "model": name,
        "prompts": len(population),
        "horizon": population.horizon,
        "effort": asdict(effort),
        "sigma2_exact": population.truth["sigma^2"],
        "mad_exact": mad,
        "sd_exact": population.truth["SD of H"],
        "audits": audits,
        "needed_cv": needed_cv,
        "needed_cv_default": smallest(lambda n: default.at(n).cv, effort.delta_cv, 0.5),
        "needed_tv": needed_tv,
        "cv_exact": n_for_cv(population.truth["sigma^2"], effort.delta_cv) / needed_cv,
        "cv_rollouts": [a["n_for_cv"] / needed_cv for a in audits],
        "tv_exact": n_for_tv(mad, effort.delta_tv) / needed_tv,
        "tv_rollouts": [a["n_for_tv"] / needed_tv for a in audits],
        "tv_plug_in": [a["n_for_tv_plug_in"] / needed_tv for a in audits],
    }
    print({key: row[key] for key in row if key not in ("effort", "audits")}, file=sys.stderr)
    return row


def ratios(rows: list[dict[str, Any]], key: str) -> list[tuple[str, str, float]]:
    """Return (which audit, which model, ratio) of every model and, for those from rollouts, of every audit."""
    found = []
    for row in rows:
        label = f"{row['kind']}, {row['model']}"
        if isinstance(row[key], list):
            sizes = [f", {a['trajectories']} trajectories" for a in row["audits"]]
            found += [(size, label, x) for size, x in zip(sizes, row[key], strict=True)]
        else:
            found.append(("", label, row[key]))
    return found


def prediction_verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return which ratios lie in their intervals."""
    finite = [r for r in rows if r["kind"] == "trees"]
    tables = [r for r in rows if r["kind"] != "trees"]
    wanted = [
        ("trees: sigma^2 exact, CV", finite, "cv_exact", CLOSE),
        ("trees: sigma^2 from rollouts, CV", finite, "cv_rollouts", CLOSE),
        ("trees: MAD(H) exact, TV", finite, "tv_exact", CLOSE),
        ("trees: SD(H) from rollouts (an upper bound), TV", finite, "tv_rollouts", CLOSE),
        ("crossing: sigma^2 exact, CV", tables, "cv_exact", CLOSE),
        ("crossing: sigma^2 from rollouts, CV", tables, "cv_rollouts", ROUGH),
        ("crossing: MAD(H) exact, TV", tables, "tv_exact", CLOSE),
        ("crossing: SD(H) from rollouts (an upper bound), TV", tables, "tv_rollouts", ROUGH),
    ]
    verdicts = []
    for label, group, key, (low, high) in wanted:
        found = ratios(group, key)
        for size in dict.fromkeys(size for size, _, _ in found):
            part = {model: x for at, model, x in found if at == size}
            spread = f"{min(part.values()):.2f} to {max(part.values()):.2f}"
            text = f"predicted / needed within [{low}, {high}], {len(part)} models; {label}{size}: {spread}"
            outside = [f"{model}: {x:.2f}" for model, x in part.items() if not low <= x <= high]
            verdicts.append(verdict(text, outside))
    return verdicts


def prediction_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of the printed table."""
    heads = [
        "population",
        "value",
        "σ² exact",
        "σ² from rollouts",
        "N for CV: needed",
        "exact / needed",
        "rollouts / needed",
        "needed, default setting",
        "N for TV: needed",
        "MAD exact / needed",
        "SD from rollouts / needed",
        "plug-in MAD / needed",
    ]
    return heads, [prediction_row(r) for r in rows]


def prediction_row(r: dict[str, Any]) -> list[str]:
    """Return the cells of a value model; audits of different size one after the other."""

    def each(key: str) -> str:
        return "; ".join(f"{x:.2f}" for x in r[key])

    return [
        f"{r['kind']}, {r['prompts']} prompts, T = {r['horizon']}",
        r["model"],
        f"{r['sigma2_exact']:.3g}",
        "; ".join(str(from_json(Interval, a["sigma2"])) for a in r["audits"]),
        f"{r['needed_cv']:.0f}",
        f"{r['cv_exact']:.2f}",
        each("cv_rollouts"),
        f"{r['needed_cv_default']:.0f}",
        f"{r['needed_tv']:.0f}",
        f"{r['tv_exact']:.2f}",
        each("tv_rollouts"),
        each("tv_plug_in"),
    ]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def rank(
    models: list[tuple[str, Population]], effort: Effort, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return audited and needed of every model, all audited on the same rollouts of the same prompts."""
    audits = [audit_rollouts(models[0][1], n, rng) for n in effort.trajectories]
    rows = []
    for name, population in models:
        sigma2 = [predicted(population, rollouts, rng).estimate for rollouts in audits]
        sampler = Sampler(population, "multinomial", 1.0, effort.runs, effort.seed)
        needed = smallest(lambda n, sampler=sampler: sampler.at(n).cv, effort.delta_cv, 0.5)
        row = {
            "model": name,
            "prompts": len(population),
            "trajectories": [int(rollouts.potential.size) for rollouts in audits],
            "sigma2_rollouts": [to_json(x) for x in sigma2],
            "sigma2_exact": population.truth["sigma^2"],
            "rms_b": population.truth["RMS b"],
            "needed_cv": needed,
        }
        rows.append(row)
        print(name, row["sigma2_exact"], *sigma2, needed, file=sys.stderr)
    return rows


def repeated_ranks(
    models: list[tuple[str, Population]],
    rows: list[dict[str, Any]],
    effort: Effort,
    rng: np.random.Generator,
) -> dict[str, list[float]]:
    """Return the rank correlations of ``REPEATS`` fresh audits of each size with what is needed: how sure one is."""
    needed, found = np.array([r["needed_cv"] for r in rows]), {}
    for n in effort.trajectories:
        audits = [audit_rollouts(models[0][1], n, rng) for _ in range(REPEATS)]
        estimates = [[pooled_ratio(population, rollouts) for _, population in models] for rollouts in audits]
        found[str(audits[0].potential.size)] = [rank_correlation(np.array(x), needed) for x in estimates]
    return found


def pooled_ratio(population: Population, rollouts: Rollouts) -> float:
    """Return the estimate of `sigma2_estimator` without its interval."""
    parts = rollouts.parts(rollouts.values(population.joined)[0])
    numerator = sum(p.numerator - p.n_terms * p.z_square for p in parts)
    return numerator / sum(p.z_square for p in parts)


def repeats_table(found: dict[str, list[float]]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of the repeated audits."""
    heads = ["trajectories", "fresh audits", "Spearman: median", "lowest", "at least .9 in"]
    return heads, [
        [size, str(len(x)), f"{np.median(x):.3f}", f"{min(x):.3f}", str(sum(r >= RANKING for r in x))]
        for size, x in found.items()
    ]


def ranking_verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rank correlations of what predicts with what is needed."""
    needed = np.array([r["needed_cv"] for r in rows])
    others = ", ".join(
        f"by {label} {rank_correlation(np.array([r[key] for r in rows]), needed):.3f}"
        for label, key in (("sigma^2 exact", "sigma2_exact"), ("RMS b exact", "rms_b"))
    )
    verdicts = []
    for i, size in enumerate(rows[0]["trajectories"]):
        found = rank_correlation(np.array([r["sigma2_rollouts"][i]["estimate"] for r in rows]), needed)
        text = (
            f"Spearman of sigma^2 audited from {size} trajectories with needed particles, {len(rows)} models, at least "
            f"{RANKING}: {found:.3f} ({others})"
        )
        verdicts.append(verdict(text, [] if found >= RANKING else [f"{found:.3f}"]))
    return verdicts


def ranking_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of the printed table, cheapest first."""
    heads = ["value model", "σ² from rollouts", "σ² exact", "RMS b exact", "N needed"]
    ordered = sorted(rows, key=lambda r: r["needed_cv"])
    return heads, [
        [
            r["model"],
            "; ".join(str(from_json(Interval, x)) for x in r["sigma2_rollouts"]),
            f"{r['sigma2_exact']:.3g}",
            f"{r['rms_b']:.3g}",
            f"{r['needed_cv']:.1f}",
        ]
        for r in ordered
    ]
