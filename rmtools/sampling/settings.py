"""Settings of the one sampler of docs/equations.md section 4, and the named algorithms that are points among them.

>>> settings_for("best-of-n", n_particles=8).resampling, settings_for("sp-gsmc").n_particles
('none', 1)
>>> SamplerSettings(16, 4).algorithm, SamplerSettings(16, 4).output
('guided', 'draw')
"""

import math
from dataclasses import dataclass
from typing import Any

from rmtools.errors import UserError
from rmtools.lm.particles import Terminal, check_terminal_name
from rmtools.particles.resampling import RESAMPLING
from rmtools.sampling.presets import OPTION, PRESETS

OUTPUTS = ("draw", "argmax", "majority", "weighted-majority")


# Of a prompt, at one step: beyond it their tables alone do not fit.
MOST_CANDIDATES = 1_000_000


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
        What this point is called; by default the first of the names that fits.
    mh_steps : int
        H: independent Metropolis-Hastings proposals around the sampler, each a whole run; 0 for none.
    sweeps : int
        H of particle Gibbs; 0 for none.
    output : {"draw", "argmax", "majority", "weighted-majority"}
        Which solution is put out; by default the algorithm's.
    max_tokens : int, optional
        Runs (proposals, sweeps) of a prompt are repeated until so many generated tokens are spent.
    max_seconds : float, optional
        The same in seconds of a prompt. Both may be set: what is spent first ends it.

    Raises
    ------
    UserError
        If one is out of range, or two contradict each other.
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

    def __post_init__(self) -> None:
        self._check_ranges()
        # A setting that is left open is part of the record like any other, so it is filled in here.
        if not self.algorithm:
            object.__setattr__(self, "algorithm", name_of(self))
        if not self.output:
            object.__setattr__(self, "output", PRESETS[self.algorithm].output)
        check_terminal_name(self.terminal)
        if self.output not in OUTPUTS:
            raise UserError(f"unknown output {self.output!r}", f"the outputs are: {', '.join(OUTPUTS)}")
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
        for name in ("n_particles", "pool_size"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name} must be at least 1, got {getattr(self, name)}", f"pass {OPTION[name]} 4, say"
                )
        if self.n_particles * self.pool_size > MOST_CANDIDATES:
            raise UserError(
                f"N = {self.n_particles}, M = {self.pool_size}: more than {MOST_CANDIDATES:,} candidates a prompt and step",
                "take fewer particles, a larger delta of --accuracy, or independent runs with --max-tokens",
            )
        for name in ("mh_steps", "sweeps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}", "0 is without")
        if self.resampling not in RESAMPLING:
            raise UserError(
                f"unknown resampling {self.resampling!r}", f"choose one of: {', '.join(RESAMPLING)}"
            )
        if not 0 <= self.ess_threshold <= 1:
            raise UserError(
                f"ess_threshold must be in [0, 1], got {self.ess_threshold}: it is a fraction of n_particles",
                "0.5 resamples when half of the effective particles are lost",
            )
        if self.algorithm and self.algorithm not in PRESETS:
            raise UserError(
                f"unknown algorithm {self.algorithm!r}", f"the algorithms are: {', '.join(PRESETS)}"
            )

    def _check_name(self) -> None:
        """Raise ``UserError`` where a record would name an algorithm that was not run."""
        is_what = {"beam": self.resampling == "top_k", "gibbs": self.sweeps > 0, "mh": self.chain}
        for name, so in is_what.items():
            if so != (self.algorithm == name):
                raise UserError(
                    f"these settings are {'' if so else 'not '}those of {name}, and the algorithm is called "
                    f"{self.algorithm}",
                    f"settings_for({self.algorithm!r}) returns its settings; leave `algorithm` out to have it named",
                )

    def _check_beam(self) -> None:
        if self.resampling != "top_k":
            return
        for name, wrong in (
            ("output draw", self.output == "draw"),
            ("mh_steps", self.chain),
            ("a budget", self.budgeted),
        ):
            if wrong:
                raise UserError(
                    f"beam search (resampling top_k) does not go with {name}: keeping the best follows no law and "
                    "estimates no Z to draw, accept or pool by",
                    "use --output argmax without them, or another algorithm",
                )

    def _check_gibbs(self) -> None:
        if not self.sweeps:
            return
        if self.chain:
            raise UserError(
                "mh_steps and sweeps are two chains: particle Gibbs estimates no Z to accept by",
                "pass one of them",
            )
        if self.resampling != "multinomial" or self.ess_threshold != 1 or self.n_particles < 2:
            raise UserError(
                "particle Gibbs (sweeps) needs multinomial resampling at every step and two particles or more, got "
                f"{self.resampling}, ess_threshold {self.ess_threshold}, N = {self.n_particles}: else a sweep does not "
                "leave the target unchanged",
                "pass --algorithm gibbs, which sets them",
            )

    def _check_budget(self) -> None:
        least = self.n_particles * self.pool_size
        if self.max_tokens is not None and self.max_tokens < least:
            raise UserError(
                f"max_tokens is {self.max_tokens}, too few for one run: its first step alone draws {least} tokens or "
                f"more (N = {self.n_particles}, M = {self.pool_size})",
                f"pass --max-tokens {least * 100}, say, or fewer particles",
            )
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise UserError(
                f"max_seconds must be positive and finite, got {self.max_seconds}", "--max-seconds 10, say"
            )


def name_of(settings: SamplerSettings) -> str:
    """Return the algorithm whose settings these are."""
    if settings.resampling == "top_k":
        return "beam"
    if settings.sweeps or settings.mh_steps:
        return "gibbs" if settings.sweeps else "mh"
    if settings.pool_size > 1:
        return "sp-gsmc" if settings.n_particles == 1 else "guided"
    never = settings.resampling == "none" or settings.ess_threshold == 0
    return "importance" if never else "smc"


def settings_for(algorithm: str | None, **given: Any) -> SamplerSettings:
    """Return the settings of a named algorithm, those that are given put in the place of its own.

    Parameters
    ----------
    algorithm : str or None
        A key of ``PRESETS``. None: smc's settings, and whatever is given makes of them.
    **given
        Fields of `SamplerSettings`; None is not given.

    Raises
    ------
    UserError
        If there is no such algorithm, or it cannot be had with these settings.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if algorithm is not None and algorithm not in PRESETS:
        raise UserError(f"unknown algorithm {algorithm!r}", f"the algorithms are: {', '.join(PRESETS)}")
    preset = PRESETS[algorithm or "smc"]
    budget = "max_tokens" in given or "max_seconds" in given
    for chain in ("mh_steps", "sweeps"):
        if budget and given.get(chain):
            raise UserError(
                f"{OPTION[chain]} contradicts a budget: the budget says how many there are",
                f"leave {OPTION[chain]} out, and name the chain: --algorithm {'mh' if chain == 'mh_steps' else 'gibbs'}",
            )
    if algorithm is not None:
        preset.check(algorithm, given)
        given["algorithm"] = algorithm if not given.get("mh_steps") else "mh"
        given.setdefault("output", preset.output)
    own = {name: getattr(preset, name) for name in OPTION}
    return SamplerSettings(**{**own, **given})
