r"""The contracts of rmtools' protocols as assertions: run them over an implementation of your own.

Each function raises ``AssertionError`` with the law that was broken and where; it returns nothing if all laws hold. Our own
tests run them over every implementation in the package (docs/contracts.md has an example).

>>> import numpy as np
>>> from rmtools.core import product
>>> check_particles(product(horizon=3, ratio=2.0).particles(groups=2), np.random.default_rng(0))
"""

from rmtools.testing.particles import check_law, check_particles
from rmtools.testing.policy import check_policy
from rmtools.testing.reader import check_reader
from rmtools.testing.scorer import check_scorer
from rmtools.testing.task import check_task

__all__ = ["check_law", "check_particles", "check_policy", "check_reader", "check_scorer", "check_task"]
