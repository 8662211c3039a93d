"""The theorems and the predictions, run as checks on exact finite models (docs/equations.md, sections 3 to 7).

>>> from rmtools.verify.theorems import CHECKS
>>> [check.NAME for check in CHECKS][:2]
['unbiased', 'output law']
"""

from rmtools.verify.theorems.result import Check, ExactVerification
from rmtools.verify.theorems.runner import CHECKS, verify_exact

__all__ = ["CHECKS", "Check", "ExactVerification", "verify_exact"]
