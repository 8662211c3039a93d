"""The law that tokens are drawn from: temperature, then top-k, top-p and min-p, renormalised.

In this order it is that of transformers' ``generate``. Everywhere in rmtools "the policy" is this law: rollouts, audit,
enumeration and sampler agree on it.

>>> law = SamplingLaw(top_k=2)
>>> law.probabilities(torch.tensor([[1.0, 0.0, 0.0, -1.0]]).log_softmax(-1)).round(decimals=2).tolist()
[[0.58, 0.21, 0.21, 0.0]]
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.particles.arguments import is_number

# Words among which a nucleus is looked for before all are sorted.
FEW = 1024
# Vocabularies that are searched as a whole.
FEW_WORDS = 4096
# Words of a block: the sums of the blocks are searched first, and then the words of one.
BLOCK = 512


@dataclass(frozen=True)
class SamplingLaw:
    """How the model's logits become probabilities.

    Parameters
    ----------
    temperature : float
    top_k : int
        Keep the k most probable tokens and those tied with the last of them; 0 keeps all.
    top_p : float
        Keep the most probable tokens, as many as are needed to reach this mass; 1 keeps all.
    min_p : float
        Keep tokens of at least this fraction of the largest probability; 0 keeps all.

    Raises
    ------
    UserError
        If one is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, usual in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
            if not is_number(given := getattr(self, name)):
                raise UserError(f"`{name}` must be a number, got {given!r}", f"{name}={usual}")
        ranges = {
            "temperature": (1e-6 <= self.temperature <= 1e6, "in 1e-6 to 1e6", "1 is the model's own law"),
            "top_k": (self.top_k >= 0 and self.top_k == int(self.top_k), "at least 0", "0 keeps all tokens"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]", "1 keeps all tokens"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]", "0 keeps all tokens"),
        }
        for name, (fine, wanted, fix) in ranges.items():
            if not fine:
                given = getattr(self, name)
                raise UserError(
                    f"`{name}` must be {wanted}, got {given}: the sampler needs a policy with a law", fix
                )

    @property
    def truncates(self) -> bool:
        """Whether some tokens have probability zero."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def described(self) -> str:
        """Return the settings that differ from the model's own law, and the temperature, in words."""
        parts = {
            "top_k": self.top_k or "",
            "top_p": self.top_p if self.top_p < 1 else "",
            "min_p": self.min_p or "",
        }
        return ", ".join(
            [f"temperature {self.temperature:g}", *(f"{n} {v:g}" for n, v in parts.items() if v)]
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of the next token, (..., V), in the precision of ``logits``; NaN where a logit is."""
        scores = logits if self.temperature == 1 else logits / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            least = scores.topk(self.top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < least, -math.inf)
        p = torch.softmax(scores, dim=-1)
        if self.top_p == 1 and self.min_p == 0:
            return p
        if self.top_p < 1:
            p = torch.where(_nucleus(p, self.top_p), p, 0.0)
        if self.min_p > 0:
            p = torch.where(p < self.min_p * p.amax(-1, keepdim=True), 0.0, p)
        return p / p.sum(-1, keepdim=True)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return `probabilities` as logs, (..., V) nats; -inf for tokens that are never drawn."""
        if not self.truncates:
            return torch.log_softmax(logits / self.temperature, dim=-1)
        return self.probabilities(logits).log()


def _nucleus(p: Tensor, mass: float) -> Tensor:
    """Return which tokens (..., V) belong to the most probable ones that reach ``mass``: less than it stands before them."""
    for size in (min(FEW, p.shape[-1]), p.shape[-1]):
        largest, at = p.topk(size, dim=-1)
        kept = largest.cumsum(-1) - largest < mass
        if not bool(kept[..., -1].any()):
            break
    return torch.zeros_like(p, dtype=torch.bool).scatter(-1, at, kept)


def search_words(p: Tensor, node: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a word (B,) for each particle from row ``node`` of ``p`` (U, V): one uniform each, sums in fp64.

    With many words, a particle's copy of its row would cost more than the model's own pass over a short step.
    """
    uniform = torch.rand(len(node), dtype=torch.float64, device=p.device, generator=generator)
    few = p.shape[-1] <= FEW_WORDS
    cumulative = (p.double() if few else _block_sums(p)).cumsum(-1)
    # The largest uniform is 1 - 2^-53, and its product with any total is rounded to less than the total.
    at = uniform * cumulative[:, -1][node]
    found = torch.searchsorted(cumulative[node], at[:, None], right=True)
    if few:
        return found[:, 0]
    before = torch.where(found > 0, cumulative[node].gather(1, (found - 1).clamp(min=0)), 0.0)
    words = found * BLOCK + torch.arange(BLOCK, device=p.device)
    own = torch.where(words < p.shape[-1], p[node[:, None], words.clamp(max=p.shape[-1] - 1)], 0).double()
    inside = torch.searchsorted(own.cumsum(-1), at[:, None] - before, right=True)
    # Sums in another order differ in their last bit: never beyond the last word that has a probability.
    last = BLOCK - 1 - (own > 0).flip(-1).long().argmax(-1, keepdim=True)
    return (found * BLOCK + torch.minimum(inside, last))[:, 0]


def _block_sums(p: Tensor) -> Tensor:
    """Return the sums of the blocks of each row, (U, V / BLOCK) in fp64."""
    whole = p.shape[-1] // BLOCK * BLOCK
    sums = p[:, :whole].reshape(len(p), -1, BLOCK).sum(-1, dtype=torch.float64)
    return torch.cat([sums, p[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], dim=1)
