"""rmtools: train, audit and sample with process reward models that are consistent in the sense of Bellman.

The rooms, lowest first: :mod:`rmtools.core` (numpy only), :mod:`rmtools.lm`, :mod:`rmtools.data`,
:mod:`rmtools.training`, :mod:`rmtools.auditing`, :mod:`rmtools.verify`, :mod:`rmtools.cli`.

>>> import rmtools
>>> rmtools.__version__
'0.2.0'
"""

__version__ = "0.2.0"
