"""A transformers language model as a policy: stepwise batched decoding that keeps the KV cache.

Equal prefixes are decoded once: a state holds the distinct ones, ``node`` gives the one that each particle is at, and
particles part when they draw different tokens. Resampled copies cost nothing until they differ. The law of the steps is that
of one-shot sampling: a step is decoded token by token from `rmtools.lm.sampling_law` until its text holds the delimiter, an
end token comes, or it has ``max_step_tokens``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from rmtools.errors import UserError, reason
from rmtools.lm.hub import HOW_TO_NAME, find_model
from rmtools.lm.kv.cache import PrefixCache
from rmtools.lm.precision import (
    Dtype,
    input_device,
    on_device,
    placed,
    quantisation,
    quantised_weights,
    weights_in,
)
from rmtools.lm.protocol import Decoded
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.steps import StepSettings, StepTokenizer

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PolicyState:
    """A batch of B prefixes in the middle of generation.

    Attributes
    ----------
    cache : PrefixCache
        All tokens but those pending.
    pending, n_steps, ended : Tensor
        (B,) last token of each prefix, fed at the start of the next step; steps so far; whether it has ended.
    """

    cache: PrefixCache
    pending: Tensor
    n_steps: Tensor
    ended: Tensor

    def select(self, rows: Tensor) -> "PolicyState":
        """Return the prefixes ``rows`` (B',)."""
        return PolicyState(self.cache.select(rows), self.pending[rows], self.n_steps[rows], self.ended[rows])

    def join(self, other: "PolicyState") -> "PolicyState":
        """Return these prefixes followed by those of ``other``."""
        return PolicyState(
            self.cache.join(other.cache),
            torch.cat([self.pending, other.pending]),
            torch.cat([self.n_steps, other.n_steps]),
            torch.cat([self.ended, other.ended]),
        )


@dataclass(frozen=True)
class _PartialStep:
    """A step being decoded: its U distinct beginnings, the one each particle is at, which are complete, and which not blank."""

    parent: Tensor
    node: Tensor
    done: Tensor
    begun: Tensor
    columns: tuple[Tensor, ...] = ()

    def append(self, token: Tensor) -> tuple["_PartialStep", Tensor | None, Tensor]:
        """Append each particle's ``token`` (B,); return the new beginnings, and (U',) the old one and the token of each.

        The old ones are None if every particle was alone at its own.
        """
        if len(self.parent) == len(self.node):
            at = torch.empty_like(token).index_copy_(0, self.node, token)
            return replace(self, columns=(*self.columns, at)), None, at
        key, node = torch.unique(self.node * TOKEN_SPAN + (token + 1), return_inverse=True)
        origin, token = key // TOKEN_SPAN, key % TOKEN_SPAN - 1
        columns = (*(c[origin] for c in self.columns), token)
        begun = self.begun[origin]
        return _PartialStep(self.parent[origin], node, self.done[origin], begun, columns), origin, token


@dataclass(frozen=True)
class _Tables:
    """`StepTokenizer`'s tables as wide as the embeddings, then False: what a missing token, -1, reads.

    ``parted`` says whether a match may lie in several tokens at all; ``stops`` are those of the stop texts.
    """

    ends: Tensor
    closes: Tensor
    closes_begun: Tensor
    begins: Tensor
    opens: Tensor
    completes: Tensor
    stops: Tensor
    parted: bool

    @classmethod
    def of(cls, steps: StepTokenizer, width: int, device: torch.device) -> "_Tables":
        """Return the tables of ``steps`` for ``width`` embeddings."""
        known = steps.token_ends
        rows = [known.closes, known.closes_begun, known.begins, known.opens, known.completes]
        wide = np.zeros((len(rows) + 3, width + 1), dtype=bool)
        size = len(known.closes)
        wide[:, :size] = np.stack([*rows, *(steps.token_stops if steps.settings.stop else wide[:3, :size])])
        wide[2, size:-1] = True
        ends = np.zeros(width + 1, dtype=bool)
        ends[list(steps.end_ids)] = True
        at = torch.from_numpy(wide).to(device)
        parted = bool(known.opens.any() and known.completes.any())
        return cls(torch.from_numpy(ends).to(device), at[0], at[1], at[2], at[3], at[4], at[5:], parted)


# What transformers and peft raise on a damaged configuration depends on which byte is wrong. For their own calls only.
LOAD_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ArithmeticError,
    StrictDataclassError,
)

# Vocabularies that are searched as a whole.
FEW_WORDS = 4096
# More than any vocabulary: a (prefix, token) pair is one integer.
TOKEN_SPAN = 1 << 24
# Words of a block: the sums of the blocks are searched first, and then the words of one.
BLOCK = 512


