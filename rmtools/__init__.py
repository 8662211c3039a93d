"""rmtools: train, audit and sample with process reward models that are consistent in the sense of Bellman.

Everything a user needs is one import away, and is loaded when it is first used::

    import rmtools as rm

    rollouts = rm.load_rollouts("rollouts/train")
    trainer = rm.PRMTrainer("policy", train_dataset=rollouts, args=rm.PRMConfig(output_dir="prm"))
    trainer.train()
    trainer.save_model()
    print(rm.audit("rollouts/audit", "prm"))
    print(rm.sample("prm", rm.load_prompts("prompts.jsonl"))[0].best)

==========================================  ==========================================================================
names                                       what they are
==========================================  ==========================================================================
`load_rollouts`, `load_prompts`             data: files, folders, hub data sets, rows
`collect_rollouts`                          branching rollouts of a policy, to train on and to audit with
`PRMTrainer`, `PRMConfig`                   train a value model
`audit`                                     how inconsistent a value model is, and how many particles that costs
`sample`                                    solutions of prompts, drawn with a value model
`load_value_model`, `load_policy`           models, in memory
`connect`                                   a policy behind a server
`StepSettings`, `Tilt`                      where a step ends; from a probability of success to a value
`smc`                                       the sampler, on anything that is `Particles`; `Step` is what an observer sees
`FiniteModel`, `families`, `solve`          models whose every figure is known exactly
`Particles`, `Scorer`, `StepPolicy`         protocols: what your own classes need to take part
`Rollouts`, `AuditReport`, `Samples`,       results: each prints in a few lines, and has ``to_frame()`` and ``plot()``
`SMCResult`, `ExactResult`
`UserError`                                 wrong usage or bad input, with its fix
==========================================  ==========================================================================

These names are kept from release to release. Everything else is ``rmtools.<room>.<name>`` (docs/architecture.md) and may move.
:mod:`rmtools.core` imports the sampler, exact models and estimators without torch; :mod:`rmtools.testing` holds the
contracts of the protocols.

>>> import numpy as np
>>> import rmtools as rm
>>> model = rm.families.persistent(horizon=16, eps=0.05)
>>> run = rm.smc(model.particles(groups=500), n_particles=32, rng=np.random.default_rng(0))
>>> bool(abs(np.exp(run.log_z - rm.solve(model).log_z).mean() - 1) < 0.05)
True
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

__all__ = [
    "AuditReport",
    "ExactResult",
    "FiniteModel",
    "PRMConfig",
    "PRMTrainer",
    "Particles",
    "Rollouts",
    "SMCResult",
    "Samples",
    "Scorer",
    "Step",
    "StepPolicy",
    "StepSettings",
    "Tilt",
    "UserError",
    "audit",
    "collect_rollouts",
    "connect",
    "families",
    "load_policy",
    "load_prompts",
    "load_rollouts",
    "load_value_model",
    "sample",
    "smc",
    "solve",
]

# The same imports, read by type checkers and editors, and as a table by `__getattr__`: tests/unit/test_face.py compares them.
if TYPE_CHECKING:
    from rmtools.auditing.audit import audit
    from rmtools.auditing.report import AuditReport
    from rmtools.data.load import load_rollouts
    from rmtools.data.prompts import load_prompts
    from rmtools.data.rollouts import Rollouts
    from rmtools.errors import UserError
    from rmtools.exact import families
    from rmtools.exact.finite_model import FiniteModel
    from rmtools.exact.solution import ExactResult, solve
    from rmtools.jobs.rollouts import collect_rollouts
    from rmtools.lm.checkpoint import load_value_model
    from rmtools.lm.policy import load_policy
    from rmtools.lm.protocol import Scorer, StepPolicy
    from rmtools.lm.steps import StepSettings
    from rmtools.particles.protocol import Particles, SMCResult, Step
    from rmtools.particles.smc import smc
    from rmtools.particles.tilt import Tilt
    from rmtools.sampling.samples import Samples, sample
    from rmtools.serving.connect import connect
    from rmtools.training.config import PRMConfig
    from rmtools.training.trainer import PRMTrainer

_MODULES = {
    "auditing.audit": ("audit",),
    "auditing.report": ("AuditReport",),
    "data.load": ("load_rollouts",),
    "data.prompts": ("load_prompts",),
    "data.rollouts": ("Rollouts",),
    "errors": ("UserError",),
    "exact.families": ("families",),
    "exact.finite_model": ("FiniteModel",),
    "exact.solution": ("ExactResult", "solve"),
    "jobs.rollouts": ("collect_rollouts",),
    "lm.checkpoint": ("load_value_model",),
    "lm.policy": ("load_policy",),
    "lm.protocol": ("Scorer", "StepPolicy"),
    "lm.steps": ("StepSettings",),
    "particles.protocol": ("Particles", "SMCResult", "Step"),
    "particles.smc": ("smc",),
    "particles.tilt": ("Tilt",),
    "sampling.samples": ("Samples", "sample"),
    "serving.connect": ("connect",),
    "training.config": ("PRMConfig",),
    "training.trainer": ("PRMTrainer",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


# Hidden from type checkers, which then know the names above and no others.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        if name not in _HOME:
            raise AttributeError(_unknown(name), name=name)
        try:
            module = importlib.import_module(f"rmtools.{_HOME[name]}")
        except ModuleNotFoundError as error:
            package = (error.name or "rmtools").partition(".")[0]
            if package == "rmtools":
                raise
            raise ModuleNotFoundError(
                f"rmtools.{name} needs the package {package}, which is not installed; fix: pip install rmtools, with its "
                "dependencies",
                name=error.name,
            ) from error
        globals()[name] = found = module if name == "families" else getattr(module, name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _unknown(name: str) -> str:
    """Say that there is no such name, and which one is nearest."""
    from difflib import get_close_matches

    # Unlike difflib, people do not mind the case.
    folded = {known.lower(): known for known in __all__}
    near = [folded[n] for n in get_close_matches(name.lower(), folded, 1)]
    hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(__all__)}"
    return f"module 'rmtools' has no attribute {name!r}{hint}"
