"""A transformers language model as a policy: stepwise batched decoding that keeps the KV cache.

Equal prefixes are decoded once: a state holds the distinct ones, ``node`` gives the one that each particle is at, and
particles part when they draw different tokens. Resampled copies cost nothing until they differ. The law of the steps is that
of one-shot sampling: a step is decoded token by token from `rmtools.lm.sampling_law` until its text holds the delimiter, an
end token comes, or it has ``max_step_tokens``.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from rmtools.errors import UserError, reason
from rmtools.lm.decoding import Decoding, PolicyState, Source, Tables
from rmtools.lm.hub import HOW_TO_NAME, FoundModel, find_model
from rmtools.lm.kv.cache import begun
from rmtools.lm.precision import (
    Dtype,
    Where,
    best_device,
    device_of,
    input_device,
    inputs_on,
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
        cache, common = begun(self.model, [p[:-1] for p in prompts], self.device)
        ids, present = left_padded([p[common:-1] for p in prompts], self.steps.pad_id, self.device)
        if ids.shape[1]:
            given = None if bool(present.all()) else present
            _, cache = cache.forward(self.model, ids, given, last_only=True)
            cache = cache.as_beginnings(self.model)
        n = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
        last = torch.tensor([p[-1] for p in prompts], device=self.device)
        none = torch.full((len(prompts), self.steps.settings.stops.n_tokens), -1, device=self.device)
        return PolicyState(cache, last, n, n.bool(), none)

    def check_length(self, prompts: list[list[int]]) -> None:
        """Raise ``UserError`` if a prompt leaves no room for a single token, or has one without an embedding."""
        require_room(prompts, self.context)
        embeddings: Any = getattr(self.model, "get_input_embeddings", None)
        for i, ids in enumerate(prompts if embeddings is not None else ()):
            if beyond := [token for token in ids if token >= embeddings().num_embeddings]:
                raise UserError(
                    f"prompt {i} holds {self.steps.step_text(beyond[:1])!r}, for which the model has no embedding",
                    "leave it out, or use the model that it belongs to",
                )

    def decode_step(
        self, state: PolicyState, node: Tensor, generator: torch.Generator
    ) -> Decoded[PolicyState]:
        """Draw one step for each of B particles independently; none if its prefix has ended.

        ``node`` (B,) says at which of the U prefixes of ``state`` each particle is; ``generator`` is on the policy's device.
        """
        decoding = Decoding(self._source, state, node, whole=False)
        decoding.run(generator)
        return decoding.step()

    def decode_solutions(
        self, state: PolicyState, node: Tensor, generator: torch.Generator
    ) -> list[list[list[int]]]:
        """Draw all further steps for each of B particles, as token ids; the law is that of `decode_step` again and again."""
        decoding = Decoding(self._source, state, node, whole=True)
        decoding.run(generator)
        return decoding.solutions()

    @property
    def _source(self) -> Source:
        return Source(self.model, self.law, self.steps, self._tables, self.context)

    @cached_property
    def _tables(self) -> Tables:
        width = max(len(self.steps.tokenizer), self.model.config.get_text_config().vocab_size)
        return Tables.of(self.steps, width, self.device)


def require_room(prompts: list[list[int]], context: int | None) -> None:
    """Raise ``UserError`` if a prompt (token ids) leaves no room in a model's context for a single token."""
    for i, ids in enumerate(prompts):
        if context is not None and len(ids) >= context:
            raise UserError(
                f"prompt {i} has {len(ids)} tokens, the model takes {context}: no room is left for a step",
                "shorten the prompt, or use or serve a model with more context",
            )


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


def load_policy(
    path: str | Path,
    settings: StepSettings,
    temperature: float | SamplingLaw = 1.0,
    device: str | torch.device | None = None,
    dtype: Dtype = "auto",
    check: Callable[[StepTokenizer, int | None], object] | None = None,
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
    device : str or torch.device, optional
        Default: CUDA if available. "spread": the layers over all GPUs.
    dtype : {"auto", "float32", "bfloat16"}
        Precision of the weights. auto: float32 on a CPU, that of the files on a GPU.
    check : callable, optional
        ``check(steps, context)`` is called before the weights are read, with what they will be read with and the most tokens
        the model takes (None: not known): what it raises ends the loading.

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
    from transformers import AutoConfig

    if not isinstance(settings, StepSettings):
        raise UserError(
            f"`settings` must be StepSettings, got {settings!r}",
            r"rmtools.StepSettings(delimiter='\n', max_steps=8), say",
        )
    law = temperature if isinstance(temperature, SamplingLaw) else SamplingLaw(temperature)
    where = device_of(device) or best_device()
    source = find_model(path)
    path = source.folder
    if (path / "rmtools.json").exists() or (path / "adapter_config.json").exists():
        raise UserError(
            f"{source} is a reward model or an adapter, not a policy: it has no head that writes text",
            "name the causal language model that solutions are drawn from",
        )
    tokenizer = load_tokenizer(path)
    with _model_files(source):
        config = AutoConfig.from_pretrained(path)
        ends = saved_end_ids(str(path), config.get_text_config(), tokenizer)
    steps = StepTokenizer(tokenizer, settings, ends)
    if check is not None:
        check(steps, getattr(config, "max_position_embeddings", None))
    model = _language_model(source, quantisation(config), where, dtype)
    require_vocabulary(tokenizer, model.config, str(source))
    ends = end_ids(model.generation_config, tokenizer)
    if (*ends,) != steps.end_ids:
        steps = StepTokenizer(tokenizer, settings, ends)
    return Policy(on_device(model, where), steps, law, source.pinned)


def _language_model(source: FoundModel, how: dict[str, Any], where: Where, dtype: Dtype) -> Any:
    """Return a causal language model, its weights quantised as ``how``; raise ``UserError`` if some are missing."""
    from transformers import AutoModelForCausalLM

    with _model_files(source), quantised_weights(source, how):
        found: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            output_loading_info=True,
            dtype=weights_in(dtype, inputs_on(where)),
            **placed(how, where),
        )
    model, loading = found
    if loading["missing_keys"]:
        raise UserError(
            f"the weights of {source} lack {', '.join(sorted(loading['missing_keys'])[:3])}: drawn at random they would write "
            "random text",
            "name a causal language model that was saved whole",
        )
    return model


@contextlib.contextmanager
def _model_files(source: object) -> Iterator[None]:
    """Turn what transformers raises while it reads a model's files into a ``UserError``."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise not_a_model(source, error) from error


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
    return end_ids(GenerationConfig(eos_token_id=getattr(config, "eos_token_id", None)), tokenizer)


def require_vocabulary(
    tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig", path: str | Path
) -> None:
    """Raise ``UserError`` if the tokenizer has ids without an embedding in the model.

    Special tokens are left out: those of Gemma 3 have one for pictures, which its language models do not know.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    largest = max(i for i in tokenizer.get_vocab().values() if i not in special)
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
