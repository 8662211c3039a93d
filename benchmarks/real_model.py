r"""A real model on the processor: speed of rollouts and of the sampler beside bare loops, and peak memory.

    python recipes/real/smollm2.py models/smollm2
    OMP_NUM_THREADS=1 python benchmarks/real_model.py models/smollm2 questions.jsonl --out docs/benchmarks/real_model.json

``questions.jsonl`` has a question a line (GSM8K's test questions). Value model: the same model under a head of random weights. In
turn, medians of the rounds, tokens a second of the processor's time:

rollout    rollouts (no branches) as `rmtools rollout` draws them, beside `generate` with as many sequences, up to the longest
sample     smc with N particles a prompt, beside a bare loop: the same steps and lengths, prompts read once, caches reindexed
           after each step, pads for those that wait, and one pass of the value model over the same tokens

Each memory figure is of a process of its own: the most resident memory that the system saw above what loading left, beside
what keys and values of the live distinct tokens need (`needed`, the largest over the run; of an audit, of a batch that is read),
both in GB; `bound` is 1.6 x needed + .5.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import DynamicCache

from rmtools.core import smc
from rmtools.data.collect import Branching, Collector, prompts_per_batch
from rmtools.data.rollouts import Rollout
from rmtools.data.scoring import score_rollouts
from rmtools.files import write_json
from rmtools.lm.classifier import new_token_classifier
from rmtools.lm.memory import cache_bytes, tokens_that_fit
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy, left_padded, load_policy
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.steps import StepSettings
from rmtools.lm.value import TOKENS_PER_BATCH, ValueModel
from rmtools.particles.protocol import Step, only_looks
from rmtools.particles.tilt import Tilt
from rmtools.sampling.settings import settings_for
from rmtools.sampling.source import Source

HORIZON, STEP_TOKENS, TEMPERATURE, TRAJECTORIES, N = 8, 64, 0.7, 2, 8
GB = 1e9


class NoTask:
    """Prompts without an answer: what is measured is drawing."""

    name, horizon, delimiter = "none", HORIZON, "\n"

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        return 0.0

    def reference(self, prompt: str) -> str | None:
        return None


def load(folder: str, with_value: bool) -> tuple[Policy, ValueModel | None]:
    policy = load_policy(folder, StepSettings("\n", HORIZON, STEP_TOKENS), SamplingLaw(TEMPERATURE))
    if not with_value:
        return policy, None
    model = new_token_classifier(folder, 0, dtype=policy.model.dtype)
    return policy, ValueModel(model, policy.steps, Tilt(0.01))


def chats(policy: Policy, questions: Path, count: int) -> list[str]:
    """Return the questions as the model's chat template renders them."""
    tokenizer = policy.steps.tokenizer
    rows = [json.loads(line)["question"] for line in questions.read_text().splitlines()[:count]]
    turns = [[{"role": "user", "content": q}] for q in rows]
    return [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]


def rollouts(policy: Policy, prompts: list[str], seed: int) -> list[Rollout]:
    branching = Branching(TRAJECTORIES)
    collector = Collector(policy, NoTask(), branching, np.random.default_rng(seed))  # type: ignore[arg-type]
    return collector.collect(prompts, prompts_per_batch(policy, branching, prompts))


def new_tokens(row: Rollout) -> int:
    return sum(map(len, row.ids))


@torch.inference_mode()
def generated(policy: Policy, prompts: list[str], seed: int, longest: int) -> int:
    """Return the tokens that `generate` drew, all sequences in one call."""
    rows = [policy.steps.prompt_ids(p) for p in prompts for _ in range(TRAJECTORIES)]
    ids, present = left_padded(rows, policy.steps.pad_id, policy.device)
    torch.manual_seed(seed)
    ends = list(policy.steps.end_ids)
    out = policy.model.generate(
        input_ids=ids,
        attention_mask=present.long(),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        max_new_tokens=longest,
        pad_token_id=policy.steps.pad_id,
        eos_token_id=ends,
    )
    new = out[:, ids.shape[1] :].tolist()
    return sum(next((k + 1 for k, i in enumerate(row) if i in ends), len(row)) for row in new)


def run(
    policy: Policy,
    value: ValueModel,
    prompts: list[str],
    seed: int,
    observe: Callable[[Any], object],
    n: int = N,
) -> int:
    """Return the tokens that the sampler drew over all prompts, in batches as `rmtools sample` cuts them."""
    settings = settings_for("smc", n_particles=n)
    size = Source(policy, value).prompts_per_batch(settings, prompts)
    rng, drawn = np.random.default_rng(seed), 0
    for at in range(0, len(prompts), size):
        root = LMParticles.start(policy, value, prompts[at : at + size])
        result = smc(root, n, 1, settings.resampling, settings.ess_threshold, rng, observe=observe)
        drawn += int(result.particles.decoded.sum())
    return drawn