def search_words(p: Tensor, node: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a word (B,) for each particle from row ``node`` of ``p`` (U, V): one uniform each, sums in fp64.

    With many words, a particle's copy of its row would cost more than the model's own pass over a short step.
    """
    uniform = torch.rand(len(node), dtype=torch.float64, device=p.device, generator=generator)
    few = p.shape[-1] <= FEW_WORDS
    cumulative = (p.double() if few else _block_sums(p)).cumsum(-1)
    # The largest uniform is 1 - 2^-53, and its product with any total is rounded to less than the total.
    at = uniform * cumulative[:, -1][node]
    found = torch.searchsorted(cumulative[node], at[:, None], right=True)
    if few:
        return found[:, 0]
    before = torch.where(found > 0, cumulative[node].gather(1, (found - 1).clamp(min=0)), 0.0)
    words = found * BLOCK + torch.arange(BLOCK, device=p.device)
    own = torch.where(words < p.shape[-1], p[node[:, None], words.clamp(max=p.shape[-1] - 1)], 0).double()
    inside = torch.searchsorted(own.cumsum(-1), at[:, None] - before, right=True)
    # Sums in another order differ in their last bit: never beyond the last word that has a probability.
    last = BLOCK - 1 - (own > 0).flip(-1).long().argmax(-1, keepdim=True)
    return (found * BLOCK + torch.minimum(inside, last))[:, 0]


def _block_sums(p: Tensor) -> Tensor:
    """Return the sums of the blocks of each row, (U, V / BLOCK) in fp64."""
    whole = p.shape[-1] // BLOCK * BLOCK
    sums = p[:, :whole].reshape(len(p), -1, BLOCK).sum(-1, dtype=torch.float64)
    return torch.cat([sums, p[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], dim=1)


def _draw_live(p: Tensor, step: _PartialStep, some_done: bool, generator: torch.Generator) -> Tensor:
    """Draw a token (B,) from ``p`` (U, V) for every particle whose step is not complete; -1 for the others."""
    if not some_done:
        return search_words(p, step.node, generator)
    live = (~step.done[step.node]).nonzero()[:, 0]
    token = torch.full_like(step.node, -1)
    token[live] = search_words(p, step.node[live], generator)
    return token


class Policy:
    """The base language model pi.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model.
    steps : StepTokenizer
        Its tokenizer and step settings.
    temperature : float or SamplingLaw
        Of the softmax, or with truncation; everywhere in rmtools "the policy" is this law.
    name : str
        Folder or hub name, for provenance.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        steps: StepTokenizer,
        temperature: float | SamplingLaw = 1.0,
        name: str = "",
    ) -> None:
        self.law = temperature if isinstance(temperature, SamplingLaw) else SamplingLaw(temperature)
        self.temperature = self.law.temperature
        self.model = model.eval()
        self.steps = steps
        self.name = name

    @property
    def device(self) -> torch.device:
        """The device of the model's inputs: of several that hold its weights, that of the embeddings."""
        return input_device(self.model)

    @property
    def context(self) -> int | None:
        """Most tokens the model can take; None if its configuration does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @torch.inference_mode()
    def start(self, prompts: list[list[int]]) -> PolicyState:
        """Return the state of ``prompts`` (token ids), each prefilled once."""
        self.check_length(prompts)
        ids, present = left_padded([p[:-1] for p in prompts], self.steps.pad_id, self.device)
        cache = PrefixCache.empty(len(prompts), self.device)
        if ids.shape[1]:
            given = None if bool(present.all()) else present
            _, cache = cache.forward(self.model, ids, given, last_only=True)
        n = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
        return PolicyState(cache, torch.tensor([p[-1] for p in prompts], device=self.device), n, n.bool())

    def check_length(self, prompts: list[list[int]]) -> None:
        """Raise ``UserError`` if a prompt leaves no room for a single token."""
        require_room(prompts, self.context)

    @torch.inference_mode()
    def decode_step(
        self, state: PolicyState, node: Tensor, generator: torch.Generator
    ) -> Decoded[PolicyState]:
        """Draw one step for each of B particles independently; none if its prefix has ended.

        ``node`` (B,) says at which of the U prefixes of ``state`` each particle is; ``generator`` is on the policy's device.
        """
        none = torch.zeros_like(state.ended)
        step = _PartialStep(torch.arange(len(state.pending), device=self.device), node, state.ended, none)
        cache, pending, over = state.cache, state.pending, none
        # Ask the device once per token: every answer waits for all the work before it.
        n_done = int(step.done.sum())
        if n_done == len(step.done):
            step = replace(step, columns=(torch.full_like(pending, -1),))
        for _ in range(0 if step.columns else self.steps.settings.max_step_tokens):
            present = ~step.done[:, None] if n_done else None
            logits, cache = cache.forward(self.model, pending[:, None], present)
            p = self.law.probabilities(logits[:, -1].float())
            step, origin, token = step.append(_draw_live(p, step, n_done > 0, generator))
            if origin is not None:
                cache, over, pending = cache.select(origin), over[origin], pending[origin]
            # A complete step has no new token: index -1 of every table is False.
            over = over | self._tables.ends[token]
            if self.steps.settings.stop:
                over = over | self._stopped(step, state)
            pending = torch.where(token >= 0, token, pending)
            done = step.done | over | self._closes(step) | self._out_of_context(cache)
            step = replace(step, done=done, begun=step.begun | self._tables.begins[token])
            # One NaN or infinite logit makes its whole row of p NaN: the first column tells.
            n_done, broken = torch.stack([done.sum(), torch.isnan(p[:, 0]).sum()]).tolist()
            if broken:
                raise ValueError("the policy returned NaN logits: its weights or its precision are broken")
            if n_done == len(done):
                break
        before = state.n_steps[step.parent], state.ended[step.parent]
        counted = count_step(self.steps.settings, *before, over | self._out_of_context(cache))
        after = PolicyState(cache.packed(), pending, *counted)
        return Decoded(torch.stack(step.columns, dim=1), after, step.parent, step.node)

    def _closes(self, step: _PartialStep) -> Tensor:
        """Return which beginnings of a step are complete with their last token; for most it decides alone."""
        tables, columns = self._tables, step.columns
        last = columns[-1]
        closed = tables.closes[last] | (tables.closes_begun[last] & step.begun)
        if len(columns) == 1 or not tables.parted:
            return closed
        unsure = (tables.completes[last] & tables.opens[columns[-2]] & ~closed).nonzero()[:, 0]
        return closed.index_copy(0, unsure, self._read(columns, unsure, self.steps.settings.rule.held_by))

    def _stopped(self, step: _PartialStep, state: PolicyState) -> Tensor:
        """Return which beginnings of a step hold a stop text, be it begun in the last token of the step before."""
        holds, opens, completes = self._tables.stops
        # The prompt is no part of the solution.
        before = torch.where(state.n_steps > 0, state.pending, -1)[step.parent]
        columns = (before, *step.columns)
        found = holds[columns[-1]]
        unsure = (completes[columns[-1]] & opens[columns[-2]] & ~found).nonzero()[:, 0]
        stops = self.steps.settings.stop
        texts = self._read(columns, unsure, lambda text: any(stop in text for stop in stops))
        return found.index_copy(0, unsure, texts)

    def _read(self, columns: tuple[Tensor, ...], rows: Tensor, holds: Callable[[str], bool]) -> Tensor:
        """Return for some beginnings whether ``holds`` of their text."""
        begun = torch.stack([c[rows] for c in columns], dim=1).tolist() if len(rows) else []
        found = [holds(self.steps.step_text([i for i in ids if i >= 0])) for ids in begun]
        return torch.tensor(found, dtype=torch.bool, device=rows.device)

    @cached_property
    def _tables(self) -> "_Tables":
        width = max(len(self.steps.tokenizer), self.model.config.get_text_config().vocab_size)
        return _Tables.of(self.steps, width, self.device)

    def _out_of_context(self, cache: PrefixCache) -> Tensor:
        if self.context is None:
            return torch.zeros_like(cache.length, dtype=torch.bool)
        return cache.length + 1 >= self.context


def require_room(prompts: list[list[int]], context: int | None) -> None:
    """Raise ``UserError`` if a prompt (token ids) leaves no room in a model's context for a single token."""
    for i, ids in enumerate(prompts):
        if context is not None and len(ids) >= context:
            raise UserError(
                f"prompt {i} has {len(ids)} tokens, the model takes {context}: no room is left for a step",
                "shorten the prompt, or use or serve a model with more context",
            )


