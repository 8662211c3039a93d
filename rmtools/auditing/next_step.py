"""What to do with an audited model: sample with it, calibrate it, train it, or draw more rollouts first.

Only intervals decide, never estimates alone. The first rule that applies is the answer:

1. *More data.* There are fewer than `FEWEST_PROMPTS` prompts, and costs are not enumerated: intervals over so few do not hold.
2. *Sample.* The model needs at most `NEAR` times the particles of a perfect value, where these are enumerated; else, on
   `ENOUGH_PROMPTS` or more, its squared Bellman error summed over a solution is at most `CONSISTENT`. Both by the upper end of
   the interval. On the exact models of docs/log.md that sum is above what the error adds to sigma^2. A consistent value may
   rank little, where outcomes are mostly luck.
3. *Train.* Prefixes of one prompt and depth are ranked wrong: the upper end of the AUC within prompt and depth is below
   `USEFUL_AUC`. A map of p that keeps its order cannot mend that, and these pairs are all that resampling chooses between.
4. *More data.* The AUC is not known, or its interval holds .5.
5. *Calibrate.* The ranking is right and the scale is not: outcomes exclude that p is on their scale (`ScaleCheck`), by `GAP` nats
   and more. A monotone map mends that, for the price of a fit.
6. *Train.* Ranking and scale are right as far as is known, and the model needs more than `NEAR` times the particles of a perfect
   value, by the lower end: what is wrong is within equal p.
7. *More data.* Nothing was found wrong, on fewer than `ENOUGH_PROMPTS` prompts: that is no evidence.
8. *Sample.* Nothing was found wrong.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rmtools.auditing.first_screen import Fact, command_of, pilot_of, short, theory_of
from rmtools.stats.calibration import USEFUL_AUC
from rmtools.summary import counted

if TYPE_CHECKING:
    from rmtools.auditing.model_audit import ModelAudit
    from rmtools.stats.bellman_error import BellmanSummary
    from rmtools.stats.bootstrap import Interval

NEAR = 2.0
CONSISTENT = 0.25
GAP = 0.1
FEWEST_PROMPTS = 8
ENOUGH_PROMPTS = 16
Do = Literal["sample", "calibrate", "train", "more data"]
MORE: Literal["more data"] = "more data"
TRAINING = "rollouts/train"


@dataclass(frozen=True)
class NextStep:
    """What to do: ``do``, ``why`` in a sentence's part, and the ``command`` to copy."""

    do: Do
    why: str
    command: str

    def fact(self) -> Fact:
        """Return the last line of the first screen."""
        return Fact("next", self.do, self.why, self.command)


def next_step(models: "Sequence[ModelAudit]", provenance: Mapping[str, Any]) -> NextStep:
    """Return what to do with the first of ``models``, by the rules above."""
    do, why = _decided(models)
    commands = {"sample": _sample, "calibrate": _calibrate, "train": _train, MORE: _rollout}
    return NextStep(do, why, commands[do](models, provenance))


def _decided(
    models: "Sequence[ModelAudit]",
) -> tuple[Do, str]:
    model = models[0]
    within, prompts, scale = (
        model.calibration.auc_within,
        len(model.breakdowns.by_prompt),
        model.calibration.scale,
    )
    ratio, added = theory_of(models).ratio, _added(model)
    times = "" if ratio is None else f"{short(ratio)} times the particles of a perfect value"
    if prompts < (2 if ratio is not None else FEWEST_PROMPTS):
        return MORE, f"intervals over {counted(prompts, 'prompt')} do not hold: nothing can be told"
    if ratio is not None and ratio.high is not None and ratio.high <= NEAR:
        return "sample", f"it needs {times}"
    if ratio is None and added is not None and added <= CONSISTENT and prompts >= ENOUGH_PROMPTS:
        return "sample", f"consistent: (ρ-1)² summed over a solution is at most {added:.2g}"
    if within is None or within.low is None or within.high is None:
        reason = "hardly a prompt has right and wrong solutions" if within is not None else "an older audit"
        return MORE, f"whether it ranks prefixes of one prompt right is not known: {reason}"
    if within.high < USEFUL_AUC:
        return "train", f"wrong ranking: AUC within prompt and depth {short(within)}, .5 is a guess"
    if within.low <= 0.5:
        return MORE, f"AUC within prompt and depth {short(within)}: it may be a guess (.5), and may be useful"
    right = f"right ranking (AUC {short(within)})"
    if scale is not None and scale.resolved and scale.log_gap >= GAP:
        return "calibrate", f"{right}, wrong scale: {_off(model)}"
    if ratio is not None and ratio.low is not None and ratio.low > NEAR:
        return "train", f"{right}, scale not wrong, and yet it needs {times}"
    if prompts < ENOUGH_PROMPTS or (scale is not None and scale.p_value is None):
        return MORE, f"nothing was found wrong, on {counted(prompts, 'prompt')}: too few to tell"
    on_scale = "no probability to calibrate" if scale is None else "no wrong scale found"
    return "sample", f"{right}, {on_scale}"


