"""A value model behind a policy with another tokenizer: what the policy emits is read again as text.

The value model's own tokenizer encodes the prompt and every step by itself, whole trajectories as well as a run in
progress, so that both have the same values.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.protocol import Scorer, StepPolicy, TreeValues, ValueState
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.tree_scoring import padded

KNOWN_STEPS = 100_000


def prompt_text(steps: StepTokenizer, ids: Sequence[int]) -> str:
    """Return the text whose ``steps.prompt_ids`` are ``ids``, without the special tokens the tokenizer puts in front.

    Raises ``UserError`` if the tokenizer does not know a piece of it, or does not give back what it encoded.
    """
    found = [int(i) for i in ids]
    unknown = steps.tokenizer.unk_token_id
    for start in range(len(steps.front_ids), -1, -1):
        rest = found[start:]
        text = str(
            steps.tokenizer.decode(rest, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        if text and unknown not in rest and steps.prompt_ids(text) == found:
            return text
    raise UserError(
        f"the text of a prompt cannot be told from its tokens (it begins {steps.tokenizer.decode(found)[:60]!r}): "
        "the tokenizer does not know all of it, or changes it",
        "use the tokenizer of the model that is served, or prompts of its task",
    )


class Retokenised:
    """``value`` as a scorer that takes the tokens of the policy's ``steps`` and reads their text."""

    def __init__(self, value: Scorer, steps: StepTokenizer) -> None:
        self.value = value
        self.steps = steps
        self.tilt = value.tilt
        self.name = value.name
        self.is_probability = getattr(value, "is_probability", True)
        self._known: dict[tuple[int, ...], list[int]] = {}

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats of prompts given as the policy's token ids, and the state.

        Raises ``UserError`` if the value model's tokenizer does not know a piece of a prompt.
        """
        return self.value.start([self.value.steps.prompt_ids(self._prompt(p)) for p in prompts])

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats after a new step ``tokens`` (B, L; the policy's, -1 = no token), and the state."""
        rows = [self._step_ids(tuple(i for i in row if i >= 0)) for row in tokens.tolist()]
        # At least one column, also if no row has a token.
        rows = rows if any(rows) else [[-1]] * len(rows)
        return self.value.advance(state, padded(rows, -1, tokens.device))

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree, encoded by the policy's ``steps``."""
        return self.value.score([self._tree(t) for t in trees], progress)

    def _tree(self, tree: EncodedTree) -> EncodedTree:
        prompt, steps, children = tree.parts()
        return EncodedTree.of(
            self.value.steps.prompt_ids(self._prompt(prompt)),
            [self._step_ids(tuple(s)) for s in steps],
            [[self._step_ids(tuple(c)) for c in at] for at in children],
        )

    def _prompt(self, ids: Sequence[int]) -> str:
        text = prompt_text(self.steps, ids)
        self.value.steps.require_known(text)
        return text

    def _text(self, ids: Sequence[int]) -> str:
        """Return a step's text for the value model, with its own end-of-sequence token in place of the policy's."""
        if ids and ids[-1] in self.steps.end_ids:
            return self.steps.step_text(ids[:-1]) + str(self.value.steps.tokenizer.eos_token)
        return self.steps.step_text(ids)

    def _step_ids(self, ids: tuple[int, ...]) -> list[int]:
        if not ids:
            return []
        found = self._known.get(ids)
        if found is None:
            found = self.value.steps.step_ids(self._text(ids))
            if len(self._known) < KNOWN_STEPS:
                self._known[ids] = found
        return found


def shared_tokens(policy: StepPolicy, value: Scorer) -> Scorer:
    """Return a scorer that takes the tokens ``policy`` emits: ``value`` itself, or `Retokenised`.

    Raises ``UserError`` if they disagree on what a step is, or the value model cannot read the end of a solution as text.
    """
    reads_text = getattr(value, "reading_of", None)
    if reads_text is not None:  # a published PRM
        found: Scorer = reads_text(policy.steps)
        return found
    same = policy.steps.vocabulary == value.steps.vocabulary
    mine, its = policy.steps.settings, value.steps.settings
    if mine == its and same:
        return value
    if same or (mine.delimiter, mine.max_steps) != (its.delimiter, its.max_steps):
        raise UserError(
            f"policy and value model have different step settings: {mine} and {its}",
            "load the policy with the checkpoint's step settings",
        )
    eos = value.steps.tokenizer.eos_token
    if not isinstance(eos, str) or value.steps.step_ids(eos) != [value.steps.eos_id]:
        raise UserError(
            f"the tokenizer of the value model {value.name} has no end-of-sequence token that can be written as text: "
            "the end of a solution cannot be read again",
            "use the policy that the checkpoint was trained for",
        )
    return Retokenised(value, policy.steps)
