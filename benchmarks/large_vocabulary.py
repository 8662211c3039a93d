r"""Where decoding spends its time at 151,936 words: Qwen2.5-0.5B's shape with random weights, on one thread.

    python benchmarks/large_vocabulary.py qwen3-tokenizer

Prints the processor's seconds inside each part (cProfile), for sampling at a temperature alone and with top-k and top-p. The
vocabulary of stops and delimiters is read once a process, before the clock.
"""

import argparse
import cProfile
import os
import pstats

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from rmtools.core import smc
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.value import ConstantValue
from rmtools.particles.tilt import Tilt

PROMPTS, N, STEPS, STEP_TOKENS = ["What is 2 + 2? ", "What is three and five? "], 16, 2, 12
PARTS = {
    "matrix products": "torch._C._nn.linear",
    "attention": "scaled_dot_product_attention",
    "law (softmax, filters)": "sampling_law.py:probabilities",
    "draw": ":search_words",
    "all of decoding": "policy.py:decode_step",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", help="folder of a tokenizer with about 152k words")
    tokenizer = AutoTokenizer.from_pretrained(parser.parse_args().tokenizer)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=151_936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    ).eval()
    for law in (SamplingLaw(0.7), SamplingLaw(0.7, 20, 0.8)):
        policy = Policy(model, StepTokenizer(tokenizer, StepSettings("\n", STEPS, STEP_TOKENS)), law)
        value = ConstantValue(0.3, policy.steps, Tilt(0.03))
        run(policy, value)
        with cProfile.Profile() as profile:
            tokens = run(policy, value)
        seconds = {
            f"{file.rsplit('/', 1)[-1]}:{name}": row[3]
            for (file, _, name), row in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
        }
        print(f"temperature {law.temperature}, top-k {law.top_k}, top-p {law.top_p}: {tokens} tokens")
        for part, key in PARTS.items():
            print(f"  {part:24} {sum(s for name, s in seconds.items() if key in name):6.2f} s")


def run(policy: Policy, value: ConstantValue) -> int:
    """Return the tokens that the sampler drew."""
    root = LMParticles.start(policy, value, PROMPTS)
    return int(smc(root, N, rng=np.random.default_rng(0), islands=1).particles.decoded.sum())


if __name__ == "__main__":
    main()