def _off(model: "ModelAudit") -> str:
    found, scale = model.calibration.prefixes, model.calibration.scale
    assert found is not None
    assert scale is not None
    means = f"mean p {short(found.mean_p)}, outcomes {short(found.mean_outcome)}"
    return f"values are {scale.log_gap:.2g} nats off by bins of p ({means})"


def _added(model: "ModelAudit") -> float | None:
    """Return the upper end of the squared ratio error summed over a solution, the larger of two laws of prefixes."""
    found = [_summed(s) for s in (model.error.best, model.error.best_guided) if s is not None]
    return None if not found or None in found else max(x for x in found if x is not None)


def _summed(summary: "BellmanSummary") -> float | None:
    square: Interval = summary.ratio_error.mean_square
    # Rows that branch at some depths only, as public ones do, do not tell how many steps a solution has.
    if (
        square.high is None
        or math.isnan(square.estimate)
        or not summary.by_depth
        or not summary.by_depth[0].n_prefixes
    ):
        return None
    steps = sum(d.n_prefixes for d in summary.by_depth) / summary.by_depth[0].n_prefixes
    return max(square.high, 0.0) * steps


def _named(model: str, provenance: Mapping[str, Any], flag: str = "--model") -> str:
    """Return the options that name the model: a published one is not read like ours."""
    about = provenance.get("published") or {}
    named = f"{flag} {shlex.quote(model)}"
    if about and flag == "--model":
        named += f" --prm-format {about['format']} --aggregate {about['aggregate']} --floor {provenance['floor']:g}"
    return named


def _sample(models: "Sequence[ModelAudit]", provenance: Mapping[str, Any]) -> str:
    model, delta = models[0], float(provenance["delta_cv"])
    pilot = pilot_of(model)
    needed = theory_of(models).needed(model.role, delta)
    if pilot is not None and pilot.n_for_cv is not None:
        size = command_of(pilot)
    elif needed is not None:
        size = f"-n {max(1, math.ceil(needed.high or needed.estimate))} --islands 1"
    else:
        size = f"--until cv={delta:g}"
    policy = f" --policy {shlex.quote(provenance['policy'])}" if provenance.get("policy") else ""
    return f"rmtools sample {_named(provenance['checkpoint'], provenance)}{policy} --prompts prompts.jsonl {size}"


def _calibrate(models: "Sequence[ModelAudit]", provenance: Mapping[str, Any]) -> str:
    return f"rmtools calibrate {_named(provenance['checkpoint'], provenance)} --rollouts {TRAINING} --out calibrated"


def _train(models: "Sequence[ModelAudit]", provenance: Mapping[str, Any]) -> str:
    about = provenance.get("published") or {}
    trainable = about and about["format"] != "recorded"
    begin = f" {_named(provenance['checkpoint'], provenance, '--model_name_or_path')}" if trainable else ""
    return f"rmtools train{begin} --train_rollouts {TRAINING} --eval_share 0.1 --output_dir trained"


def _rollout(models: "Sequence[ModelAudit]", provenance: Mapping[str, Any]) -> str:
    """Four times as many prompts halve the intervals."""
    more = max(4 * len(models[0].breakdowns.by_prompt), 4 * ENOUGH_PROMPTS)
    policy = shlex.quote(provenance.get("policy") or "POLICY")
    task = f" --task {shlex.quote(provenance['task'])}" if provenance.get("task") else ""
    return (
        f"rmtools rollout --policy {policy}{task} --prompts {more} --trajectories 16 --children 16 --completions 4 "
        "--out rollouts/more"
    )
