"""What a reader must know before trusting a figure: another policy, what the sample cannot resolve, how to resolve it."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rmtools.auditing.model_audit import ModelAudit
from rmtools.stats.bellman_error import BellmanSummary
from rmtools.stats.bootstrap import Interval
from rmtools.stats.calibration import ranking_note
from rmtools.stats.influence import FEWEST_TRAJECTORIES
from rmtools.summary import counted

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollout, RolloutMetadata
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.protocol import Scorer

# The role of a calibrated model without its map.
UNCALIBRATED = "uncalibrated"
LISTED_MUCH = 0.02
# Figures of such an audit are of another sampler than the one the checkpoint is for.
OTHER_POLICY, OTHER_LAW = "another policy drew the rollouts", "the rollouts were sampled at"
EQUAL_REWARDS = "every reward is"
NO_CHILDREN, NO_COMPLETIONS = "no children", "no completions"
# The argument of `collect_rollouts` that draws them.
DRAWN_BY = {NO_CHILDREN: "children=8", NO_COMPLETIONS: "completions=3"}
# Weights are normalised within a prompt and depth: with few trajectories there they are nearly equal.
FEWEST_GUIDED = 16


def notes(
    rows: "Sequence[Rollout]",
    metadata: "RolloutMetadata | None",
    settings: "Mapping[str, CheckpointSettings | None]",
    found: Sequence[ModelAudit],
    fingerprint: str,
    uncovered: "Mapping[str, float] | None" = None,
) -> list[str]:
    """Return the notes: on provenance (``fingerprint`` of the rollouts), on the rollouts, on each model."""
    out = sample_notes(rows, found[0])
    about = [
        (role, text)
        for role, its in settings.items()
        for text in [*provenance_notes(metadata, its, fingerprint), *contamination_notes(rows, its)]
    ]
    out += [text if roles == ["model"] else f"{', '.join(roles)}: {text}" for text, roles in _by_text(about)]
    roles, own = {m.role for m in found}, settings.get("model")
    if own is not None and "constant" in roles and "untrained" not in roles:
        out.append(f"the untrained control is left out: the model it is made from, {own.base}, is not here")
    if uncovered is not None and uncovered["mean"] > LISTED_MUCH:
        out.append(
            f"enumerated figures condition the policy on listed steps: {uncovered['mean']:.1%} of the probability is outside "
            f"them, up to {uncovered['largest']:.0%} at a prefix; sampled figures do not"
        )
    about = [(role, text) for m in found for role, text in [*model_notes(m), *ranking_notes(m, found)]]
    return out + [f"{', '.join(roles)}: {text}" for text, roles in _by_text(about)]


def calibration_notes(rows: "Sequence[Rollout]", scorer: "Scorer") -> list[str]:
    """Return that prompts of the audit are among those that the model's map was fitted on, if it has one."""
    from rmtools.lm.calibration_file import prompt_key

    fitted_on: Collection[str] = getattr(scorer, "fitted_on", ())
    prompts = {r.prompt for r in rows}
    seen = sum(prompt_key(p) in fitted_on for p in prompts)
    if not seen:
        return []
    return [
        f"{seen} of {counted(len(prompts), 'prompt')} are among those that the map of p was fitted on: what the map gains is too "
        "good here; audit on other prompts (what `rmtools calibrate` prints is of held-out ones)"
    ]


def of_another(warnings: Sequence[str]) -> tuple[str, ...]:
    """Return the ``warnings`` that the rollouts are of another policy or law of sampling than the checkpoint's."""
    return tuple(text for text in warnings if OTHER_POLICY in text or OTHER_LAW in text)


def _by_text(about: "Sequence[tuple[str, str]]") -> "list[tuple[str, list[str]]]":
    """Return each text once, with the models it is said of."""
    found: dict[str, list[str]] = {}
    for role, text in about:
        found.setdefault(text, []).append(role)
    return list(found.items())


