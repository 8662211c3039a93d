r"""What a step is, and the one tokenisation that training, audit and sampling share.

A step ends with the first token after which its text holds the delimiter (`rmtools.lm.step_ends`), or with an end token.
The ids that are scored are those that the policy emitted: rollouts keep them. Text without ids is tokenised as a whole,
and a step's value is read at the token in which its text ends.

>>> StepSettings(delimiter="\n", max_steps=8).max_step_tokens
256
"""

import copy
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from rmtools.errors import UserError
from rmtools.lm.step_ends import StepEnd, StopTexts, TokenEnds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


KINDS = ("delimiter", "sentence", "tokens")
# No line of GSM8K's 34,193 training lines has more tokens of SmolLM2, and none of 2,082 paragraphs that models wrote for
# it; a third of those have more than 64.
MAX_STEP_TOKENS = 256
# A share of cut steps that is worth a warning.
MOST_CUT = 0.02


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
    end : {"delimiter", "sentence", "tokens"}
        What closes a step: the delimiter; the end of a sentence (``[.!?]`` and white space); ``max_step_tokens`` alone.
    stop : tuple of str
        Texts that end a solution, as an end token does.

    Examples
    --------
    >>> import rmtools as rm
    >>> rm.StepSettings(delimiter="\n", max_steps=8)
    StepSettings(delimiter='\n', max_steps=8, max_step_tokens=256, end='delimiter', stop=())
    """

    delimiter: str
    max_steps: int
    max_step_tokens: int = MAX_STEP_TOKENS
    end: Literal["delimiter", "sentence", "tokens"] = "delimiter"
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.delimiter:
            raise UserError(
                "the step delimiter is empty", "name the text that closes a step, such as a newline"
            )
        for name in ("max_steps", "max_step_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be an integer of at least 1, got {value!r}", f"{name} = 8, say")
        if self.end not in KINDS:
            raise UserError(f"unknown end of a step {self.end!r}", f"the ends are: {', '.join(KINDS)}")
        for text in self.stop:
            if not text or (self.end == "delimiter" and self.delimiter.startswith(text)):
                raise UserError(
                    f"the stop text {text!r} is {'empty' if not text else 'the beginning of the delimiter'}: every solution "
                    "would end with its first step",
                    f"choose a text that does not begin the delimiter {self.delimiter!r}",
                )

    @cached_property
    def rule(self) -> StepEnd:
        """The rule that closes a step, on its text."""
        return StepEnd(self.delimiter, self.end)

    @cached_property
    def stops(self) -> StopTexts:
        """The texts that end a solution."""
        return StopTexts(self.stop)


NO_SPANS = np.zeros((0, 2), dtype=np.int64)
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
    exact : bool
        Whether every step's text ends where a token ends; False also where several end in one token, and each step had to
        be tokenised by itself.
    """

    ids: np.ndarray
    positions: np.ndarray
    segment: np.ndarray
    fork: np.ndarray
    reads: np.ndarray
    child_reads: list[np.ndarray]
    exact: bool = True

    @classmethod
    def of(
        cls,
        prompt: Sequence[int],
        steps: Sequence[Sequence[int]],
        children: Sequence[Sequence[Sequence[int]]] = (),
        exact: bool = True,
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
        return cls(small[0], small[1], small[2], small[3], small[4], child_reads, exact)

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
            self.ids[:n], self.positions[:n], self.segment[:n], self.fork[:n], self.reads, none, self.exact
        )


# Stands for the text that follows a closed step: many tokenizers treat white space at the end of a text differently.
NEXT = "A"
# Stands before a text that continues another: some tokenizers put a space in front of a text.
BEFORE = "\n"
# Tokens before a fork with which an alternative is tokenised: merges reach no farther.
TAIL = 4
KNOWN_STEPS = 100_000


