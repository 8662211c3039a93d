"""Public stepwise data sets as rollouts: docs/formats.md says what becomes of each field.

>>> sorted(READERS)[:4]
['er-prm', 'gsm8k', 'gsm8k-solutions', 'math-shepherd']
"""

from rmtools.data.readers.read import READERS, Tally, detect, read_public
from rmtools.data.readers.row import Options

__all__ = ["READERS", "Options", "Tally", "detect", "read_public"]
