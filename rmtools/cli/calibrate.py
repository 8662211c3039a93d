"""``rmtools calibrate``: a monotone map of a reward model's p, fitted to the outcomes of rollouts and saved beside the model."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rmtools.cli.options import (
    AggregateName,
    Device,
    Dtype,
    Floor,
    PrmFormat,
    PromptsLimit,
    RemoteCode,
    RootValue,
    Seed,
    data_option,
    model_option,
    output_option,
    work_option,
)
from rmtools.cli.published import PublishedOptions

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollouts
    from rmtools.lm.precision import Placement
    from rmtools.lm.protocol import Scorer
    from rmtools.stats.map_fit import FittedMap

WIDTH = 80
CalibratedModel = Annotated[
    str,
    model_option(help="Checkpoint of the value model or a published reward model: folder or hub name."),
]
FittedOn = Annotated[
    str,
    data_option(
        help="Rollouts with rewards, on prompts the model was not trained on: a folder, a file or a hub data set."
    ),
]
Form = Annotated[
    Literal["auto", "platt", "piecewise"],
    work_option(
        help="Of the map, in log odds: platt (a line) or piecewise (linear between knots). auto: the simplest that held-out "
        "prompts do not tell from the best; none if p is as good as it is."
    ),
]
ByDepth = Annotated[
    Literal["auto", "none"],
    work_option(
        help="auto: another map at each depth where held-out prompts are predicted better by it. none: one map, which "
        "`rmtools export` can fold into the head if it is platt."
    ),
]
Folds = Annotated[int, work_option(min=2, max=1000, help="Parts of the prompts that are held out in turn.")]
CalibratedFolder = Annotated[
    Path,
    output_option(
        help="Output folder, named as --model afterwards. An earlier calibration there is replaced."
    ),
]


def command(
    model: CalibratedModel,
    rollouts: FittedOn,
    out: CalibratedFolder,
    prm_format: PrmFormat = None,
    root_value: RootValue = "first-steps",
    aggregate: AggregateName = "last",
    floor: Floor = 0.01,
    trust_remote_code: RemoteCode = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    prompts_limit: PromptsLimit = None,
    form: Form = "auto",
    by_depth: ByDepth = "auto",
    folds: Folds = 5,
    seed: Seed = 0,
) -> None:
    """Map a reward model's p to the chance of success, and save the map beside the model.

    The map is monotone, chosen by cross-fitted log loss over prompts, and applied wherever the folder is named as --model.
    """
    from rmtools.cli.device import placement_for
    from rmtools.cli.progress import progress
    from rmtools.data.load import load_rollouts
    from rmtools.evaluation.calibrate import calibrate
    from rmtools.evaluation.step_scores import rows_as_trained
    from rmtools.lm.calibrated_folder import claim_calibrated, save_calibrated
    from rmtools.lm.calibration_file import prompt_key
    from rmtools.seeds import generator

    folder = claim_calibrated(model, out, prm_format)
    options = PublishedOptions(prm_format, root_value, aggregate, floor, trust_remote_code)
    published = options.names(model)
    rows = load_rollouts(rollouts)
    if prompts_limit is not None:
        kept = set(list(dict.fromkeys(r.prompt for r in rows))[:prompts_limit])
        rows = replace(rows, rows=[r for r in rows if r.prompt in kept])
    value, notes = _loaded(model, options if published else None, rows, placement_for(device, dtype))
    read = rows_as_trained(rows, value)
    with progress("scoring solutions", len(read)) as tick:
        fitted = calibrate(list(read), value, generator("calibrate", seed), form, by_depth, folds, tick)
    prompts = tuple(sorted({prompt_key(r.prompt) for some in (rows, read) for r in some}))
    provenance = _provenance(rows, rollouts, seed)
    save_calibrated(model, folder, fitted, prompts, provenance, options.asked() if published else None)
    _print(fitted, value, rows, notes)
    for line in _serving(fitted, value):
        print(line)
    print(f"calibrated model: {folder}")
    print(f"next: rmtools audit --model {folder} --rollouts OTHERS   (of prompts it was not fitted on)")


def _loaded(
    model: str, published: PublishedOptions | None, rows: "Rollouts", placement: "Placement"
) -> "tuple[Scorer, list[str]]":
    """Return the model, and what differs between the rollouts and what it was trained for."""
    from rmtools.auditing.notes import provenance_notes
    from rmtools.cli.device import print_precision
    from rmtools.data.rollouts import rollouts_fingerprint
    from rmtools.lm.checkpoint import load_value_model
    from rmtools.lm.hub import find_model

    if published is not None:
        return published.load(model, rows.metadata.steps, placement), []
    name = find_model(model).pinned
    value, settings = load_value_model(name, device=placement.device, dtype=placement.dtype)
    print_precision(value_model=value)
    return value, provenance_notes(rows.metadata, settings, rollouts_fingerprint(rows.rows))


def _provenance(rows: "Rollouts", source: str, seed: int) -> dict[str, Any]:
    import rmtools
    from rmtools.data.rollouts import rollouts_fingerprint

    known = rows.metadata
    return {
        "rollouts": source,
        "rollouts_fingerprint": rollouts_fingerprint(rows.rows),
        "policy": known.policy,
        "policy_fingerprint": known.policy_fingerprint,
        "n_trajectories": len(rows),
        "seed": seed,
        "rmtools": rmtools.__version__,
    }


def _print(fitted: "FittedMap", value: "Scorer", rows: "Rollouts", notes: list[str]) -> None:
    """Print the forms that were tried, the chosen one, and why."""
    from rmtools.auditing.table import in_columns

    policy = rows.metadata.policy or "the policy that drew the rollouts"
    print(
        f"{value.name}: {fitted.n_prompts} prompts, {fitted.n_prefixes:,} prefixes, {fitted.n_outcomes:,.0f} outcomes"
    )
    shown = [
        (
            f"{'> ' if t.name == fitted.form else '  '}{'p as it is' if t.name == 'identity' else t.name}",
            f"{t.log_loss:.4f}",
            f"{t.brier:.4f}",
            "best" if t.behind == 0 else f"+{t.behind:.4f} ± {t.behind_se:.4f}",
        )
        for t in fitted.tried
    ]
    print(in_columns(("held-out prompts", "log loss", "Brier", "behind the best"), shown))
    for text in (
        f"map: {fitted.map}: {fitted.why}",
        f"trained toward the probability of success from the prefix under {policy}",
        *(f"note: {text}" for text in notes),
    ):
        print(textwrap.fill(text, WIDTH, subsequent_indent="  "))


def _serving(fitted: "FittedMap", value: "Scorer") -> list[str]:
    """Return how a server applies the map to a published model with one logit."""
    import json

    from rmtools.lm.export import pooler_config

    convention = getattr(value, "convention", None)
    if convention is None or convention.head != "scalar":
        return []
    found = pooler_config(fitted.map)
    return (
        [] if found is None else [f"vLLM: --pooler-config '{json.dumps(found)}' gives the same p of a step"]
    )
