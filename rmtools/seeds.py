"""Random generators by seed: one for each command, one for each block of its work.

The functions of the public face use those of the commands, so ``rmtools sample`` and ``rmtools.sample`` draw the same.

>>> [int(generator(verb, 0).integers(100)) for verb in ("rollout", "audit")]
[48, 0]
>>> [int(block_generator("sample", 0, index).integers(100)) for index in (0, 1)]
[14, 68]
"""

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def generator(verb: str, seed: int) -> "np.random.Generator":
    """Return the generator of a command: the same seed draws other prompts for an audit than for training."""
    import numpy as np

    return np.random.default_rng([seed, zlib.crc32(verb.encode())])


def block_generator(verb: str, seed: int, index: int) -> "np.random.Generator":
    """Return the generator of a block of the command ``verb``.

    The index is a spawn key and not one more word of entropy, which numpy pads with zeros: block 0 would repeat the
    generator of the prompts.
    """
    import numpy as np

    words = [seed, zlib.crc32(verb.encode())]
    return np.random.default_rng(np.random.SeedSequence(words, spawn_key=(index,)))
