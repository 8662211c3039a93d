"""Settings of the sampler (docs/equations.md section 4), and the named algorithms: points among these settings.

>>> settings_for("best-of-n", n_particles=8).resampling, settings_for("sp-gsmc").n_particles
('none', 1)
>>> SamplerSettings(16, 4).algorithm, SamplerSettings(16, 4).output
('guided', 'draw')
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from rmtools.errors import UserError
from rmtools.lm.particles import Terminal, check_terminal_name
from rmtools.particles.arguments import check_count
from rmtools.particles.islands import resolve_islands
from rmtools.particles.resampling import RESAMPLING
from rmtools.particles.until import FIRST, Until

OUTPUTS = ("draw", "argmax", "majority", "weighted-majority")
# Per prompt and step: beyond it the arrays of the candidates alone do not fit in memory.
MOST_CANDIDATES = 1_000_000
RANDOM = tuple(name for name in RESAMPLING if name != "top_k")
NO_LAW = "keeping the best follows no law; that is algorithm beam"
INDEPENDENT = "its solutions are drawn independently; resampled ones are algorithm smc"
PLAIN = "its solutions are the policy's own; a choice among candidates is algorithm guided without resampling"
# What decides the number of runs.
REPEATED = {"until": "`until`", "max_tokens": "a budget", "max_seconds": "a budget"}
NO_SWEEPS = {"sweeps": "sweeps belong to particle Gibbs; a chain around other samplers is `mh_steps`"}


@dataclass(frozen=True)
class Preset:
    """A named point among the settings, and how far it may be moved and keep its name.

    Attributes
    ----------
    what : str
        One line for a reader.
    n_particles, pool_size, resampling, ess_threshold, mh_steps, sweeps, islands, output
        As in `SamplerSettings`; ``islands`` counts only where it is fixed.
    schemes : tuple of str
        The resampling schemes it may have; ``why`` says why no others.
    why : str
    fixed : mapping
        Settings that cannot be changed, with the reason.
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
    islands: int = 1
    output: str = "draw"
    schemes: tuple[str, ...] = RANDOM
    why: str = NO_LAW
    fixed: Mapping[str, str] = field(default_factory=lambda: NO_SWEEPS)
    least: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Return the fields of `SamplerSettings` that the name decides."""
        names = ("n_particles", "pool_size", "resampling", "ess_threshold", "mh_steps", "sweeps")
        return {name: getattr(self, name) for name in names}

    def check(self, algorithm: str, given: Mapping[str, Any]) -> None:
        """Raise ``UserError`` if a given setting contradicts the name."""

        def refuse(setting: str, why: str, fix: str) -> UserError:
            return UserError(
                f"algorithm {algorithm} does not go with `{setting}` {given[setting]}: {why}", fix
            )

        # Values out of range are left to SamplerSettings.
        scheme = given.get("resampling", self.resampling)
        if scheme in RESAMPLING and scheme not in self.schemes:
            raise refuse("resampling", self.why, f"leave it out ({self.resampling})")
        for setting, reason in self.fixed.items():
            value = getattr(self, setting)
            if given.get(setting, value) != value:
                raise refuse(setting, reason, f"leave it out (it is {value})")
        for setting, (least, reason) in self.least.items():
            lowest = 0 if setting in ("mh_steps", "sweeps") else 1
            if least > given.get(setting, least) >= lowest:
                raise refuse(setting, reason, f"pass {least} or more")


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
        "smc": Preset("sequential Monte Carlo, proposals from the policy"),
        "sp-gsmc": Preset(
            "one particle that takes one of M candidates at every step",
            n_particles=1,
            pool_size=16,
            fixed={
                "n_particles": "it has a single particle; more are algorithm guided",
                "islands": "its single particle is one; the runs of algorithm mh are islands",
                **NO_SWEEPS,
            },
            least={"pool_size": (2, "one candidate is no choice, the value would guide nothing")},
        ),
        "guided": Preset(
            "N particles with M candidates each",
            n_particles=4,
            pool_size=4,
            least={"pool_size": (2, "with one candidate it is algorithm smc")},
        ),
        "mh": Preset(
            "Metropolis-Hastings: whole runs (by default of one particle, M candidates) accepted by their estimates of Z",
            n_particles=1,
            pool_size=16,
            mh_steps=8,
            least={"mh_steps": (1, "a chain without proposals is its first run")},
        ),
        "gibbs": Preset(
            "particle Gibbs: runs conditional on the last draw",
            resampling="multinomial",
            ess_threshold=1.0,
            sweeps=8,
            schemes=("multinomial",),
            why="beside the pinned reference the others must be independent draws, or the target is not left unchanged",
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
            why="it keeps the best; a random choice among them is algorithm guided",
            fixed={
                "ess_threshold": "it keeps the best at every step",
                "mh_steps": "it estimates no Z to accept by",
                **NO_SWEEPS,
            },
            least={"pool_size": (2, "with one candidate a beam has nothing to choose from")},
        ),
    }
)


@dataclass(frozen=True)
class SamplerSettings:
    """The sampler of docs/equations.md, section 4, as a user sets it.

    Parameters
    ----------
    n_particles, pool_size : int
        N and M.
    resampling : str
        Scheme, or ``none`` (importance sampling, best-of-N), or ``top_k`` (beam search).
    ess_threshold : float
        Resample when ESS <= threshold * N; 1 always, 0 never.
    terminal : {"model", "verifier"}
    algorithm : str
        Name of this point; by default the first one that fits.
    mh_steps : int
        H: independent Metropolis-Hastings proposals around the sampler, each a whole run; 0 for none.
    sweeps : int
        H of particle Gibbs; 0 for none.
    output : {"draw", "argmax", "majority", "weighted-majority"}
        Which solution is chosen; by default the algorithm's.
    max_tokens : int, optional
        Repeat the runs (proposals, sweeps) of a prompt until this many tokens are generated.
    islands : int, optional
        K independent runs of N / K particles, whose spread gives errors. Default: as in `smc`, and 1 for chains, whose runs are
        islands themselves.
    max_seconds : float, optional
        The same in seconds per prompt. If both are set, the first one spent ends the runs.
    until : Until or str, optional
        Add islands of ``n_particles`` particles to each prompt, from 8 on, until a figure has this standard error
        (``share=.05``, ``logz=.1``, ``cv=.25``) or `max_tokens` are spent; without them, what 128 islands take.

    Raises
    ------
    UserError
        If a setting is out of range, or two contradict each other.
    """

    n_particles: int
    pool_size: int = 1
    resampling: str = "systematic"
    ess_threshold: float = 0.5
    terminal: Terminal = "model"
    algorithm: str = ""
    mh_steps: int = 0
    sweeps: int = 0
    output: str = ""
    max_tokens: int | None = None
    max_seconds: float | None = None
    islands: int | None = None
    until: Until | None = None

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_until()
        object.__setattr__(self, "islands", self._islands())
        # The record holds every setting, so those left open are filled in here.
        object.__setattr__(self, "algorithm", self.algorithm or name_of(self))
        _check_choice("algorithm", self.algorithm, PRESETS)
        object.__setattr__(self, "output", self.output or PRESETS[self.algorithm].output)
        _check_choice("output", self.output, OUTPUTS)
        check_terminal_name(self.terminal)
        self._check_beam()
        self._check_gibbs()
        self._check_budget()
        self._check_name()

    @property
    def budgeted(self) -> bool:
        """Whether runs are repeated until a budget is spent."""
        return self.max_tokens is not None or self.max_seconds is not None

    @property
    def chain(self) -> bool:
        """Whether a Metropolis-Hastings chain of runs decides the draw."""
        return self.mh_steps > 0

    def _check_ranges(self) -> None:
        for name, least, fix in (
            ("n_particles", 1, 4),
            ("pool_size", 1, 4),
            ("mh_steps", 0, 0),
            ("sweeps", 0, 0),
        ):
            check_count(name, getattr(self, name), least, fix=fix)
        if self.n_particles * self.pool_size > MOST_CANDIDATES:
            raise UserError(
                f"N = {self.n_particles}, M = {self.pool_size}: more than {MOST_CANDIDATES:,} candidates a prompt and step",
                "take fewer particles (a larger delta needs fewer), or independent runs within `max_tokens`",
            )
        _check_choice("resampling", self.resampling, RESAMPLING)
        if not 0 <= self.ess_threshold <= 1:
            raise UserError(
                f"`ess_threshold` must be in [0, 1], got {self.ess_threshold}: it is a fraction of N",
                "0.5 resamples when half of the effective particles are lost",
            )

    def _islands(self) -> int:
        """Return K, or raise ``UserError`` if it does not divide N or the algorithm has no islands."""
        if self.sweeps and self.islands not in (None, 1):
            raise UserError(
                f"`islands` {self.islands} do not go with particle Gibbs: its draws are a chain, and batches of sweeps give its "
                "error",
                "leave `islands` out, and pass 20 `sweeps` or more for an error",
            )
        alone = self.sweeps or self.chain or self.until
        asked = 1 if self.islands is None and alone else self.islands
        return resolve_islands(asked, self.n_particles, self.resampling)

    def _check_until(self) -> None:
        """Read `until`, and raise ``UserError`` for what it contradicts."""
        if self.until is None:
            return
        object.__setattr__(self, "until", Until.parse(self.until))
        reasons = {
            "islands": (
                self.islands not in (None, 1),
                "it chooses their number, each of `n_particles` particles",
            ),
            "max_seconds": (self.max_seconds is not None, "prompts run together, and share the time"),
            "sweeps": (self.sweeps > 0, "the sweeps of a chain are not independent islands"),
            "resampling": (
                self.resampling == "top_k",
                "keeping the best follows no law and estimates no error",
            ),
        }
        fixes = {
            "max_seconds": "pass `max_tokens`",
            "sweeps": "choose `algorithm` smc",
            "resampling": "choose `algorithm` smc",
        }
        for name, (wrong, why) in reasons.items():
            if wrong:
                raise UserError(
                    f"`until` {self.until} contradicts `{name}` {getattr(self, name)}: {why}",
                    fixes.get(name, f"leave `{name}` out"),
                )

    def _check_name(self) -> None:
        """Raise ``UserError`` if a record would name an algorithm that was not run."""
        is_what = {"beam": self.resampling == "top_k", "gibbs": self.sweeps > 0, "mh": self.chain}
        for name, so in is_what.items():
            if so != (self.algorithm == name):
                raise UserError(
                    f"these settings are {'' if so else 'not '}those of {name}, and `algorithm` is {self.algorithm}",
                    f"settings_for({self.algorithm!r}) returns its settings; without `algorithm` the name is filled in",
                )

    def _check_beam(self) -> None:
        wrong = {"`output` draw": self.output == "draw", "`mh_steps`": self.chain, "a budget": self.budgeted}
        for name in (name for name, so in wrong.items() if so and self.resampling == "top_k"):
            raise UserError(
                f"beam search (resampling top_k) does not go with {name}: keeping the best follows no law and "
                "estimates no Z to draw, accept or pool by",
                "choose `output` argmax without them, or another algorithm",
            )

    def _check_gibbs(self) -> None:
        if not self.sweeps:
            return
        if self.chain:
            raise UserError(
                "`mh_steps` and `sweeps` are two chains: particle Gibbs estimates no Z to accept by",
                "pass one of them",
            )
        if self.resampling != "multinomial" or self.ess_threshold != 1 or self.n_particles < 2:
            raise UserError(
                "particle Gibbs (`sweeps`) needs multinomial resampling at every step and two particles or more, got "
                f"{self.resampling}, `ess_threshold` {self.ess_threshold}, N = {self.n_particles}: else a sweep does not "
                "leave the target unchanged",
                "choose `algorithm` gibbs, which sets them",
            )

    def _check_budget(self) -> None:
        least = self.n_particles * self.pool_size * (1 if self.until is None else FIRST)
        if self.max_tokens is not None and self.max_tokens < least:
            runs = "one run: its" if self.until is None else f"{FIRST} islands, the fewest: their"
            raise UserError(
                f"`max_tokens` is {self.max_tokens}, too few for {runs} first step alone draws {least} tokens or "
                f"more (N = {self.n_particles}, M = {self.pool_size})",
                f"pass {least * 100}, say, or fewer particles",
            )
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise UserError(
                f"`max_seconds` must be positive and finite, got {self.max_seconds}", "pass 10, say"
            )


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in choices:
        raise UserError(f"unknown {name} {value!r}", f"choose one of: {', '.join(choices)}")


def name_of(settings: SamplerSettings) -> str:
    """Return the algorithm that has these settings."""
    if settings.resampling == "top_k":
        return "beam"
    if settings.sweeps or settings.mh_steps:
        return "gibbs" if settings.sweeps else "mh"
    if settings.pool_size > 1:
        return "sp-gsmc" if settings.n_particles == 1 else "guided"
    never = settings.resampling == "none" or settings.ess_threshold == 0
    return "importance" if never else "smc"


def settings_for(algorithm: str | None, **given: Any) -> SamplerSettings:
    """Return the settings of a named algorithm, with the given ones in the place of its own.

    Parameters
    ----------
    algorithm : str or None
        A key of ``PRESETS``. None: the settings of smc, and the algorithm that the given ones make of it.
    **given
        Fields of `SamplerSettings`, `token_budget` being another name of `max_tokens`; None means not given.

    Raises
    ------
    UserError
        If the name is unknown or does not go with these settings.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if "token_budget" in given:
        if "max_tokens" in given:
            raise UserError("`token_budget` and `max_tokens` are two names of one budget", "pass one of them")
        given["max_tokens"] = given.pop("token_budget")
    if "until" in given and "islands" in given:
        raise UserError(
            f"`until` {given['until']} contradicts `islands` {given['islands']}: it chooses their number, each of "
            "`n_particles` particles",
            "leave `islands` out",
        )
    if algorithm is not None:
        _check_choice("algorithm", algorithm, PRESETS)
    preset = PRESETS[algorithm or "smc"]
    repeated = [what for name, what in REPEATED.items() if name in given]
    if repeated:
        for chain, name in (("mh_steps", "mh"), ("sweeps", "gibbs")):
            if given.get(chain) and not (
                chain == "sweeps" and "until" in given
            ):  # gibbs has no islands to add
                raise UserError(
                    f"`{chain}` contradicts {repeated[0]}, which says how many there are",
                    f"leave `{chain}` out, and choose `algorithm` {name}",
                )
    if algorithm is not None:
        preset.check(algorithm, given)
        given["algorithm"] = algorithm if not given.get("mh_steps") else "mh"
        given.setdefault("output", preset.output)
    return SamplerSettings(**{**preset.settings(), **given})