def provenance_notes(
    metadata: "RolloutMetadata | None", settings: "CheckpointSettings | None", fingerprint: str
) -> list[str]:
    """Return what differs between the rollouts and what the checkpoint was trained for."""
    if metadata is None or settings is None:
        return []
    out = []
    if settings.training.get("rollouts_fingerprint") == fingerprint:
        out.append("these are the rollouts the checkpoint was trained on: every figure flatters it")
    drawn, trained = metadata.steps.max_steps, settings.steps.max_steps
    if drawn != trained:
        out.append(f"the rollouts have up to {drawn} steps, the checkpoint was trained for {trained}")
    if not metadata.policy_fingerprint:
        out.append("the rollouts do not say which policy drew them")
    elif metadata.policy_fingerprint != settings.policy_fingerprint:
        out.append(
            f"{OTHER_POLICY} than the checkpoint was trained for: errors and particles are of sampling from that one"
        )
    if metadata.temperature is None:
        out.append("the rollouts do not say at which temperature they were sampled")
    elif metadata.law != settings.law:
        own, its = metadata.law.described(), settings.law.described()
        out.append(
            f"{OTHER_LAW} {own}, not at the checkpoint's {its}: errors and particles are of sampling at {own}, "
            f"`rmtools sample` samples at {its}"
        )
    if metadata.prompt_format != settings.prompt_format:  # of known formats this is refused
        out.append(
            f"the rows do not say in which format their prompts are: they are taken as they stand, the checkpoint's is "
            f"{settings.prompt_format}"
        )
    return out


def contamination_notes(rows: "Sequence[Rollout]", settings: "CheckpointSettings | None") -> list[str]:
    """Return how many of the audited prompts the checkpoint was trained on, if it says which those were."""
    from rmtools.data.contamination import shared_prompts

    known = {} if settings is None else settings.training.get("prompts", {})
    if not known:
        return []
    exact, normalised, prompts = shared_prompts(rows, known)
    if not normalised:
        return []
    spaced = f" ({normalised - exact} of them with other white space)" if normalised > exact else ""
    return [
        f"{normalised} of the {prompts} audited prompts are among those the checkpoint was trained on{spaced}: figures of them "
        "flatter it; audit prompts it has not seen"
    ]


def sample_notes(rows: "Sequence[Rollout]", model: ModelAudit) -> list[str]:
    """Return what these rollouts cannot resolve whatever the model, and how many would halve the intervals."""
    n = len(model.breakdowns.by_prompt)
    out = [
        "one prompt: there are no intervals, they are over prompts"
        if n == 1
        else "intervals shrink with the root of the number of prompts: "
        f"{3 * n} more prompts like these {n} would halve them"
    ]
    repeated = len(rows) - len({json.dumps(asdict(r)) for r in rows if r.children or r.completions})
    if repeated and all(r.children or r.completions for r in rows):
        out.append(
            f"{repeated} rows are exact repeats, branches included: if a file was read twice, every interval is too narrow"
        )
    rewards = {r.outcome for r in rows}
    if len(rewards) == 1:
        out.append(
            f"{EQUAL_REWARDS} {rewards.pop():g}: AUC, calibration and sigma^2 say nothing about successes "
            "or failures that were never seen"
        )
    silent = 0 if model.cost.alternatives is None else model.cost.alternatives.prompts_without_success
    if silent and len(rewards) > 1:
        out.append(
            f"{silent} of {n} prompts have no right solution among their trajectories: their share of Z is the floor's, "
            "and the particles they need are unknown"
        )
    if not guided_resolved(model):
        out.append(
            f"errors where the sampler goes are not resolved with fewer than {FEWEST_GUIDED} trajectories of a prompt: they "
            "are pulled towards those of the policy's own prefixes"
        )
    if model.error.binned is not None:
        out.append(
            "the trajectories have no children (K = 1): only signed errors averaged over bins are identified, "
            "which gives a lower bound; draw rollouts with 8 or more children per prefix for the error itself"
        )
    if model.cost.sigma2 is None:
        out.append(
            "sigma^2 and particles need terminal verifier, two trajectories a prompt and extra completions "
            "(2 or more completions per prefix; 3 for the total variation)"
        )
    return out


def why_missing(model: ModelAudit, path: str, warnings: Sequence[str]) -> str:
    """Return in a few words why these rollouts do not give the error or the cost at ``path``; ``warnings`` are its notes."""
    if path.startswith("error/"):
        return NO_CHILDREN
    if model.terminal != "verifier":
        return "terminal is the model's"
    if min(p.n_trajectories for p in model.breakdowns.by_prompt) < 2:
        return "a prompt has 1 solution"
    alike = [text for text in warnings if text.startswith(EQUAL_REWARDS)]
    return alike[0].partition(":")[0] if alike else NO_COMPLETIONS


