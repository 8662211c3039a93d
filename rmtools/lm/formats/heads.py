"""Heads of published PRMs in the place of a model's own: two logits (bad, good) at every token, in fp32.

With label tokens a third column holds the log of the sum over the whole vocabulary: what mass the two labels have.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Rows of logits over a vocabulary that are held at a time.
ROWS = 512


class LabelHead(torch.nn.Module):
    """The head of a language model, read at a good and a bad label: hidden states (..., h) to (..., 3)."""

    def __init__(self, head: torch.nn.Linear, good: int, bad: int, cap: float | None, scale: float) -> None:
        super().__init__()
        self.head = head
        self.labels = [bad, good]
        self.cap = cap
        self.scale = scale

    @property
    def weight(self) -> Tensor:
        """The weights of the language model's head."""
        return self.head.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits of bad and good, and the log-sum-exp over the vocabulary."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        weight, bias = self.head.weight[self.labels].float(), self.head.bias
        own = self._shaped(
            functional.linear(flat.float(), weight, None if bias is None else bias[self.labels].float())
        )
        total = [self._shaped(self.head(part).float()).logsumexp(-1) for part in flat.split(ROWS)]
        return torch.cat([own, torch.cat(total)[:, None]], dim=-1).reshape(*hidden.shape[:-1], 3)

    def _shaped(self, logits: Tensor) -> Tensor:
        logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class TwoLogits(torch.nn.Module):
    """Layers of 1, 2 or 3 labels as two logits whose softmax is p: hidden states (..., h) to (..., 2), computed in fp32."""

    def __init__(self, *layers: torch.nn.Linear) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits of bad and good."""
        with torch.autocast(hidden.device.type, enabled=False):
            found = hidden.float()
            for i, layer in enumerate(self.layers):
                found = layer(torch.relu(found) if i else found)
        return two_logits(found)


def two_logits(logits: Tensor) -> Tensor:
    """Return the logits (..., 2) of bad and good, of 1 (good), 2 (bad, good) or 3 labels (the second is good)."""
    if logits.shape[-1] == 1:
        return torch.cat([torch.zeros_like(logits), logits], dim=-1)
    others = logits[..., [i for i in range(logits.shape[-1]) if i != 1]].logsumexp(-1)
    return torch.stack([others, logits[..., 1]], dim=-1)


def read_labels(model: Any, good: int, bad: int) -> Any:
    """Return a causal language model whose logits are those of two labels; the model is changed."""
    own = model.get_output_embeddings()
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = float(getattr(config, "logit_scale", None) or 1) / float(
        getattr(config, "logits_scaling", None) or 1
    )
    # What the model would do to its logits afterwards is done by the head.
    for name, value in (
        ("final_logit_softcapping", None),
        ("logit_scale", 1.0),
        ("logits_scaling", 1.0),
    ):
        if hasattr(config, name):
            setattr(config, name, value)
            if hasattr(model, name):
                setattr(model, name, value)
    place = next(name for name, module in model.named_modules() if module is own)
    parent, _, last = place.rpartition(".")
    setattr(model.get_submodule(parent), last, LabelHead(own, good, bad, cap, scale))
    return model


def linear(weight: Tensor, bias: Tensor | None) -> torch.nn.Linear:
    """Return a linear layer of these weights, in fp32."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    state = {"weight": weight.float(), **({} if bias is None else {"bias": bias.float()})}
    layer.load_state_dict(state, assign=True)
    return layer.requires_grad_(False)
