"""The target network: a moving average of the weights that gives bootstrap values, saved with every checkpoint."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from rmtools.errors import UserError

TARGET_NETWORK_FILE = "target_network.safetensors"


class TargetNetwork(TrainerCallback):
    """An exponential moving average of the trainable weights, updated after every optimiser step.

    Parameters
    ----------
    model : torch.nn.Module
        The model whose trainable parameters are averaged.
    decay : float
        In [0, 1); 0 follows the current weights.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = model
        # fp32 whatever the weights are: an average moves by less than bf16 resolves.
        self.weights = {n: p.detach().float().clone() for n, p in model.named_parameters() if p.requires_grad}
        self.precision = {n: p.dtype for n, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average towards the current weights."""
        for name, parameter in self.model.named_parameters():
            if name in self.weights:
                average = self.weights[name].to(parameter.device)
                self.weights[name] = average.lerp_(parameter.float(), 1 - self.decay)

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any]) -> Tensor:
        """Return the logits of the averaged weights on the model's inputs."""
        weights = {n: w.to(self.precision[n]) for n, w in self.weights.items()}
        return torch.func.functional_call(self.model, weights, kwargs=inputs).logits

    def save(self, folder: Path) -> None:
        """Write the averaged weights into ``folder``."""
        from safetensors.torch import save_file

        save_file({n: w.contiguous() for n, w in self.weights.items()}, str(folder / TARGET_NETWORK_FILE))

    def load(self, folder: Path) -> None:
        """Read the averaged weights; raise ``UserError`` if ``folder`` has none, or those of another model."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / TARGET_NETWORK_FILE
        try:
            found = load_file(str(path))
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{folder} has no readable {path.name}: the target network would restart and the losses differ",
                "resume from a checkpoint that this trainer saved",
            ) from error
        if {n: w.shape for n, w in found.items()} != {n: w.shape for n, w in self.weights.items()}:
            raise UserError(
                f"{path} holds other weights than this model trains", "resume with the same model arguments"
            )
        self.weights = {n: found[n].to(w.device, w.dtype) for n, w in self.weights.items()}
