"""Options and connection of a policy behind a server, for the verbs that can draw from one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from rmtools.cli.options import generator
from rmtools.errors import UserError

if TYPE_CHECKING:
    import torch

    from rmtools.lm.steps import StepTokenizer
    from rmtools.serving.server import ServerPolicy

CONCURRENCY, BATCH = 16, 1

ServerUrl = Annotated[
    str | None,
    typer.Option(
        "--server",
        help="Draw from the policy behind this OpenAI-compatible completions server (vLLM, SGLang, llama.cpp), "
        "http://localhost:8000/v1, say; an API key is read from OPENAI_API_KEY.",
    ),
]
ServerModel = Annotated[
    str | None, typer.Option("--server-model", help="Which of the server's models, where it has several.")
]
Concurrency = Annotated[int, typer.Option("--concurrency", help="Requests to the server at a time, at most.")]
ServerBatch = Annotated[
    int,
    typer.Option(
        "--server-batch",
        help="Prefixes in one request, at most. Above 1 requests have no seed: the run cannot be reproduced.",
    ),
]


@dataclass(frozen=True)
class Server:
    """The options of a server, as given."""

    url: str
    model: str | None
    concurrency: int
    batch: int


def asked(url: str | None, model: str | None, concurrency: int, batch: int) -> Server | None:
    """Return the server of the options, or None; raises ``UserError`` where options of one are given without it."""
    if url is not None:
        return Server(url, model, concurrency, batch)
    given = (("--server-model", model), ("--concurrency", concurrency), ("--server-batch", batch))
    for (name, value), usual in zip(given, (None, CONCURRENCY, BATCH), strict=True):
        if value != usual:
            raise UserError(
                f"{name} {value} is of a server, and none is named", f"pass --server URL, or leave {name} out"
            )
    return None


def connect_policy(
    url: str,
    steps: "StepTokenizer",
    *,
    temperature: float,
    seed: int,
    model: str | None = None,
    concurrency: int = CONCURRENCY,
    batch: int = BATCH,
    device: "torch.device | None" = None,
) -> "ServerPolicy":
    """Connect to the server of ``--server``.

    Parameters
    ----------
    url : str
    steps : StepTokenizer
        The value model's: its tokenizer reads what the server writes.
    temperature : float
    seed : int
        Of the probing requests and waiting times; the steps' seeds come from the sampler's generator.
    model : str, optional
    concurrency, batch : int
    device : torch.device, optional
        The value model's.

    Raises
    ------
    UserError
        Where there is no such server or model.
    """
    from rmtools.serving.server import connect

    for name, value in (("--concurrency", concurrency), ("--server-batch", batch)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}", "pass a positive count")
    return connect(
        url,
        steps,
        generator("server", seed),
        model=model,
        temperature=temperature,
        concurrency=concurrency,
        prompts_per_request=batch,
        device=device,
    )


def summary(policy: "ServerPolicy") -> str:
    """Return what a run asked of the server, on one line.

    The tokens are the server's count, those behind a cut included; steps that the length limit cut have no delimiter.
    """
    return (
        f"{policy.name}: {policy.draws} steps in {policy.requests} requests, {policy.generated_tokens} tokens, "
        f"{policy.truncated_steps} steps cut at the length limit, {policy.endpoint.repeated} requests sent again"
    )