@torch.inference_mode()
def bare(policy: Policy, value: ValueModel, prompts: list[str], lengths: list[np.ndarray], seed: int) -> int:
    """Decode steps of ``lengths``, each (rows,), and read them with the value model: no sampler, nothing shared but prompts."""
    rows = [policy.steps.prompt_ids(p) for p in prompts]
    ids, present = left_padded(rows, policy.steps.pad_id, policy.device)
    generator = torch.Generator(policy.device).manual_seed(seed)
    caches = [DynamicCache(config=m.model.config) for m in (policy, value)]
    start = {"attention_mask": present.long(), "position_ids": (present.long().cumsum(1) - 1).clamp(min=0)}
    logits = policy.model(input_ids=ids, past_key_values=caches[0], logits_to_keep=1, **start).logits[:, -1]
    value.model(input_ids=ids, past_key_values=caches[1], **start)
    for cache in caches:
        cache.batch_repeat_interleave(N)
    logits, mask = logits.repeat_interleave(N, 0), present.long().repeat_interleave(N, 0)
    prompt_mask, read, new = mask, [], []
    for step in lengths:
        for k in range(int(step.max())):
            p = policy.law.probabilities(logits.float())
            token = torch.multinomial(p, 1, generator=generator)
            read.append(token)
            new.append(torch.from_numpy(step > k).long()[:, None])
            mask = torch.cat([mask, new[-1]], 1)
            logits = policy.model(
                input_ids=token,
                past_key_values=caches[0],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
            ).logits[:, -1]
        groups = torch.arange(len(prompts)).repeat_interleave(N) * N
        index = groups + torch.randint(N, groups.shape, generator=generator)
        caches[0].reorder_cache(index)
        logits, mask = logits[index], mask[index]
        read, new = [r[index] for r in read], [m[index] for m in new]
    # Without the pads: what is read is what was decoded.
    tokens, real = torch.cat(read, 1), torch.cat(new, 1)
    longest = int(real.sum(1).max())
    order = real.argsort(dim=1, stable=True, descending=True)[:, :longest]
    tokens, real = tokens.gather(1, order), real.gather(1, order)
    whole = torch.cat([prompt_mask, real], 1)
    at = (prompt_mask.sum(1, keepdim=True) + real.cumsum(1) - 1).clamp(min=0)
    value.model(input_ids=tokens, past_key_values=caches[1], attention_mask=whole, position_ids=at)
    return int(sum(step.sum() for step in lengths))


def timed(what: Callable[[], int]) -> tuple[int, float]:
    start = time.process_time()
    return what(), time.process_time() - start


def rollout_speed(folder: str, questions: Path, count: int, rounds: int) -> dict[str, Any]:
    policy, _ = load(folder, False)
    prompts = chats(policy, questions, count)
    found: dict[str, list[float]] = {"rollout": [], "generate": []}
    longest = 0
    for k in range(rounds):
        start = time.process_time()
        lengths = [new_tokens(row) for row in rollouts(policy, prompts, k)]
        found["rollout"].append(sum(lengths) / (time.process_time() - start))
        longest = max(lengths)
        tokens, seconds = timed(lambda k=k, most=longest: generated(policy, prompts, k, most))  # type: ignore[misc]
        found["generate"].append(tokens / seconds)
    return _ratio(found, "rollout", "generate") | {"sequences": count * TRAJECTORIES}


def sample_speed(folder: str, questions: Path, count: int, rounds: int) -> dict[str, Any]:
    policy, value = load(folder, True)
    assert value is not None
    prompts = chats(policy, questions, count)
    found: dict[str, list[float]] = {"run": [], "bare": []}
    for k in range(rounds):
        lengths: list[np.ndarray] = []

        @only_looks
        def note(step: Step[LMParticles], lengths: list[np.ndarray] = lengths) -> None:
            if (drawn := (step.children.blocks[-1] >= 0).sum(1)[step.children.node].numpy()).any():
                lengths.append(drawn)

        settings = settings_for("smc", n_particles=N)
        assert Source(policy, value).prompts_per_batch(settings, prompts) >= count, "one batch at a time"
        tokens, seconds = timed(lambda k=k, note=note: run(policy, value, prompts, k, note))  # type: ignore[misc]
        found["run"].append(tokens / seconds)
        tokens, seconds = timed(lambda k=k, lengths=lengths: bare(policy, value, prompts, lengths, k))  # type: ignore[misc]
        found["bare"].append(tokens / seconds)
    return _ratio(found, "run", "bare") | {"particles": N, "prompts": count}


def _ratio(found: dict[str, list[float]], one: str, other: str) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(found[one], found[other], strict=True)]
    rates = {side: round(statistics.median(r), 1) for side, r in found.items()}
    return {
        "tokens_per_s": rates,
        f"{one} of {other}": round(statistics.median(ratios), 3),
        "rounds": [round(r, 3) for r in ratios],
    }


