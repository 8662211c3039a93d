"""Options of published reward models, and what the commands say of them."""

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rmtools.errors import UserError

if TYPE_CHECKING:
    from rmtools.cli.value_server import ServedValues
    from rmtools.lm.formats.load import Asked
    from rmtools.lm.precision import Placement
    from rmtools.lm.protocol import Scorer
    from rmtools.lm.steps import StepSettings

WIDTH = 80


@dataclass(frozen=True)
class PublishedOptions:
    """The options --prm-format, --root-value, --aggregate, --floor and --trust-remote-code; ``served``: by a server."""

    prm_format: str | None = None
    root_value: str = "first-steps"
    aggregate: str = "last"
    floor: float = 0.01
    trust_remote_code: bool = False
    served: "ServedValues | None" = None

    def names(self, model: str) -> bool:
        """Return whether ``model`` is read as a published one; raise ``UserError`` if it is not and options for one are given."""
        from rmtools.lm.checkpoint import is_published

        if is_published(model, self.prm_format):
            return True
        default = PublishedOptions(self.prm_format)
        given = [n for n in ("root_value", "aggregate", "floor") if getattr(self, n) != getattr(default, n)]
        if given:
            raise UserError(
                f"`{given[0]}` is for published reward models, and {model} is a checkpoint of rmtools, which records its own",
                f"leave `{given[0]}` out",
            )
        return False

    def load(self, model: str, steps: "StepSettings | None", placement: "Placement") -> "Scorer":
        """Load the model, and say how it is read."""
        from rmtools.lm.checkpoint import load_value_model
        from rmtools.lm.formats.described import described

        found: Any = self._connected(model, steps)
        if found is None:
            found, _ = load_value_model(
                model,
                device=placement.device,
                dtype=placement.dtype,
                prm_format=self.prm_format,
                steps=steps,
                floor=self.floor,
                root_value=self._root(),
                aggregate=self.aggregate,
                trust_remote_code=self.trust_remote_code,
            )
        print(textwrap.fill(f"{found.name}: {described(found)['sentence']}", WIDTH))
        scorer: Scorer = found
        return scorer

    def _connected(self, model: str, steps: "StepSettings | None") -> Any:
        """Return the model of the value server, if there is one."""
        return None if self.served is None else self.served.connect(model, self.asked(steps))

    def asked(self, steps: "StepSettings | None" = None) -> "Asked":
        """Return what these options ask for."""
        from rmtools.lm.formats.load import Asked
        from rmtools.lm.formats.reading import Reading

        return Asked(self.prm_format, steps, Reading(self.floor, self._root(), self.aggregate))

    def _root(self) -> str | float:
        try:
            return float(self.root_value)
        except ValueError:
            return self.root_value
