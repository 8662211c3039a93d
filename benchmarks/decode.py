r"""Tokens a second of a whole run of the sampler over a language model, beside what decoding alone could do.

    OMP_NUM_THREADS=1 python benchmarks/decode.py --out docs/benchmarks/decode.json
    python benchmarks/decode.py --device cuda --rows 0.5B:64:8 0.5B:64:32 --out runs/decode-gpu.json

Policy and value model have random weights and the same architecture; a prompt of 24 tokens, steps of 12 tokens, N particles, T
steps. In one process, in turn, medians of the rounds:

run      smc over LMParticles: policy, value model, resampling (systematic, ESS < N/2), bookkeeping
every    the same with multinomial resampling at every step
bare     a batched decode loop of the same policy, its cache reindexed after every step, and one forward pass of the value model
         over the same tokens: what is left out is all that makes it a sampler
naive    `generate` a step at a time, every prefix read again by policy and value model (what stacks do that pass texts)

The ratio that is asked for: run / bare >= .8; run / naive >= 3 at T = 8 and >= 8 at T = 32. A further row has steps of uneven
length (geometric, mean 12, at most 64) in both; its bare loop feeds pads to the prefixes that wait. Memory: what the caches of
run reserve after each step beside what the tokens of the live distinct prefixes need, at most 1.3. Overhead: microseconds of
the sampler and the particles per particle and step where policy and value cost nothing, N = 512.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from rmtools.core import smc
from rmtools.files import write_json
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.protocol import Decoded
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.tokenizers import word_tokenizer
from rmtools.lm.value import ConstantValue, ValueModel
from rmtools.particles.protocol import Step
from rmtools.particles.tilt import Tilt

LENGTH, LONGEST, PROMPT, WORDS = 12, 64, 24, 252
# Hidden width, layers, heads, vocabulary. 0.5B has the shape of a Qwen2.5-0.5B with 14 heads of its own keys.
SIZES = {"0.8M": (128, 4, 4, 256), "25M": (512, 8, 8, 256), "0.5B": (896, 24, 14, 151_936)}
ROWS = [
    "0.8M:64:8",
    "0.8M:256:8",
    "0.8M:64:32",
    "25M:64:8",
    "25M:16:32",
    "0.8M:64:8:ragged",
    "25M:64:8:ragged",
]
REQUIRED = {"of bare": 0.8, "of naive, T = 8": 3, "of naive, T = 32": 8, "memory": 1.3, "microseconds": 5}


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    size: str
    n: int
    horizon: int
    ragged: bool = False

    @classmethod
    def read(cls, text: str) -> "Case":
        size, n, horizon, *rest = text.split(":")
        return cls(size, int(n), int(horizon), rest == ["ragged"])


def models(case: Case, device: torch.device) -> tuple[Policy, ValueModel, str]:
    """Return policy, value model and a prompt; the policy cannot draw an end, so that all solutions have T steps."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

    hidden, layers, heads, vocabulary = SIZES[case.size]
    # A twelfth of the words close a step where steps are uneven; otherwise none that the policy knows does.
    words = [f"w{i}" + ("\n" if case.ragged and i % LENGTH == 0 else " ") for i in range(vocabulary - 4)]
    tokenizer = word_tokenizer([*words, "\n"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=int(2.7 * hidden),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        eos_token_id=vocabulary + 7,
        pad_token_id=0,
        num_labels=2,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    policy, value = (
        kind(config).to(device, dtype).eval() for kind in (LlamaForCausalLM, LlamaForTokenClassification)
    )
    steps = StepTokenizer(tokenizer, StepSettings("\n", case.horizon, LONGEST if case.ragged else LENGTH))
    steps.eos_id = vocabulary + 7
    prompt = "".join(f"w{i} " for i in range(1, 2 * PROMPT) if i % LENGTH)[: 10**4]
    prompt = "".join(prompt.split(" ")[i] + " " for i in range(PROMPT))
    return Policy(policy, steps), ValueModel(value, steps, Tilt(0.05)), prompt


def run(policy: Policy, value: ValueModel, prompt: str, case: Case, seed: int, **settings: Any) -> int:
    root = LMParticles.start(policy, value, [prompt])
    return int(
        smc(root, case.n, rng=np.random.default_rng(seed), islands=1, **settings).particles.decoded.sum()
    )


@torch.inference_mode()
def bare(policy: Policy, value: ValueModel, prompt: str, case: Case, seed: int) -> int:
    """Decode T steps in one batch, reindex after each, score once; where steps are uneven those that are done get pads."""
    from transformers import DynamicCache

    generator = torch.Generator(policy.device).manual_seed(seed)
    lengths = step_lengths(case, seed)
    ids = torch.tensor([policy.steps.prompt_ids(prompt)] * case.n, device=policy.device)
    cache = DynamicCache(config=policy.model.config)
    keep = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    logits = policy.model(input_ids=ids, **keep).logits[:, -1]
    read, mask = [ids], torch.ones_like(ids)
    for t in range(case.horizon):
        for k in range(int(lengths[t].max())):
            token = torch.multinomial(torch.softmax(logits.float(), -1), 1, generator=generator)
            read.append(token)
            if case.ragged:
                mask = torch.cat([mask, (lengths[t] > k).long()[:, None].to(mask.device)], 1)
                at = {"attention_mask": mask, "position_ids": mask.sum(1, keepdim=True) - 1}
                logits = policy.model(input_ids=token, **keep, **at).logits[:, -1]
            else:
                logits = policy.model(input_ids=token, **keep).logits[:, -1]
        index = torch.randint(case.n, (case.n,), generator=generator, device=policy.device)
        cache.reorder_cache(index)
        logits, mask, read = logits[index], mask[index], [r[index] for r in read]
    # Without the pads: what is read is what was decoded.
    whole, longest = torch.cat(read, 1), int(mask.sum(1).max())
    order = mask.argsort(dim=1, stable=True)[:, -longest:] if case.ragged else slice(None)
    value.model(input_ids=whole.gather(1, order) if case.ragged else whole)
    return int(lengths.sum())


def step_lengths(case: Case, seed: int) -> torch.Tensor:
    """Return (T, N) tokens of each step."""
    if not case.ragged:
        return torch.full((case.horizon, case.n), LENGTH)
    drawn = np.random.default_rng(seed).geometric(1 / LENGTH, (case.horizon, case.n))
    return torch.from_numpy(np.minimum(drawn, LONGEST))


@torch.inference_mode()
def naive(policy: Policy, value: ValueModel, prompt: str, case: Case, seed: int) -> int:
    """Generate a step from the whole prefixes, score the whole prefixes, resample; T times."""
    torch.manual_seed(seed)
    ids = torch.tensor([policy.steps.prompt_ids(prompt)] * case.n, device=policy.device)
    for _ in range(case.horizon):
        ids = policy.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=LENGTH,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )
        value.model(input_ids=ids)
        ids = ids[torch.randint(case.n, (case.n,), device=ids.device)]
    return case.n * case.horizon * LENGTH


def rate(what: Callable[[], int], device: torch.device) -> float:
    """Return tokens a second: of the processor on a CPU, of the clock on a GPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    tokens = what()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return tokens / (clock() - start)


def key_value_bytes(model: Any) -> int:
    """Return the bytes of one token's keys and values."""
    c = model.config
    return 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * model.dtype.itemsize


def cache_bytes(particles: LMParticles) -> tuple[int, int]:
    """Return what the caches reserve and what the live tokens need, in bytes."""
    caches = [particles.state.cache, particles.scored]
    a_token = [key_value_bytes(m.model) for m in (particles.setup.policy, particles.setup.value)]
    needed = sum(int(c.length.sum()) * b for c, b in zip(caches, a_token, strict=True))
    return sum(c.nbytes for c in caches), needed


def memory(policy: Policy, value: ValueModel, prompt: str, case: Case) -> dict[str, float]:
    """Return reserved over needed, after each step and each resampling: the largest, and of the sums over the run."""
    last: LMParticles | None = None
    notes: list[tuple[int, int]] = []

    def note(particles: LMParticles) -> None:
        nonlocal last
        # What one step keeps, the next starts from: the same object if nothing was resampled.
        if particles is not last and len(particles.state.cache):
            notes.append(cache_bytes(particles))
        last = particles

    def observe(step: Step[LMParticles]) -> None:
        note(step.parents)
        note(step.children)

    root = LMParticles.start(policy, value, [prompt])
    note(smc(root, case.n, rng=np.random.default_rng(0), observe=observe, islands=1).particles)
    of_each = [kept / needed for kept, needed in notes]
    total = [sum(x) for x in zip(*notes, strict=True)]
    return {"largest": round(max(of_each), 3), "whole run": round(total[0] / total[1], 3)}


class FreeState:
    """The state of `FreePolicy`: how many steps each prefix has."""

    def __init__(self, n_steps: torch.Tensor, horizon: int) -> None:
        self.n_steps, self.horizon, self.ended = n_steps, horizon, n_steps >= horizon

    def select(self, rows: torch.Tensor) -> "FreeState":
        return FreeState(self.n_steps[rows], self.horizon)


class FreePolicy:
    """A policy that draws random tokens without a model: every particle its own."""

    name, temperature, device = "free", 1.0, torch.device("cpu")

    def __init__(self, steps: StepTokenizer) -> None:
        self.steps = steps
        self.tokens = torch.full((512, LENGTH), 9)

    def start(self, prompts: list[list[int]]) -> FreeState:
        return FreeState(torch.zeros(len(prompts), dtype=torch.long), self.steps.settings.max_steps)

    def decode_step(
        self, state: FreeState, node: torch.Tensor, generator: torch.Generator
    ) -> Decoded[FreeState]:
        after = FreeState(state.n_steps[node] + 1, state.horizon)
        return Decoded(self.tokens[: len(node)], after, node, torch.arange(len(node)))


class FreeValue(ConstantValue):
    """Values that vary from step to step without a model, so that the sampler resamples."""

    def advance(self, state: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return torch.linspace(-1, 0, len(tokens), dtype=torch.float64), state


def overhead(rounds: int, n: int = 512, horizon: int = 32) -> float:
    """Return microseconds per particle and step of smc and LMParticles by themselves, resampling at every step."""
    tokenizer = word_tokenizer([*(f"w{i} " for i in range(WORDS)), "\n"])
    steps = StepTokenizer(tokenizer, StepSettings("\n", horizon, LONGEST))
    policy, value = FreePolicy(steps), FreeValue(0.5, steps, Tilt(0.05))
    taken = []
    for seed in range(rounds + 1):
        start = time.process_time()
        root = LMParticles.start(policy, value, ["w1 w2 "])  # type: ignore[arg-type]
        smc(root, n, 1, "multinomial", 1.0, np.random.default_rng(seed), islands=1)
        taken.append((time.process_time() - start) / (n * horizon) * 1e6)
    return round(statistics.median(taken[1:]), 3)


def compare(case: Case, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the figures of one row."""
    policy, value, prompt = models(case, device)
    at = (policy, value, prompt, case)
    sides: dict[str, Callable[[int], int]] = {
        "run": lambda seed: run(*at, seed),
        "every": lambda seed: run(*at, seed, resampling="multinomial", ess_threshold=1.0),
        "bare": lambda seed: bare(*at, seed),
    }
    if not case.ragged:
        sides["naive"] = lambda seed: naive(*at, seed)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for k in range(rounds + 1):
        for side in sorted(sides, reverse=k % 2 == 0):
            if side == "naive" and k not in (1, 2):
                continue
            found = rate(functools.partial(sides[side], k), device)
            rates[side] += [found] if k else []
    medians = {side: statistics.median(r) for side, r in rates.items()}
    ratios = {
        f"{side} of {other}": round(medians[side] / medians[other], 3)
        for side in ("run", "every")
        for other in ("bare", "naive")
        if other in medians
    }
    return {
        "tokens_per_s": {side: round(r) for side, r in medians.items()},
        **ratios,
        "memory": memory(*at),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=ROWS, help="size:N:T, or size:N:T:ragged")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "one core"
    result: dict[str, Any] = {"device": card, "rounds": args.rounds, "required": REQUIRED}
    result["microseconds a particle and step"] = overhead(args.rounds)
    print(result, flush=True)
    for text in args.rows:
        result[text] = compare(Case.read(text), args.rounds, device)
        print(text, result[text], flush=True)
        if args.out:
            write_json(args.out, result)


if __name__ == "__main__":
    main()
