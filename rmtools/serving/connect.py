"""Connect to a policy behind servers from Python: what `rmtools.load_policy` is for a model in this process."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rmtools.errors import UserError
from rmtools.lm.policy import load_tokenizer
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.serving.endpoint import ServerSettings
from rmtools.serving.server import ServerPolicy
from rmtools.serving.server import connect as connect_with

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def connect(
    url: str | Sequence[str],
    tokenizer: "str | Path | PreTrainedTokenizerBase",
    settings: StepSettings,
    temperature: float = 1.0,
    *,
    server: ServerSettings | None = None,
) -> ServerPolicy:
    r"""Connect to the policy behind an OpenAI-compatible completions server (vLLM, SGLang, llama.cpp), or several of them.

    What the server can do is found out by a few short requests: ``policy.report()`` says what. For `rmtools.collect_rollouts`,
    and `rmtools.sample`, which also takes a value model with another tokenizer. docs/servers.md has more.

    Parameters
    ----------
    url : str or sequence of str
        Base URLs, such as ``http://localhost:8000/v1``; requests go to the least busy server. An API key is read from
        ``OPENAI_API_KEY``.
    tokenizer : folder, hub name or tokenizer
        Of the model that is served.
    settings : StepSettings
        Where a step and a solution end.
    temperature : float
        Of the softmax; nothing is truncated.
    server : rmtools.serving.endpoint.ServerSettings, optional
        Name of the model, seeds, concurrency, time limits. Its temperature is not used.

    Raises
    ------
    UserError
        If there is no such server or model, its completions are not independent draws, or it has another tokenizer.

    Examples
    --------
    >>> import rmtools as rm
    >>> try:
    ...     rm.connect("http://127.0.0.1:9/v1", "policy", rm.StepSettings("\n", 3))
    ... except rm.UserError as error:
    ...     print(error.fix)
    start it (vllm serve MODEL, for example), or check its address and port
    """
    if not isinstance(settings, StepSettings):
        raise UserError(
            f"`settings` must be StepSettings, got {settings!r}",
            r"rmtools.StepSettings(delimiter='\n', max_steps=8), say",
        )
    loaded = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    asked = replace(server or ServerSettings(), temperature=temperature)
    return connect_with(url, StepTokenizer(loaded, settings), np.random.default_rng(0), asked)
