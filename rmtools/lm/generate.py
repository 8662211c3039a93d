"""One-shot sampling with transformers' own ``generate``: the law that stepwise decoding must reproduce."""

from collections.abc import Sequence

import numpy as np
import torch

from rmtools.lm.policy import Policy, left_padded


@torch.inference_mode()
def generate_once(
    policy: Policy, prompts: Sequence[str], max_new_tokens: int, rng: np.random.Generator
) -> tuple[list[list[str]], list[bool]]:
    """Sample one solution per prompt in one call of ``generate``.

    Returns
    -------
    steps : list of list of str
        Cut where the policy ends them, without the end token.
    closed : list of bool
        Whether an end token was reached.
    """
    ids, present = left_padded(
        [policy.steps.prompt_ids(p) for p in prompts], policy.steps.pad_id, policy.device
    )
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(rng.integers(2**63)))
        out = policy.model.generate(
            input_ids=ids,
            attention_mask=present.long(),
            do_sample=True,
            temperature=policy.law.temperature,
            top_k=policy.law.top_k,
            top_p=policy.law.top_p,
            min_p=policy.law.min_p or None,
            max_new_tokens=max_new_tokens,
            pad_token_id=policy.steps.pad_id,
            eos_token_id=list(policy.steps.end_ids),
        )
    steps, closed = [], []
    for row in out[:, ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in policy.steps.end_ids), len(row))
        closed.append(end < len(row))
        steps.append([policy.steps.step_text(ids) for ids in policy.steps.cut(row[:end])])
    return steps, closed