def guided_resolved(model: ModelAudit) -> bool:
    """Return whether there are enough trajectories of a prompt for weights to matter, in the median prompt."""
    sizes = sorted(p.n_trajectories for p in model.breakdowns.by_prompt)
    return model.error.best_guided is None or sizes[len(sizes) // 2] >= FEWEST_GUIDED


def model_notes(m: ModelAudit) -> list[tuple[str, str]]:
    """Return what is not resolved of one model: the model, with a figure of its own in brackets, and the text."""
    if len(m.breakdowns.by_prompt) == 1:
        return []
    out: list[tuple[str, str]] = []
    sampled, influence, sigma2 = m.error.sampled, m.cost.influence, m.cost.sigma2
    if sampled is not None and not sampled.resolved:
        text = "the sampled RMS log Bellman error is not resolved with this many children (K and K/2 differ by more than the "
        out.append((m.role, f"{text}interval)"))
    if sampled is not None and m.error.exact is None and identical_share(sampled) > 0.5:
        text = "over half of the mean square is from prefixes whose children are all identical: forced steps, or good children "
        out.append((m.role, f"{text}too rare for this many children to show"))
    if influence is not None and not influence.resolved and m.cost.counted_from == "rollouts":
        text = (
            f"particles for the TV are not resolved: it takes {FEWEST_TRAJECTORIES:g} trajectories of a prompt that carry the "
            "potential for an interval that holds (in brackets: how many do)"
        )
        out.append((f"{m.role} ({influence.effective_trajectories:.1f})", text))
    if sigma2 is not None and not sigma2.resolved:
        out.append((m.role, "sigma^2 is not resolved (the interval of Z^2 reaches 0)"))
    return [*out, *disagreements(m)]


def disagreements(m: ModelAudit) -> list[tuple[str, str]]:
    """Return where two estimates of one figure exclude each other, which prompts counts are of, what a pilot left open."""
    out: list[tuple[str, str]] = []
    prompts, tables, sigma2 = len(m.breakdowns.by_prompt), m.cost.tabulated, m.cost.sigma2
    exact, sampled, pilot = m.error.exact, m.error.sampled, m.cost.pilot
    if pilot is not None and pilot.reason:
        out.append((m.role, f"the pilot: {pilot.reason}"))
    if tables is not None and tables.n_prompts < prompts:
        text = f"particles are counted from tables of the first {tables.n_prompts} of {prompts} prompts, and are of those prompts"
        out.append((m.role, text))
    if (
        tables is not None
        and sigma2 is not None
        and sigma2.resolved
        and apart(sigma2.estimate, tables.sigma2)
    ):
        text = f"sigma^2 is {tables.sigma2} by the tables and {sigma2.estimate} by the rollouts of all: intervals are apart, "
        out.append(
            (m.role, f"{text}as prompts differ or rare successes were not drawn; the tables are exact")
        )
    if exact is not None and sampled is not None and sampled.resolved:
        rms = exact.corrected.rms, sampled.corrected.rms
        if apart(*rms):
            text = f"RMS b is {rms[0]} enumerated and {rms[1]} from sampled children: intervals are apart, as steps outside "
            out.append((m.role, f"{text}the lists or rare children matter; quote the enumerated one"))
    return out


def apart(a: Interval, b: Interval) -> bool:
    """Return whether two intervals exclude each other."""
    return any(x.high is not None and y.low is not None and x.high < y.low for x, y in ((a, b), (b, a)))


def ranking_notes(m: ModelAudit, found: Sequence[ModelAudit]) -> list[tuple[str, str]]:
    """Return what to say of a model that is more consistent than the constant and does not rank prefixes."""
    constant = next((c.error.best for c in found if c.role == "constant"), None)
    own, within = m.error.best, m.calibration.auc_within
    trained = m.role == "model" or m.role.startswith("compare")
    if not trained or own is None or constant is None or within is None or len(m.breakdowns.by_prompt) == 1:
        return []
    rms = own.corrected.rms.estimate, constant.corrected.rms.estimate
    text = ranking_note(within, *rms)
    return [] if text is None else [(m.role, text)]


def identical_share(summary: BellmanSummary) -> float:
    """Return the share of the corrected mean square that prefixes with identical children carry."""
    total = summary.corrected.mean_square.estimate
    return summary.corrected.mean_square_identical.estimate / total if total > 0 else 0.0
