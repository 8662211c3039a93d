"""Options and connection of a value model behind a server, for the verbs that read values."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtools.errors import UserError
from rmtools.seeds import generator

if TYPE_CHECKING:
    from rmtools.lm.formats.load import Asked
    from rmtools.lm.protocol import Scorer

value_option = partial(typer.Option, rich_help_panel="A value model behind a server")
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


@dataclass(frozen=True)
class ServedValues:
    """The value server that the options name."""

    url: str
    model: str | None
    seed: int = 0

    def connect(self, model: str, asked: "Asked | None" = None) -> "Scorer":
        """Connect to the server that has the weights of ``model``, and say what was found."""
        from rmtools.serving.endpoint import ServerSettings
        from rmtools.serving.value_connection import connect_values

        rng, settings = generator("value server", self.seed), ServerSettings(self.model)
        scorer = connect_values(self.url, model, rng, settings, asked=asked)
        inner: Any = scorer
        while not hasattr(inner, "server"):  # within a map, or a published model's reading
            inner = inner.inner
        print(f"values from {inner.server.described}")
        return scorer


def served_values(url: str | None, model: str | None, seed: int) -> ServedValues | None:
    """Return the value server of the options, or None; raise ``UserError`` if ``--value-server`` is missing."""
    if url is not None:
        return ServedValues(url, model, seed)
    if model is not None:
        raise UserError(
            "--value-server-model needs --value-server", "pass --value-server URL, or leave it out"
        )
    return None
