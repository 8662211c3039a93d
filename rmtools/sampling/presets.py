"""The named algorithms of docs/equations.md section 4: points among the settings of one sampler, and what they may not become."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from rmtools.errors import UserError
from rmtools.particles.resampling import RESAMPLING

RANDOM = ("multinomial", "systematic", "stratified", "residual", "none")
NOTHING: Mapping[str, Any] = MappingProxyType({})
NO_LAW = "keeping the best follows no law; that is --algorithm beam"
INDEPENDENT = "its solutions are drawn independently; resampled ones are --algorithm smc"
PLAIN = "its solutions are the policy's own; with a choice among candidates they are --algorithm guided --resampling none"


@dataclass(frozen=True)
class Preset:
    """A named point among the settings, and how far it may be moved and keep its name.

    Attributes
    ----------
    what : str
        One line for a reader.
    n_particles, pool_size, resampling, ess_threshold, mh_steps, sweeps, output
        As in `SamplerSettings`.
    schemes : tuple of str
        The resampling schemes it may have, and why no others.
    why : str
    fixed : mapping
        Settings it cannot have otherwise, with the reason.
    least : mapping
        Smallest value of a count, with the reason.
    """

    what: str
    n_particles: int = 16
    pool_size: int = 1
    resampling: str = "systematic"
    ess_threshold: float = 0.5
    mh_steps: int = 0
    sweeps: int = 0
    output: str = "draw"
    schemes: tuple[str, ...] = RANDOM
    why: str = NO_LAW
    fixed: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    least: Mapping[str, tuple[int, str]] = field(default_factory=lambda: NOTHING)

    def check(self, name: str, given: Mapping[str, Any]) -> None:
        """Raise ``UserError`` where a given setting contradicts the name."""
        scheme = given.get("resampling", self.resampling)
        if scheme in RESAMPLING and scheme not in self.schemes:
            raise contradiction(name, "resampling", scheme, self.why, f"leave it out ({self.resampling})")
        for setting, reason in self.fixed.items():
            value = getattr(self, setting)
            if given.get(setting, value) != value:
                raise contradiction(name, setting, given[setting], reason, f"leave it out (it is {value})")
        for setting, (least, reason) in self.least.items():
            # What is out of any range is SamplerSettings' to refuse.
            lowest = 0 if setting in ("mh_steps", "sweeps") else 1
            if least > given.get(setting, least) >= lowest:
                raise contradiction(name, setting, given[setting], reason, f"pass {least} or more")


def contradiction(algorithm: str, setting: str, value: Any, why: str, fix: str) -> UserError:
    """Return the error for a setting that the named algorithm cannot have."""
    return UserError(f"algorithm {algorithm} does not go with {OPTION[setting]} {value}: {why}", fix)


OPTION = {
    "n_particles": "-n",
    "pool_size": "--pool-size",
    "resampling": "--resampling",
    "ess_threshold": "--ess-threshold",
    "mh_steps": "--mh-steps",
    "sweeps": "--sweeps",
}
NO_SWEEPS = {
    "sweeps": "sweeps are of particle Gibbs; a chain around other samplers is --mh-steps",
}


def _independent(what: str, output: str) -> Preset:
    return Preset(
        what,
        resampling="none",
        ess_threshold=0.0,
        output=output,
        schemes=("none",),
        why=INDEPENDENT,
        fixed={"pool_size": PLAIN, "ess_threshold": INDEPENDENT, **NO_SWEEPS},
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "smc": Preset("sequential Monte Carlo, proposals from the policy", fixed=NO_SWEEPS),
        "sp-gsmc": Preset(
            "one particle that takes one of M candidates at every step",
            n_particles=1,
            pool_size=16,
            fixed={"n_particles": "it is the sampler of a single particle; more are --algorithm guided"}
            | NO_SWEEPS,
            least={"pool_size": (2, "one candidate is no choice, the value would guide nothing")},
        ),
        "guided": Preset(
            "N particles with M candidates each",
            n_particles=4,
            pool_size=4,
            fixed=NO_SWEEPS,
            least={"pool_size": (2, "with one candidate it is --algorithm smc")},
        ),
        "mh": Preset(
            "Metropolis-Hastings: whole runs (by default of one particle, M candidates) accepted by their estimates of Z",
            n_particles=1,
            pool_size=16,
            mh_steps=8,
            fixed=NO_SWEEPS,
            least={"mh_steps": (1, "a chain without proposals is its first run")},
        ),
        "gibbs": Preset(
            "particle Gibbs: runs conditional on the last draw",
            resampling="multinomial",
            ess_threshold=1.0,
            sweeps=8,
            schemes=("multinomial",),
            why="with the reference pinned to a slot the others must be independent draws, or the target is not left unchanged",
            fixed={
                "ess_threshold": "it resamples at every step",
                "mh_steps": "a conditional run estimates no Z to accept by",
            },
            least={
                "n_particles": (2, "one of the particles is the reference"),
                "sweeps": (1, "a chain without sweeps draws nothing"),
            },
        ),
        "importance": _independent("solutions of the policy, weighted by their final values", output="draw"),
        "best-of-n": _independent("the one with the largest final value of N solutions", output="argmax"),
        "majority": _independent("the most frequent answer of N solutions", output="majority"),
        "weighted-majority": _independent(
            "the answer with the largest summed weight of N solutions", output="weighted-majority"
        ),
        "beam": Preset(
            "the N best of N * M candidates are kept at every step",
            n_particles=4,
            pool_size=4,
            resampling="top_k",
            ess_threshold=1.0,
            output="argmax",
            schemes=("top_k",),
            why="it keeps the best; a random choice among them is --algorithm guided",
            fixed={
                "ess_threshold": "it keeps the best at every step",
                "mh_steps": "it estimates no Z to accept by",
                **NO_SWEEPS,
            },
            least={"pool_size": (2, "with one candidate a beam has nothing to choose from")},
        ),
    }
)