class StepTokenizer:
    """The policy's tokenizer, with what ends a step and a solution.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        One of the tokenizers library ("fast"): where a token lies in the text must be known.
    settings : StepSettings
    end_ids : sequence of int
        Tokens that end a solution beside the tokenizer's own: those of the model's generation settings.

    Raises
    ------
    UserError
        If the tokenizer is of another kind, or an end token holds the delimiter.
    """

    # Size of the vocabulary when it was last hashed, and the hash.
    _vocabulary: tuple[int, str] = 0, ""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", settings: StepSettings, end_ids: Sequence[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.eos_id: int = tokenizer.eos_token_id
        self.end_ids: tuple[int, ...] = tuple(sorted({self.eos_id, *end_ids}))
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UserError(
                f"{type(tokenizer).__name__} does not say where in a text its tokens lie",
                "use the model's fast tokenizer (tokenizer.json)",
            )
        self._known: dict[tuple[str, str], list[int]] = {}
        for i in self.end_ids if settings.end == "delimiter" else ():
            if settings.delimiter in self._decode([i]):
                raise UserError(
                    f"the delimiter {settings.delimiter!r} is a token that ends a solution ({self._decode([i])!r}): every "
                    "solution would have one step",
                    "choose another delimiter, such as a newline",
                )

    @cached_property
    def _plain(self) -> Any:
        """The tokenizer without the special tokens it adds; its offsets are then those of the text, blanks included."""
        plain = copy.deepcopy(self.tokenizer.backend_tokenizer)
        plain.post_processor = None
        plain.no_padding()
        plain.no_truncation()
        return plain

    def _spans(self, text: str) -> tuple[list[int], np.ndarray]:
        """Return the token ids of a text, and (L, 2) where each one begins and ends in it."""
        found = self._plain.encode(text, add_special_tokens=False)
        return found.ids, np.asarray(found.offsets, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def front_ids(self) -> list[int]:
        """The special tokens that the tokenizer puts in front of a text."""
        whole, own = list(self.tokenizer("a")["input_ids"]), self._spans("a")[0]
        return next((whole[:k] for k in range(len(whole)) if own and whole[k : k + len(own)] == own), [])

    @property
    def front_text(self) -> str:
        """The text of `front_ids`."""
        return self._decode(self.front_ids)

    @cached_property
    def _before(self) -> str:
        """Text to put before one that continues another, "" if the tokenizer adds nothing to the beginning of a text."""
        alone, behind = self._spans("a")[0], self._spans(BEFORE + "a")[0]
        return "" if behind[-len(alone) :] == alone else BEFORE

    def _read(self, left: str, text: str, right: str) -> tuple[list[int], np.ndarray, list[int]] | None:
        """Return ids and spans of ``text`` between ``left`` and ``right``, and the ids of ``left``; None if a token straddles."""
        ids, spans = self._spans(left + text + right)
        a, b = np.searchsorted(spans[:, 0], [len(left), len(left) + len(text)])
        if (spans[:a, 1] > len(left)).any() or (spans[a:b, 1] > len(left) + len(text)).any():
            return None
        return ids[a:b], spans[a:b] - len(left), ids[:a]

    def between(self, left: str, text: str, right: str, own: Sequence[int] | None = None) -> list[int] | None:
        """Return the ids of a text between two others; None if a token straddles, or ``left`` has other than its ``own`` ids."""
        found = self._read(left, text, right)
        if found is None or (own is not None and found[2] != list(own)[len(own) - len(found[2]) :]):
            return None
        return found[0]

    def _apart(self, text: str) -> tuple[list[int], np.ndarray]:
        """Return ids and spans of a text that continues another one, whatever that was."""
        right = NEXT if self.settings.rule.held_by(text) else ""
        found = (self._read(self._before, text, right) if right else None) or self._read(
            self._before, text, ""
        )
        ids, spans = self._spans(text) if found is None else found[:2]
        if not ids:
            raise UserError(
                "a step is empty: it has no token to read a value at",
                "drop empty steps when splitting solutions",
            )
        return ids, spans

    @property
    def vocabulary(self) -> str:
        """A hash that two tokenizers share if they give the same ids to the same tokens."""
        # Hashing 150,000 words takes a fifth of a second, and a sampler asks at every start.
        size = len(self.tokenizer)
        if self._vocabulary[0] != size:
            digest = hashlib.sha256()
            for word, i in sorted(self.tokenizer.get_vocab().items()):
                digest.update(f"{i} {word}\n".encode(errors="surrogatepass"))
            self._vocabulary = size, digest.hexdigest()[:16]
        return self._vocabulary[1]

    @cached_property
    def _context(self) -> tuple[list[int], str]:
        """Tokens to decode before those of a step, and their text: some decoders drop the space a text begins with."""
        ids = self._spans("a b")[0]
        texts = [self._decode(ids), "".join(self._decode([i]) for i in ids)]
        before = self._spans(BEFORE)[0] if texts[0] != texts[1] else []
        return before, self._decode(before)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of every token of the vocabulary, within a text."""
        before, text = self._context
        rows = [[*before, i] for i in range(len(self.tokenizer))]
        found = self.tokenizer.batch_decode(
            rows, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return [t.removeprefix(text) for t in found]

    @cached_property
    def token_ends(self) -> TokenEnds:
        """What every token says of the end of a step."""
        return self.settings.rule.tokens(self.token_texts)

    @cached_property
    def token_stops(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(V,) bool each: tokens that hold a stop text; in which one may begin; which may complete one begun before."""
        return self.settings.stops.tokens(self.token_texts)

    def closes(self, ids: Sequence[int]) -> bool:
        """Return whether a step with these tokens, not complete before the last one, is complete with it."""
        ends, last = self.token_ends, ids[-1]
        # Embeddings may be padded beyond the tokenizer's vocabulary; those tokens have no text.
        if last >= len(ends.closes):
            return False
        if ends.closes[last]:
            return True
        if ends.closes_begun[last] and any(ends.begins[i] for i in ids[:-1] if i < len(ends.begins)):
            return True
        return bool(len(ids) > 1 and ends.completes[last]) and self.settings.rule.held_by(self.step_text(ids))

    def stopped(self, ids: Sequence[int], before: Sequence[int] = ()) -> bool:
        """Return whether a step holds a stop text, which may begin in the tokens of the solution ``before`` it."""
        stops = self.settings.stops
        if not self.settings.stop or not ids:
            return False
        read = [*before[max(0, len(before) - stops.n_tokens) :], *ids]
        # Some decoders read no byte of a run that begins within a character: at one of four tokens a character begins.
        known = self.token_texts
        inside = read[0] < len(known) and "\ufffd" in known[read[0]]
        return any(stops.held_by(self.step_text(read[k:])) for k in range(4 if inside else 1))

    def ends(self, ids: Sequence[int], before: Sequence[int] = ()) -> bool:
        """Return whether a step ends the solution by its last token or by a stop text, see `stopped`."""
        return bool(ids) and (ids[-1] in self.end_ids or self.stopped(ids, before))

    def cut(self, ids: Sequence[int]) -> list[list[int]]:
        """Cut the tokens of a solution into steps as the policy ends them; the last one may be incomplete.

        What follows the end of the solution, an end token or a stop text, is left out.
        """
        steps, over = self.finished(ids)
        rest = list(ids[sum(map(len, steps)) :])
        return [*steps, rest] if rest and not over else steps

    def finished(self, ids: Sequence[int]) -> tuple[list[list[int]], bool]:
        """Return the complete steps of the tokens of a solution, and whether the last one ends it: nothing follows then."""
        steps: list[list[int]] = []
        start, known = 0, self.settings.stops.n_tokens
        for k, i in enumerate(ids):
            current = list(ids[start : k + 1])
            # Read no more than a stop text that ends with this token may have.
            over = i in self.end_ids or self.stopped([i], ids[max(0, k - known) : k])
            if over or len(current) >= self.settings.max_step_tokens or self.closes(current):
                steps.append(current)
                start = k + 1
            if over:
                return steps, True
        return steps, False

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt, with the special tokens the tokenizer puts in front, unless the prompt has them.

        What a tokenizer puts behind a text (some append the end of the sequence) is left out: the prompt goes on.
        """
        ids = self._known.get((prompt, ""))
        if ids is None:
            ids = self._spans(prompt)[0]
            if not ids:
                raise UserError(
                    "a prompt is empty: it has no token to read a value at", "give every prompt some text"
                )
            # A prompt rendered by a chat template begins with them as text.
            front = [] if self.front_ids and ids[: len(self.front_ids)] == self.front_ids else self.front_ids
            ids = [*front, *ids]
            self._remember((prompt, ""), ids)
        return ids

    def _remember(self, key: tuple[str, str], ids: list[int]) -> None:
        if len(self._known) < KNOWN_STEPS:
            self._known[key] = ids

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
        """Return the token ids of one step, delimiter included, as far as they do not depend on the text before it."""
        found = self._known.get(("", step))
        if found is None:
            found = self._apart(step)[0]
            self._remember(("", step), found)
        return found

    def step_text(self, ids: Sequence[int]) -> str:
        """Return the text of one decoded step, verbatim: an end-of-sequence token is part of it."""
        before, text = self._context
        return self._decode([*before, *ids]).removeprefix(text)

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        """The texts of the tokens that end a solution, longest first."""
        return tuple(
            sorted({t for t in map(self.step_text, [[i] for i in self.end_ids]) if t}, key=len)[::-1]
        )

    def written(self, steps: Sequence[str]) -> list[str]:
        """Return the steps of a solution as a verifier reads them: the token that ends the last one is a delimiter."""
        last = steps[-1].rstrip() if steps else ""
        end = next((e for e in self.end_texts if last.endswith(e)), "")
        if not end:
            return list(steps)
        text, rule = last.removesuffix(end), self.settings.rule
        closes = text.strip() and self.settings.end == "delimiter" and not rule.held_by(text)
        return [*steps[:-1], text + self.settings.delimiter if closes else text]

    def encode(
        self, prompt: str, steps: Sequence[str], children: Sequence[Sequence[str]] = ()
    ) -> EncodedTree:
        """Encode a trajectory (its steps with their delimiters) and, packed behind it, its alternative next steps by depth.

        The text is tokenised as a whole, alternatives behind the text before their fork. A step whose end falls into a token
        has it as its last one.
        """
        start = self.prompt_ids(prompt)
        ids, spans = self._behind(prompt, "".join(steps), steps[-1]) if steps else ([], NO_SPANS)
        ends = np.cumsum([len(s) for s in steps], dtype=np.int64)
        cuts = np.searchsorted(spans[:, 0], ends)
        own = [ids[a:b] for a, b in itertools.pairwise([0, *cuts.tolist()])]
        exact = all(own) and bool((spans[cuts - 1, 1] <= ends).all())
        if not all(own):
            own = [self.step_ids(s) for s in steps]
        found: list[list[list[int]]] = []
        for t, at in enumerate(children[: len(steps)]):
            if not exact:
                found.append([self.step_ids(c) for c in at])
            elif t == 0:
                found.append([self._behind(prompt, c, c)[0] for c in at])
            else:
                first = int(spans[max(0, int(cuts[t - 1]) - TAIL), 0])
                left, last = "".join(steps)[first : int(ends[t - 1])], own[t - 1][-1]
                found.append([self._branch(left, last, c) for c in at])
        return EncodedTree.of(start, own, found, exact)

    def _behind(self, prompt: str, text: str, last: str) -> tuple[list[int], np.ndarray]:
        """Return ids and spans of the text of a solution with the ``last`` step, behind its prompt if that keeps its own."""
        right = NEXT if self.settings.rule.held_by(last) else ""
        found = (self._read(prompt, text, right) if right else None) or self._read(prompt, text, "")
        own = self.prompt_ids(prompt)
        if found is None or not found[0] or found[2] != own[len(own) - len(found[2]) :]:
            return self._apart(text)
        return found[0], found[1]

    def _branch(self, left: str, last: int, child: str) -> list[int]:
        """Return the ids of an alternative behind a text with the ``last`` token, those by itself if that token changes."""
        found = self._known.get((left, child))
        if found is None:
            right = NEXT if self.settings.rule.held_by(child) else ""
            read = (self._read(left, child, right) if right else None) or self._read(left, child, "")
            kept = read is not None and bool(read[0]) and bool(read[2]) and read[2][-1] == last
            found = read[0] if kept and read is not None else self.step_ids(child)
            self._remember((left, child), found)
        return found
