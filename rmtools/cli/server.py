"""Options and connection of a policy behind a server, for the verbs that can draw from one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rmtools.cli.options import server_option
from rmtools.errors import UserError
from rmtools.seeds import generator

if TYPE_CHECKING:
    import torch

    from rmtools.lm.sampling_law import SamplingLaw
    from rmtools.lm.steps import StepTokenizer
    from rmtools.serving.server import ServerPolicy

CONCURRENCY, BATCH = 16, 1

ServerUrl = Annotated[
    str | None,
    server_option(
        "--server",
        help="Draw from the policy behind this OpenAI-compatible completions server (vLLM, SGLang, llama.cpp), "
        "such as http://localhost:8000/v1. An API key is read from OPENAI_API_KEY.",
    ),
]
ServerModel = Annotated[
    str | None, server_option("--server-model", help="Which of the server's models, if it has several.")
]
Concurrency = Annotated[
    int, server_option("--concurrency", min=1, help="Largest number of requests to the server at a time.")
]
ServerBatch = Annotated[
    int,
    server_option(
        "--server-batch",
        min=1,
        help="Largest number of prefixes in a request. Above 1 requests have no seed: the run cannot be reproduced.",
    ),
]


@dataclass(frozen=True)
class Server:
    """The options of a server."""

    url: str
    model: str | None
    concurrency: int
    batch: int


def server_options(url: str | None, model: str | None, concurrency: int, batch: int) -> Server | None:
    """Return the server of the options, or None; raise ``UserError`` if ``--server`` is missing."""
    if url is not None:
        return Server(url, model, concurrency, batch)
    given = {
        "--server-model": model is not None,
        "--concurrency": concurrency != CONCURRENCY,
        "--server-batch": batch != BATCH,
    }
    for name, changed in given.items():
        if changed:
            raise UserError(f"{name} needs --server", f"pass --server URL, or leave {name} out")
    return None


def connect_policy(
    server: Server,
    steps: "StepTokenizer",
    law: "SamplingLaw",
    seed: int,
    device: "torch.device | None" = None,
) -> "ServerPolicy":
    """Connect to the server of ``--server``; raise ``UserError`` if there is no such server or model.

    ``steps`` and ``device`` are the value model's: its tokenizer reads what the server writes. ``seed`` is that of the probing
    requests and delays; the steps' seeds come from the sampler's generator.
    """
    from rmtools.serving.endpoint import ServerSettings
    from rmtools.serving.server import connect

    if law.truncates:
        raise UserError(
            f"the checkpoint was trained for a policy sampled at {law.described()}: in which order a server applies these is "
            "not known",
            "sample without --server, or train on rollouts without top-k, top-p and min-p",
        )
    settings = ServerSettings(server.model, law.temperature, server.concurrency, server.batch)
    return connect(server.url, steps, generator("server", seed), settings, device)


def summary(policy: "ServerPolicy") -> str:
    """Return what a run asked of the server, on one line; tokens are the server's count, those behind a cut included."""
    return (
        f"{policy.name}: {policy.draws} steps in {policy.requests} requests, {policy.generated_tokens} tokens, "
        f"{policy.truncated_steps} steps cut at the length limit, {policy.endpoint.repeated} requests sent again"
    )
