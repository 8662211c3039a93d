"""Options and connection of a policy behind a server, for the verbs that can draw from one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rmtools.cli.options import server_option
from rmtools.errors import UserError
from rmtools.jobs.processes import this_process
from rmtools.seeds import generator

if TYPE_CHECKING:
    import torch

    from rmtools.lm.sampling_law import SamplingLaw
    from rmtools.lm.steps import StepSettings, StepTokenizer
    from rmtools.serving.server import ServerPolicy

CONCURRENCY, BATCH = 64, 1

ServerUrl = Annotated[
    list[str] | None,
    server_option(
        "--server",
        help="Draw from the policy behind this OpenAI-compatible completions server (vLLM, SGLang, llama.cpp), "
        "such as http://localhost:8000/v1. May be given again: requests go to the least busy server, and one may die. An API "
        "key is read from OPENAI_API_KEY.",
    ),
]
ServerModel = Annotated[
    str | None,
    server_option(
        "--server-model", help="Which of the server's models, if it has several, or does not list them."
    ),
]
Concurrency = Annotated[
    int,
    server_option(
        "--concurrency",
        min=1,
        help="Largest number of requests to a server at a time; fewer where it is too busy.",
    ),
]
ServerBatch = Annotated[
    int, server_option("--server-batch", min=1, help="Largest number of prefixes in a request.")
]
ServerSeed = Annotated[
    bool,
    server_option(
        "--server-seed",
        help="Send seeds, so that a run on an idle server can be repeated. No run needs them to be right, and some servers "
        "(vLLM's CPU build) stop at their first one.",
    ),
]
Tokenizer = Annotated[
    str | None,
    server_option(
        "--tokenizer",
        metavar="FOLDER",
        help="Folder or hub name of the served model's tokenizer. Default: the value model's; without one the name of the served "
        "model, if that is a folder here.",
    ),
]


@dataclass(frozen=True)
class Server:
    """The options of a server, or of several."""

    urls: tuple[str, ...]
    model: str | None
    concurrency: int
    batch: int
    seeds: bool = False
    tokenizer: str | None = None


def server_options(
    urls: Sequence[str] | None,
    model: str | None,
    concurrency: int,
    batch: int,
    seeds: bool = False,
    tokenizer: str | None = None,
) -> Server | None:
    """Return the server of the options, or None; raise ``UserError`` if ``--server`` is missing."""
    if urls:
        return Server(tuple(urls), model, concurrency, batch, seeds, tokenizer)
    given = {
        "--server-model": model is not None,
        "--concurrency": concurrency != CONCURRENCY,
        "--server-batch": batch != BATCH,
        "--server-seed": seeds,
        "--tokenizer": tokenizer is not None,
    }
    for name, changed in given.items():
        if changed:
            raise UserError(f"{name} needs --server", f"pass --server URL, or leave {name} out")
    return None


def policy_source(
    policy: str | None,
    options: tuple[Sequence[str] | None, str | None, int, int, bool, str | None],
    seed: int,
    *,
    needed: bool = False,
) -> "str | Callable[..., ServerPolicy] | None":
    """Return the policy of ``--policy``, or what connects to that of ``--server``, whose ``options`` are in their order."""
    served = server_options(*options)
    require_one_policy(policy, served, needed=needed)
    return policy if served is None else partial(connect_policy, served, seed=seed)


def require_one_policy(policy: str | None, server: Server | None, *, needed: bool = False) -> None:
    """Raise ``UserError`` if a policy in this process and one behind a server are named; or none, if it is ``needed``."""
    if needed and policy is None and server is None:
        raise UserError("no policy is named", "name it with --policy, or a server with --server")
    if policy is not None and server is not None:
        raise UserError(
            "--policy and --server both name a policy",
            "leave one of them out; the tokenizer of the served model is named with --tokenizer",
        )


def served_steps(server: Server, settings: "StepSettings") -> "StepTokenizer":
    """Return the tokenizer of the served model, with where steps end; raise ``UserError`` if none is named."""
    from rmtools.lm.policy import load_tokenizer
    from rmtools.lm.steps import StepTokenizer
    from rmtools.serving.server import listed_model

    name = server.tokenizer
    if name is None:
        name = server.model or listed_model(server.urls[0])
        if not (Path(name) / "tokenizer_config.json").exists():
            raise UserError(
                f"steps are read with the tokenizer of the served model, and {name!r} is no folder here",
                "name its folder, or the model on the hub, with --tokenizer",
            )
    return StepTokenizer(load_tokenizer(name), settings)


def connect_policy(
    server: Server,
    steps: "StepTokenizer | StepSettings",
    law: "SamplingLaw",
    seed: int,
    device: "torch.device | None" = None,
    check: "Callable[[StepTokenizer, int | None], object] | None" = None,
) -> "ServerPolicy":
    """Connect to the server of ``--server``; raise ``UserError`` if there is no such server or model.

    ``steps`` and ``device`` are the value model's: its tokenizer reads what the server writes, unless --tokenizer names another,
    or ``steps`` are settings without a tokenizer. ``seed`` is that of the probing requests and delays. Prints what was found
    out about the server. ``check`` as that of `rmtools.lm.policy.load_policy`.
    """
    from rmtools.lm.steps import StepSettings
    from rmtools.serving.endpoint import ServerSettings
    from rmtools.serving.server import connect

    if isinstance(steps, StepSettings) or server.tokenizer is not None:
        steps = served_steps(server, steps if isinstance(steps, StepSettings) else steps.settings)
    if law.truncates:
        raise UserError(
            f"the policy is to be sampled at {law.described()}: in which order a server applies these is "
            "not known",
            "draw without --server, or without top-k, top-p and min-p",
        )
    settings = ServerSettings(
        server.model, law.temperature, server.concurrency, server.batch, seeds=server.seeds
    )
    policy = connect(server.urls, steps, generator("server", seed), settings, device)
    if check is not None:
        check(policy.steps, policy.context)
    if this_process().main:
        print(policy.report())
    return policy


def summary(policy: "ServerPolicy") -> str:
    """Return what a run asked of the server, on one line; tokens include those behind a cut."""
    return (
        f"{policy.name}: {policy.draws} steps in {policy.requests} requests, {policy.generated_tokens} tokens, "
        f"{policy.truncated_steps} steps cut at the length limit, {policy.endpoint.repeated} requests sent again"
    )
