r"""What a step is, and the one tokenisation that training, audit and sampling share.

A step is text up to and including the delimiter (or the end-of-sequence token). Prompt and steps are tokenised
separately and joined, and tokenising the joined text must give the same ids: the ids that are scored are those that the
policy emitted.

>>> StepSettings(delimiter="\n", max_steps=8).max_step_tokens
64
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from rmtools.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class StepSettings:
    r"""Where a step and a solution end.

    Parameters
    ----------
    delimiter : str
        Text that closes a step.
    max_steps : int
        Horizon T: a prefix with this many steps has ended.
    max_step_tokens : int
        A step without delimiter is closed after this many tokens.

    Examples
    --------
    >>> import rmtools as rm
    >>> rm.StepSettings(delimiter="\n", max_steps=8)
    StepSettings(delimiter='\n', max_steps=8, max_step_tokens=64)
    """

    delimiter: str
    max_steps: int
    max_step_tokens: int = 64

    def __post_init__(self) -> None:
        if not self.delimiter:
            raise UserError(
                "the step delimiter is empty", "name the text that closes a step, such as a newline"
            )
        for name in ("max_steps", "max_step_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be an integer of at least 1, got {value!r}", f"{name} = 8, say")


NONE = np.zeros(0, dtype=np.int64)
"""The ``child_reads`` of a depth without alternatives; shared by all trees."""


@dataclass(frozen=True)
class EncodedTree:
    """Token ids of a trajectory followed by its alternative next steps ("children"), for one forward pass.

    Attributes
    ----------
    ids, positions : np.ndarray
        (L,) token ids and their position ids; a child's positions continue from its fork.
    segment, fork : np.ndarray
        (L,) 0 for the trajectory, k >= 1 for the k-th child; how many trajectory tokens a token attends to.
    reads : np.ndarray
        (T + 1,) index of the last token of the prompt and of each step, where the value is read.
    child_reads : list of np.ndarray
        T arrays: the same index for the children at each depth.
    """

    ids: np.ndarray
    positions: np.ndarray
    segment: np.ndarray
    fork: np.ndarray
    reads: np.ndarray
    child_reads: list[np.ndarray]

    @classmethod
    def of(
        cls,
        prompt: Sequence[int],
        steps: Sequence[Sequence[int]],
        children: Sequence[Sequence[Sequence[int]]] = (),
    ) -> Self:
        """Return the tree of a prompt, its steps and, by depth, their alternatives, all given as token ids."""
        ids, reads = list(prompt), [len(prompt) - 1]
        for step in steps:
            ids += step
            reads.append(len(ids) - 1)
        n = len(ids)
        positions, segment, fork = list(range(n)), [0] * n, list(range(1, n + 1))
        child_reads: list[np.ndarray] = []
        count = 0
        for t in range(len(steps)):
            at: list[int] = []
            start = reads[t] + 1
            for child in children[t] if t < len(children) else ():
                count += 1
                ids += child
                positions += range(start, start + len(child))
                segment += [count] * len(child)
                fork += [start] * len(child)
                at.append(len(ids) - 1)
            child_reads.append(np.asarray(at, dtype=np.int64) if at else NONE)
        small = [np.asarray(x, dtype=np.int32) for x in (ids, positions, segment, fork, reads)]
        return cls(small[0], small[1], small[2], small[3], small[4], child_reads)

    def parts(self) -> tuple[list[int], list[list[int]], list[list[list[int]]]]:
        """Return the token ids of the prompt, of each step, and of each alternative next step by depth."""
        ids, reads = self.ids.tolist(), self.reads.tolist()
        steps = [ids[a + 1 : b + 1] for a, b in itertools.pairwise(reads)]
        children: list[list[list[int]]] = []
        last = reads[-1]
        for at in self.child_reads:
            children.append([])
            for end in at.tolist():
                children[-1].append(ids[last + 1 : end + 1])
                last = end
        return ids[: reads[0] + 1], steps, children

    def trunk(self) -> "EncodedTree":
        """Return the trajectory without its alternatives."""
        n = int(self.reads[-1]) + 1
        none = [NONE] * len(self.child_reads)
        return EncodedTree(
            self.ids[:n], self.positions[:n], self.segment[:n], self.fork[:n], self.reads, none
        )


class StepTokenizer:
    r"""Tokenises prompts and steps separately, so that ids never depend on what stands beside them.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The policy's tokenizer.
    settings : StepSettings
        A token must end where the delimiter ends, in every context: the step's value is read at it. The delimiter may be
        a part of that token, as the newline is of ".\n" in many tokenizers.

    Raises
    ------
    UserError
        If what follows the delimiter changes its tokens.
    """

    # Size of the vocabulary when it was last hashed, and the hash.
    _vocabulary: tuple[int, int] = 0, 0

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", settings: StepSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id
        self._cache: dict[str, list[int]] = {}
        self._check_delimiter()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _check_delimiter(self) -> None:
        delimiter = self.settings.delimiter
        for before, after in (("a", "b"), ("1 ", "2"), (".", "A"), (") ", "S"), ("", " x")):
            apart = self._ids(before + delimiter) + self._ids(after)
            if not self._ids(delimiter) or self._ids(before + delimiter + after) != apart:
                raise self._unstable(f"{before}{delimiter}{after}")

    def _unstable(self, where: str) -> UserError:
        return UserError(
            f"the tokenizer splits the delimiter {self.settings.delimiter!r} differently in context "
            f"(in {where!r}): values would be read at tokens the policy never emits",
            "choose a delimiter after which a new token begins, such as a newline or an added special token",
        )

    @property
    def vocabulary(self) -> int:
        """A hash that two tokenizers of this process share if they give the same ids to the same tokens."""
        # Hashing 150,000 words takes a tenth of a second, and a sampler asks at every start.
        size = len(self.tokenizer)
        if self._vocabulary[0] != size:
            self._vocabulary = size, hash(frozenset(self.tokenizer.get_vocab().items()))
        return self._vocabulary[1]

    @cached_property
    def closing(self) -> tuple[np.ndarray, np.ndarray]:
        """(V,) bool each: tokens whose text ends with the delimiter, and those that may complete one begun before."""
        size = len(self.tokenizer)
        texts = self.tokenizer.batch_decode([[i] for i in range(size)], skip_special_tokens=False)
        delimiter = self.settings.delimiter
        tails = {delimiter[k:] for k in range(1, len(delimiter))}
        ends = np.asarray([t.endswith(delimiter) for t in texts])
        may = np.asarray([any(t.endswith(x) for x in tails) or t.endswith("\ufffd") for t in texts])
        return ends, may & ~ends

    def ends_step(self, ids: Sequence[int]) -> bool:
        """Return whether the text of ``ids`` ends with the delimiter."""
        return self.step_text(ids).endswith(self.settings.delimiter)

    def closes(self, ids: Sequence[int]) -> bool:
        """Return the same as `ends_step`, from the last token alone if that suffices."""
        ends, may = self.closing
        last = ids[-1]
        # Embeddings may be padded beyond the tokenizer's vocabulary; those tokens have no text.
        return last < len(ends) and bool(ends[last] or (may[last] and self.ends_step(ids)))

    def check(self, prompt: str, steps: Sequence[str]) -> None:
        """Raise ``UserError`` unless tokenising the joined text gives the ids of the parts."""
        text = prompt + "".join(steps)
        apart = self.prompt_ids(prompt) + [i for s in steps for i in self.step_ids(s)]
        if list(self.tokenizer(text)["input_ids"]) != apart:
            raise self._unstable(text[:60])

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt, with the special tokens the tokenizer puts in front."""
        ids = list(self.tokenizer(prompt)["input_ids"])
        if not ids:
            raise UserError(
                "a prompt is empty: it has no token to read a value at", "give every prompt some text"
            )
        return ids

    def require_known(self, prompt: str) -> None:
        """Raise ``UserError`` if the tokenizer has no token for a piece of the prompt: the model would not see it."""
        ids, unknown = self.prompt_ids(prompt), self.tokenizer.unk_token_id
        if unknown is None or unknown not in ids or self.tokenizer.unk_token in prompt:
            return
        raise UserError(
            f"the tokenizer does not know {list(ids).count(unknown)} of the {len(ids)} tokens of the prompt "
            f"{prompt[:60]!r}: its vocabulary is made for other texts",
            "use the model that belongs to these prompts, or prompts of its task",
        )

    def step_ids(self, step: str) -> list[int]:
        """Return the token ids of one step, delimiter included."""
        found = self._cache.get(step)
        if found is None:
            found = self._ids(step)
            if not found:
                raise UserError(
                    "a step is empty: it has no token to read a value at",
                    "drop empty steps when splitting solutions",
                )
            if len(self._cache) < 100_000:
                self._cache[step] = found
        return found

    def step_text(self, ids: Sequence[int]) -> str:
        """Return the text of one decoded step, verbatim: an end-of-sequence token is part of it."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def encode(
        self, prompt: str, steps: Sequence[str], children: Sequence[Sequence[str]] = ()
    ) -> EncodedTree:
        """Encode a trajectory (its steps with their delimiters) and, packed behind it, its alternative next steps by depth."""
        return EncodedTree.of(
            self.prompt_ids(prompt),
            [self.step_ids(s) for s in steps],
            [[self.step_ids(c) for c in at] for at in children[: len(steps)]],
        )


def split_steps(text: str, delimiter: str) -> list[str]:
    r"""Cut a solution into steps, each with its delimiter; a rest without one is the last step.

    >>> split_steps("a\nb\nc", "\n")
    ['a\n', 'b\n', 'c']
    """
    pieces = text.split(delimiter)
    steps = [p + delimiter for p in pieces[:-1]]
    return [*steps, pieces[-1]] if pieces[-1] else steps