def resident(field: str) -> float:
    """Return VmHWM (the most) or VmRSS of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def distinct_tokens(particles: LMParticles) -> int:
    """Return how many tokens the live prefixes have, those that several begin with counted once."""
    live = (particles.slot >= 0).numpy()
    rows = np.flatnonzero(live)
    prompts = particles.setup.prompts
    steps = particles.setup.policy.steps
    total = sum(len(steps.prompt_ids(prompts[i])) for i in set(particles.prompt[rows].tolist()))
    if particles.blocks and len(rows):
        ids = torch.cat([b[live] for b in particles.blocks], 1).numpy()
        paths = sorted(
            (int(particles.prompt[r]), *row[row >= 0].tolist()) for r, row in zip(rows, ids, strict=True)
        )
        before: tuple[int, ...] = ()
        for path in paths:
            shared = next(
                (k for k, (a, b) in enumerate(zip(path, before, strict=False)) if a != b),
                min(len(path), len(before)),
            )
            total += len(path) - max(1, shared)
            before = path
    return total


def branched(folder: str, prompts: list[str]) -> list[Rollout]:
    policy, _ = load(folder, False)
    collector = Collector(policy, NoTask(), Branching(TRAJECTORIES, children=2), np.random.default_rng(1))  # type: ignore[arg-type]
    return collector.collect(prompts)


def drawn_elsewhere(folder: str, prompts: list[str]) -> list[Rollout]:
    """Return rollouts with alternatives, drawn by another process: what drawing leaves in this one's heap is not an audit's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(branched, folder, prompts).result()


def peak_memory(part: str, folder: str, questions: Path, count: int, n: int = N) -> dict[str, Any]:
    policy, value = load(folder, part != "rollout")
    prompts = chats(policy, questions, count)
    each = cache_bytes(policy.model)
    needed = 0.0
    drawn = drawn_elsewhere(folder, prompts[:4]) if part == "audit" else []
    Path("/proc/self/clear_refs").write_text("5")
    left = resident("VmRSS")
    if part == "rollout":
        size = prompts_per_batch(policy, Branching(TRAJECTORIES), prompts)
        rows = rollouts(policy, prompts, 0)
        for at in range(0, len(rows), size * TRAJECTORIES):
            lengths = np.asarray([new_tokens(r) for r in rows[at : at + size * TRAJECTORIES]])
            own = sum(len(policy.steps.prompt_ids(p)) for p in prompts[at // TRAJECTORIES :][:size])
            needed = max(
                needed, each * (own + max(k * (lengths >= k).sum() for k in range(lengths.max() + 1)))
            )
    elif part == "sample":
        assert value is not None

        @only_looks
        def note(step: Step[LMParticles]) -> None:
            nonlocal needed
            both = each + cache_bytes(value.model)
            needed = max(needed, both * distinct_tokens(step.parents), both * distinct_tokens(step.children))

        run(policy, value, prompts, 0, note, n)
    else:
        assert value is not None
        rows = drawn * (count // 4)
        score_rollouts(rows, value)
        needed = cache_bytes(value.model) * tokens_that_fit(value.model, TOKENS_PER_BATCH)
    peak = (resident("VmHWM") - left) / GB
    return {
        "peak": round(peak, 2),
        "needed": round(needed / GB, 2),
        "bound": round(1.6 * needed / GB + 0.5, 2),
    }


PARTS: dict[str, Callable[[str, Path, int, int], dict[str, Any]]] = {
    "rollout": rollout_speed,
    "sample": sample_speed,
    "memory of rollout": lambda f, q, n, _: peak_memory("rollout", f, q, n),
    "memory of sample": lambda f, q, n, _: peak_memory("sample", f, q, n),
    "memory of 64 particles": lambda f, q, n, _: peak_memory("sample", f, q, n, 64),
    "memory of audit": lambda f, q, n, _: peak_memory("audit", f, q, n),
}
PROMPTS = {"rollout": 12, "sample": 2, "memory of rollout": 24, "memory of sample": 4} | {
    "memory of 64 particles": 1,
    "memory of audit": 64,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("questions", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--prompts", type=int, help=f"default, by part: {PROMPTS}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for part in args.parts:
        count = args.prompts or PROMPTS[part]
        if args.alone:
            print(json.dumps(PARTS[part](args.model, args.questions, count, args.rounds)))
            continue
        given = [
            args.model,
            str(args.questions),
            "--parts",
            part,
            "--prompts",
            str(count),
            "--rounds",
            str(args.rounds),
        ]
        done = subprocess.run(
            [sys.executable, __file__, *given, "--alone"], stdout=subprocess.PIPE, text=True, check=True
        )
        result[part] = {"questions": count, **json.loads(done.stdout.splitlines()[-1])}
        print(part, result[part], flush=True)
        if args.out:
            write_json(args.out, result)


if __name__ == "__main__":
    main()
