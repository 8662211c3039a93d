"""Options and connection of a value model behind a server, for the verbs that read values."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rmtools.errors import UserError
from rmtools.seeds import generator

if TYPE_CHECKING:
    from rmtools.lm.formats.load import Asked
    from rmtools.lm.protocol import Scorer

value_option = partial(typer.Option, rich_help_panel="A value model behind a server")
Endpoint = Literal["auto", "classify", "pooling", "completions", "score"]

ValueServer = Annotated[
    str | None,
    value_option(
        "--value-server",
        metavar="URL",
        help="Read the values from the server at this address (vLLM, SGLang), which holds the weights of --model. A key is read "
        "from OPENAI_API_KEY.",
    ),
]
ValueServerModel = Annotated[
    str | None,
    value_option("--value-server-model", help="Which of the value server's models, if it has several."),
]
ValueEndpoint = Annotated[
    Endpoint,
    value_option(
        "--value-endpoint",
        help="What it is asked: vLLM's /classify or /pooling, log-probabilities of label tokens, SGLang's /v1/score. auto: those "
        "that answer.",
    ),
]


@dataclass(frozen=True)
class ServedValues:
    """The value server that the options name."""

    url: str
    model: str | None
    endpoint: Endpoint
    seed: int = 0

    def connect(self, model: str, asked: "Asked | None" = None) -> "Scorer":
        """Connect to the server that has the weights of ``model``, and say what was found."""
        from rmtools.serving.endpoint import ServerSettings
        from rmtools.serving.value_connection import connect_values

        rng, settings = generator("value server", self.seed), ServerSettings(self.model)
        scorer = connect_values(self.url, model, rng, settings, way=self.endpoint, asked=asked)
        server = getattr(scorer, "inner", scorer).server  # type: ignore[attr-defined]
        print(f"values from {server.described}")
        return scorer


def served_values(url: str | None, model: str | None, endpoint: Endpoint, seed: int) -> ServedValues | None:
    """Return the value server of the options, or None; raise ``UserError`` if ``--value-server`` is missing."""
    if url is not None:
        return ServedValues(url, model, endpoint, seed)
    for name, given in (
        ("--value-server-model", model is not None),
        ("--value-endpoint", endpoint != "auto"),
    ):
        if given:
            raise UserError(f"{name} needs --value-server", f"pass --value-server URL, or leave {name} out")
    return None
