"""Other ways to spend tokens: what they need for the accuracy that particles are counted for.

A method is judged by the solution it chooses. Rejection takes any right one of N, as the verifier says; the others, SMC among
them, choose by the reward model's own last value.
"""

import importlib.util
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from rmtools.lm.protocol import Scorer
from rmtools.sampling.algorithms import draw_batch
from rmtools.sampling.outputs import choices
from rmtools.sampling.settings import SamplerSettings, settings_for
from rmtools.sampling.source import Source
from rmtools.verify.scaling.measure import success_needed
from rmtools.verify.scaling.points import STEP_TOKENS, Setting
from rmtools.verify.scaling.tables import Table

BEAM_WIDTH = 4  # candidates of each kept solution
MOST_RUNS = 8


@dataclass(frozen=True)
class Method:
    """A named algorithm of `rmtools.sample`, or its_hub's particle filter; ``chosen_by`` the verifier or the model."""

    name: str
    chosen_by: str
    algorithm: str | None

    def settings(self, n: int) -> SamplerSettings:
        """Return its settings with N solutions."""
        assert self.algorithm is not None
        wide = {"pool_size": BEAM_WIDTH} if self.algorithm == "beam" else {}
        fixed = {} if self.algorithm == "beam" else {"islands": 1}
        return settings_for(self.algorithm, n_particles=n, terminal=self.chosen_by, **wide, **fixed)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        m.name: m
        for m in (
            Method("rejection", "verifier", "best-of-n"),
            Method("best-of-n", "model", "best-of-n"),
            Method("weighted-majority", "model", "weighted-majority"),
            Method("beam", "model", "beam"),
            Method("its-hub", "model", None),
            Method("smc", "model", "smc"),
        )
    }
)


def available() -> tuple[str, ...]:
    """Return the methods that can run here: its_hub's only where it is installed."""
    return tuple(m for m in METHODS if METHODS[m].algorithm or importlib.util.find_spec("its_hub"))


@dataclass(frozen=True)
class BaselineTrial:
    """What a method with N solutions did: mean success of what it chose; tokens of policy and value model, on a prompt."""

    n_particles: int
    runs: int
    success: float
    tokens: float
    value_tokens: float


@dataclass(frozen=True)
class Baseline:
    """A method at one horizon.

    Attributes
    ----------
    asked : float
        The success asked for: a share of the target's.
    n_for_success, low, high : float or None
        N needed for it, 95% over prompts; None beyond the largest N tried.
    expected : float or None
        The same from the tables, where theory has it: best-of-N by the verifier finds a right solution with 1 - (1 - p)^N.
    trials : list of BaselineTrial
        The largest N first.
    """

    method: str
    model: str
    horizon: int
    asked: float
    n_for_success: float | None
    low: float | None
    high: float | None
    expected: float | None
    trials: list[BaselineTrial]


Draw = Callable[[int, Sequence[str]], tuple[np.ndarray, float, float]]


def measure_baseline(
    setting: Setting, name: str, model: str, value: Scorer, most_tokens: float, rng: np.random.Generator
) -> Baseline:
    """Double N until two in a row reach the success asked for, or ``most_tokens`` of a trial are spent."""
    method, asked = METHODS[name], setting.share_of_target * setting.target_success
    draw = _its_hub(setting, value, rng) if method.algorithm is None else _own(setting, method, value, rng)
    prompts, found, n = setting.prompts, list[tuple[BaselineTrial, np.ndarray]](), 1
    each = len(prompts) * STEP_TOKENS * setting.task.horizon * (BEAM_WIDTH if name == "beam" else 1)
    if method.algorithm is None:  # it reads the whole text again at every step
        each *= setting.task.horizon
    while n * each <= most_tokens:
        runs = int(min(MOST_RUNS, most_tokens // (n * each)))
        right, tokens, read = draw(n, [p for p in prompts for _ in range(runs)])
        by_prompt = right.reshape(len(prompts), runs).mean(axis=1)
        found.insert(0, (BaselineTrial(n, runs, float(by_prompt.mean()), tokens, read), by_prompt))
        if len(found) > 1 and all(t.success >= asked for t, _ in found[:2]):
            break
        n *= 2
    need = success_needed([(t.n_particles, m) for t, m in found], asked, rng) if found else None
    expected = _rejection(setting.tables, asked) if method.chosen_by == "verifier" else None
    low, high = (None, None) if need is None else (need.low, need.high)
    return Baseline(
        name,
        model,
        setting.task.horizon,
        asked,
        None if need is None else need.estimate,
        low,
        high,
        expected,
        [t for t, _ in found],
    )


def _rejection(tables: Sequence[Table], asked: float) -> float:
    """Return the least N whose best has a mean success of ``asked``, from the policy's own success on each prompt."""
    fail = np.log1p(-np.asarray([t.success for t in tables]))
    low, high = 0, 1
    while -np.expm1(high * fail).mean() < asked:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if -np.expm1(middle * fail).mean() >= asked else (middle, high)
    return float(high)


def _own(setting: Setting, method: Method, value: Scorer, rng: np.random.Generator) -> Draw:
    """Return a function (N, prompts) to rewards of the chosen solutions and tokens a prompt."""
    source, task = Source(setting.policy, value, setting.task.reward), setting.task

    def draw(n: int, prompts: Sequence[str]) -> tuple[np.ndarray, float, float]:
        settings, right, tokens, read = method.settings(n), list[float](), 0.0, 0.0
        size = source.prompts_per_batch(settings, prompts)
        for at in range(0, len(prompts), size):
            batch = prompts[at : at + size]
            for prompt, drawn in zip(batch, draw_batch(source, batch, settings, rng), strict=True):
                answers = (
                    [task.answer(prompt, s) for s in drawn.steps] if "majority" in settings.output else None
                )
                chosen = choices(drawn, answers)[settings.output.replace("-", "_")]
                right.append(0.0 if chosen is None else task.reward(prompt, drawn.steps[chosen]))
                tokens += drawn.tokens
                read += 0.0 if method.chosen_by == "verifier" else drawn.value_tokens or 0.0
        return np.asarray(right), tokens / len(prompts), read / len(prompts)

    return draw


def _its_hub(setting: Setting, value: Scorer, rng: np.random.Generator) -> Draw:
    """Return the same for its_hub's particle filter with its own defaults, over our policy and value model."""
    from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
    from its_hub.core.lms.step_generation import StepGeneration

    from rmtools.adapters.its_hub import ItsHubPolicy, ItsHubReward

    task, delimiter = setting.task, setting.policy.steps.settings.delimiter
    steps = StepGeneration(max_steps=task.horizon - 1, step_token=delimiter)
    filtering = ParticleFiltering(steps, ItsHubReward(value))
    policy = ItsHubPolicy(setting.policy, rng)

    def draw(n: int, prompts: Sequence[str]) -> tuple[np.ndarray, float, float]:
        random.seed(int(rng.integers(1 << 32)))  # its_hub draws from the global generator
        before, right = policy.tokens, []
        for prompt in prompts:
            text = filtering.infer(policy, prompt, n)["content"] + delimiter
            right.append(task.reward(prompt, text.splitlines(keepends=True)))
        # What the policy reads is read by the value model too, with the step that it wrote.
        spent = (policy.tokens - before) / len(prompts)
        return np.asarray(right), spent, spent

    return draw
