"""A language model written out as an exact finite model: its live prefixes, their probabilities and values.

Every listed next step with probability above ``min_probability`` becomes a child; the rest of the mass (malformed
steps) is stated, and the kept probabilities are scaled to one. On the result everything of rmtools.core is exact:
V*, the target, sigma^2, the Bellman error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from rmtools.core import FiniteModel
from rmtools.errors import UserError
from rmtools.lm.enumerate.next_steps import expand
from rmtools.lm.particles import to_numpy
from rmtools.lm.policy import Policy
from rmtools.lm.value import Scorer


@dataclass(frozen=True)
class TabulatedModel:
    """One prompt's language model as a table.

    Attributes
    ----------
    prompt : str
    model : FiniteModel
        Its terminal potential is the verifier's.
    uncovered : float
        Probability that a trajectory of the policy leaves the table (by a step that is not in it).
    paths : list of list of str
        The steps of each state at depth T, in the model's order.
    path_probability : np.ndarray
        (S_T,) of each path under the policy, not scaled: they sum to 1 - uncovered.
    """

    prompt: str
    model: FiniteModel
    uncovered: float
    paths: list[list[str]]
    path_probability: np.ndarray


@dataclass(frozen=True)
class Enumeration:
    """The live prefixes of one prompt under a policy, without values: tabulated once, scored by any number of models.

    Attributes
    ----------
    prompt : str
    rules, links : list of np.ndarray
        T arrays (S_t, B): probabilities of the next steps, scaled to one, and the states they lead to.
    parents, tokens : list of Tensor
        T arrays (S_{t+1},) and (S_{t+1}, L): which state each one follows, and the step's token ids.
    rewards : np.ndarray
        (S_T,) of the verifier.
    uncovered : float
    paths : list of list of str
    path_probability : np.ndarray
        As in :class:`TabulatedModel`.
    """

    prompt: str
    rules: list[np.ndarray]
    links: list[np.ndarray]
    parents: list[Tensor]
    tokens: list[Tensor]
    rewards: np.ndarray
    uncovered: float
    paths: list[list[str]]
    path_probability: np.ndarray

    def score(self, value: Scorer) -> TabulatedModel:
        """Return the table with ``value``'s values at every prefix, the verifier's potential at the ends."""
        root, scored = value.start([value.steps.prompt_ids(self.prompt)])
        log_values = [to_numpy(root)]
        for parent, tokens in zip(self.parents, self.tokens, strict=True):
            values, scored = value.advance(scored.select(parent), tokens)
            log_values.append(to_numpy(values))
        log_values[-1] = value.tilt.log_potential(self.rewards)
        model = FiniteModel(self.rules, log_values, self.links)
        return TabulatedModel(self.prompt, model, self.uncovered, self.paths, self.path_probability)


def enumerate_prefixes(
    policy: Policy,
    prompt: str,
    choices: Sequence[str],
    reward: Callable[[str, Sequence[str]], float],
    min_probability: float = 1e-4,
) -> Enumeration:
    """Enumerate the prefixes of ``prompt`` under ``policy``.

    Parameters
    ----------
    policy : Policy
        Its step settings give the horizon.
    prompt : str
    choices : sequence of str
        The well-formed steps.
    reward : callable
        The verifier.
    min_probability : float
        Steps less probable than this, given their prefix, are not in the table.
    """
    ids = [policy.steps.step_ids(c) for c in choices]
    state = policy.start([policy.steps.prompt_ids(prompt)])
    rules, links, parents, tokens = [], [], [], []
    paths: list[list[str]] = [[]]
    covered = np.ones(1)
    while not bool(state.ended.all()):
        grown = expand(policy, state, ids, min_probability)
        parent = grown.parent.cpu().numpy()
        p = np.exp(grown.log_probability.cpu().numpy())
        rule, link = _layer(parent, p, len(paths))
        covered = covered[parent] * p
        rules.append(rule)
        links.append(link)
        parents.append(grown.parent)
        tokens.append(grown.tokens)
        paths = [[*paths[i], choices[c]] for i, c in zip(parent, grown.choice.tolist(), strict=True)]
        state = grown.state
    rewards = np.asarray([reward(prompt, s) for s in paths], dtype=float)
    return Enumeration(
        prompt, rules, links, parents, tokens, rewards, float(1 - covered.sum()), paths, covered
    )


def tabulate(
    policy: Policy,
    value: Scorer,
    prompt: str,
    choices: Sequence[str],
    reward: Callable[[str, Sequence[str]], float],
    min_probability: float = 1e-4,
) -> TabulatedModel:
    """Enumerate the prefixes of ``prompt`` under ``policy`` and score them with ``value``: the two steps above."""
    return enumerate_prefixes(policy, prompt, choices, reward, min_probability).score(value)


def _layer(parent: np.ndarray, p: np.ndarray, n_parents: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (S, B) probabilities scaled to one and (S, B) child indices."""
    slot = np.arange(len(parent)) - np.searchsorted(parent, parent)
    rule = np.zeros((n_parents, slot.max(initial=0) + 1))
    link = np.zeros(rule.shape, dtype=np.int64)
    rule[parent, slot] = p
    link[parent, slot] = np.arange(len(parent))
    mass = rule.sum(1)
    if (mass == 0).any():
        raise UserError(
            "a prefix has no listed step above min_probability: the policy is not on its format",
            "use a policy trained on the task, or lower its temperature",
        )
    return rule / mass[:, None], link