def count_step(
    settings: StepSettings, n_steps: Tensor, was_ended: Tensor, over: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how many steps prefixes (B,) have after one more, and which have ended: also those that are ``over`` now."""
    n_steps = n_steps + (~was_ended).long()
    return n_steps, was_ended | over | (n_steps >= settings.max_steps)


def left_padded(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids (B, L) with pads on the left, and which are real (B, L) bool."""
    width = max((len(r) for r in rows), default=0)
    ids = torch.tensor([[pad_id] * (width - len(r)) + list(r) for r in rows], dtype=torch.long, device=device)
    length = torch.tensor([len(r) for r in rows], device=device)
    present = torch.arange(width, device=device) >= width - length[:, None]
    return ids.reshape(len(rows), width), present


def distinct(node: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct prefixes in use (U',), and each particle's place among them (B,)."""
    return torch.unique(node, return_inverse=True)


def best_device() -> torch.device:
    """Return the CUDA device if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_policy(
    path: str | Path,
    settings: StepSettings,
    temperature: float | SamplingLaw = 1.0,
    device: torch.device | None = None,
    dtype: Dtype = "auto",
) -> Policy:
    r"""Load a causal language model and its tokenizer.

    Parameters
    ----------
    path : str or Path
        A folder, or a hub model (``org/name``, ``org/name@revision``), whose commit becomes part of the policy's name.
    settings : StepSettings
        Where a step and a solution end.
    temperature : float or SamplingLaw
        Of the softmax that tokens are drawn from; `rmtools.lm.sampling_law.SamplingLaw` truncates it too.
    device : torch.device, optional
        Default: CUDA if available.
    dtype : {"auto", "float32", "bfloat16"}
        Precision of the weights. auto: float32 on a CPU, that of the files on a GPU.

    Raises
    ------
    UserError
        If there is no model, the library that reads its quantised weights is missing, or its tokenizer has no
        end-of-sequence token, or one that holds the delimiter.

    Examples
    --------
    >>> import rmtools as rm
    >>> policy = rm.load_policy("policy", rm.StepSettings(delimiter="\n", max_steps=3))
    >>> policy.name, policy.temperature, policy.steps.step_text(policy.steps.step_ids("s r2 \n"))
    ('policy', 1.0, 's r2 \n')
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    source, device = find_model(path), device or best_device()
    path = source.folder
    if (path / "rmtools.json").exists() or (path / "adapter_config.json").exists():
        raise UserError(
            f"{source} is a reward model or an adapter, not a policy: it has no head that writes text",
            "name the causal language model that solutions are drawn from",
        )
    tokenizer = load_tokenizer(path)
    try:
        config = AutoConfig.from_pretrained(path)
        how = quantisation(config)
        with quantised_weights(source, how):
            found: Any = AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True, dtype=weights_in(dtype, device), **placed(how, device)
            )
        model, loading = found
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise not_a_model(source, error) from error
    if loading["missing_keys"]:
        raise UserError(
            f"the weights of {source} lack {', '.join(sorted(loading['missing_keys'])[:3])}: drawn at random they would write "
            "random text",
            "name a causal language model that was saved whole",
        )
    require_vocabulary(tokenizer, model.config, str(source))
    ends = end_ids(model.generation_config, tokenizer)
    return Policy(
        on_device(model, device), StepTokenizer(tokenizer, settings, ends), temperature, source.pinned
    )


def end_ids(generation: "GenerationConfig | None", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens that end a solution: those of the model's generation settings, and the tokenizer's own."""
    found = None if generation is None else generation.eos_token_id
    given = [] if found is None else [found] if isinstance(found, int) else list(found)
    return sorted({int(tokenizer.eos_token_id), *given})


def saved_end_ids(model: str, config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return `end_ids` of a folder or hub model whose weights are not loaded as a policy; "" is a model in memory alone."""
    from transformers import GenerationConfig

    if model and (find_model(model).folder / "generation_config.json").exists():
        return end_ids(GenerationConfig.from_pretrained(find_model(model).folder), tokenizer)
    return end_ids(GenerationConfig(eos_token_id=config.eos_token_id), tokenizer)


def require_vocabulary(
    tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig", path: str | Path
) -> None:
    """Raise ``UserError`` if the tokenizer has ids without an embedding in the model."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise UserError(
            f"the tokenizer of {path} has token ids up to {largest}, the model only {config.vocab_size} embeddings",
            "use the tokenizer that belongs to the model, or resize its embeddings",
        )


def load_tokenizer(path: str | Path):  # type: ignore[no-untyped-def]
    """Load the tokenizer of a model; raise ``UserError`` if it is missing or has no end-of-sequence token."""
    from transformers import AutoTokenizer

    path = find_model(path).folder
    names = ("config.json", "tokenizer_config.json")
    if not any((path / name).exists() for name in names):
        raise not_a_model(path, FileNotFoundError("no config.json in it"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except LOAD_ERRORS as error:
        if (path / "config.json").exists() and not any(path.glob("*token*")):
            raise UserError(
                f"{path} has no tokenizer beside the model",
                "save it there too: tokenizer.save_pretrained(folder)",
            ) from error
        raise not_a_model(path, error) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {path} has no end-of-sequence token: the end of a solution is not visible",
            "set eos_token and save the tokenizer again",
        )
    return tokenizer


def not_a_model(path: object, error: Exception) -> UserError:
    """Return the error for a path that holds no loadable model."""
    why = reason(error)
    if isinstance(error, (TypeError, KeyError, AttributeError)):
        why = f"its configuration or tokenizer is damaged ({why})"
    return UserError(f"no model can be loaded from {path}: {why}", HOW_TO_NAME)
