"""Public stepwise data sets as rollouts: docs/formats.md says what becomes of each field.

>>> sorted(READERS)[:4]
['best-of-n', 'er-prm', 'gsm8k', 'gsm8k-solutions']
"""

from rmtools.data.readers.read import READERS, Tally, detect, read_public
from rmtools.data.readers.row import Options, parse_map

__all__ = ["READERS", "Options", "Tally", "detect", "parse_map", "read_public"]
