"""Theorems and predictions, run as checks on exact finite models (docs/equations.md, sections 3 to 7).

Each check is a module with a ``NAME``, what it runs ``ON``, what it ``MUST_SHOW``, its ``cases(quick)`` and its
``figures(found)`` in one line.

>>> from rmtools.verify.theorems import CHECKS
>>> [check.NAME for check in CHECKS][:2]
['unbiased', 'output law']
"""

from rmtools.verify.theorems.runner import CHECKS, Check, ExactVerification, verify_exact

__all__ = ["CHECKS", "Check", "ExactVerification", "verify_exact"]
