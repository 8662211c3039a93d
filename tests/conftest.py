"""Tiny models shared by the tests: a briefly trained policy of the task ``crossing`` at T = 3, a value model on it.

Nothing here is imported by the tests of rmtools.core: torch is loaded only by the fixtures that need it.
"""

import gc
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest

HORIZON = 3
FLOOR = 0.05
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + ' \n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_frozen_modules = 0


def pytest_runtest_teardown():
    """Keep what the imports left out of garbage collections: each training makes several, of a third of a second each."""
    global _frozen_modules
    if len(sys.modules) > _frozen_modules + 200:
        _frozen_modules = len(sys.modules)
        gc.freeze()


@pytest.fixture(scope="session")
def task():
    from rmtools.data.tasks import Crossing

    return Crossing(HORIZON)


@pytest.fixture(scope="session")
def settings(task):
    from rmtools.lm.steps import StepSettings

    return StepSettings(task.delimiter, task.horizon, max_step_tokens=6)


@pytest.fixture(scope="session")
def tokenizer(task):
    from rmtools.lm.tokenizers import word_tokenizer

    return word_tokenizer(task.vocabulary())


@pytest.fixture(scope="session")
def step_tokenizer(tokenizer, settings):
    from rmtools.lm.steps import StepTokenizer

    return StepTokenizer(tokenizer, settings)


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory, task, tokenizer) -> Path:
    """A Llama of 30,000 weights after 150 updates: it knows the format nearly, and makes mistakes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    rng = np.random.default_rng(0)
    iterations, batch = 150, 48
    prompts, _ = task.prompts(iterations * batch, rng)
    rows = [tokenizer(p + "".join(task.demonstration(p, 0.6, rng)))["input_ids"] + [2] for p in prompts]
    ids = torch.tensor(rows)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, iterations)
    for i in range(iterations):
        at = ids[i * batch : (i + 1) * batch]
        labels = at.clone()
        labels[:, : 3 * (HORIZON + 1)] = -100
        loss = model(input_ids=at, labels=labels).loss
        loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    folder = tmp_path_factory.mktemp("models") / "policy"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def policy(policy_folder, settings):
    from rmtools.lm.policy import load_policy

    return load_policy(policy_folder, settings)


@pytest.fixture(scope="session")
def value_folder(policy_folder, tokenizer, settings) -> Path:
    """A checkpoint as the recipe writes it: LoRA with random weights and a random head, so that values differ."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    from rmtools.lm.checkpoint import CheckpointSettings, fingerprint
    from rmtools.lm.classifier import new_token_classifier, without_renaming_notice

    torch.manual_seed(1)
    lora = LoraConfig(
        task_type=TaskType.TOKEN_CLS,
        r=4,
        target_modules="all-linear",
        exclude_modules=["score"],
        modules_to_save=["score"],
    )
    with without_renaming_notice():
        model = get_peft_model(new_token_classifier(str(policy_folder), 0), lora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
            elif p.requires_grad and "score" in name and p.ndim == 2:
                p.normal_(std=0.6)
    folder = policy_folder.parent / "prm"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CheckpointSettings(
        policy=str(policy_folder),
        policy_fingerprint=fingerprint(policy_folder),
        base=str(policy_folder),
        base_revision="",
        base_fingerprint=fingerprint(policy_folder),
        task="crossing",
        horizon=HORIZON,
        steps=settings,
        floor=FLOOR,
        temperature=1.0,
        seed=0,
        base_rate=0.3,
    ).save(folder)
    return folder


@pytest.fixture(scope="session")
def value(value_folder):
    from rmtools.lm.checkpoint import load_value_model

    return load_value_model(value_folder)[0]


@pytest.fixture(scope="session")
def chat_tokenizer(task):
    """Whole words, a template that writes the beginning-of-sequence token, and marks that are special tokens."""
    from tokenizers import AddedToken

    from rmtools.lm.tokenizers import word_tokenizer

    tokenizer = word_tokenizer(task.vocabulary())
    marks = [AddedToken(f"<|{role}|>", special=True) for role in ("system", "user", "assistant")]
    tokenizer.add_tokens(marks, special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def chat_folder(chat_tokenizer, tmp_path_factory):
    """A policy with random weights whose tokenizer has a template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(chat_tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    folder = tmp_path_factory.mktemp("chat") / "policy"
    model.save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompts(task):
    return task.prompts(8, np.random.default_rng(7))[0]


@pytest.fixture(scope="session")
def server(policy_folder, tmp_path_factory):
    """A completions server of the policy in a process of its own: ``server.url(kind)``, ``server.log()``."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    log.touch()
    script = Path(__file__).parent / "server.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(policy_folder), str(log)], stdout=subprocess.PIPE, text=True
    )
    port = process.stdout.readline().strip()
    yield SimpleNamespace(
        url=lambda kind: f"http://127.0.0.1:{port}/{kind}/v1",
        log=lambda: [line.split() for line in log.read_text().splitlines()],
    )
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A stand-in for the hub (tests/hub.py): ``commit = hub.put("org/name", folder)``, ``hub.files("org/name")``."""
    from hub import stand_in

    from rmtools.lm import hub as names

    monkeypatch.setattr(names, "_downloaded", {})
    return stand_in(monkeypatch, tmp_path_factory.mktemp("hub"))


@pytest.fixture
def remote(hub, policy_folder, value_folder, tmp_path):
    """The hub names of the policy and of the value model on it, an adapter."""
    import shutil
    from dataclasses import replace

    from rmtools.lm.checkpoint import CheckpointSettings

    commit = hub.put("org/policy", policy_folder)
    folder = tmp_path / "remote-prm"
    shutil.copytree(value_folder, folder)
    (folder / "README.md").write_text("# A card\n")
    settings = CheckpointSettings.load(value_folder)
    policy = {"policy": f"org/policy@{commit}", "policy_fingerprint": commit}
    base = {"base": "org/policy", "base_revision": commit, "base_fingerprint": commit}
    replace(settings, **policy, **base).save(folder)
    hub.put("org/prm", folder)
    return SimpleNamespace(policy="org/policy", prm="org/prm", folder=folder)


@pytest.fixture
def generator():
    """Return a seeded torch generator: ``generator(seed)``."""
    import torch

    return lambda seed: torch.Generator().manual_seed(seed)


@pytest.fixture
def on_finite_model():
    """``on_finite_model(model)``: a sampler's source over an exact finite model, each state a solution of one step.

    A token a candidate and step; ``dies`` makes every value after the root zero for the prompts it names.
    """
    return finite_source


def finite_source(model, dies=(), tokens=1, joins=True):
    from types import SimpleNamespace

    from rmtools.sampling.source import Source

    kind = JoinableTexts if joins else Texts

    def start(policy, value, prompts, *, terminal, reward):
        dead = np.asarray([p in dies for p in prompts])
        return kind(model.particles(len(prompts)), dead, tokens)

    return Source(SimpleNamespace(), SimpleNamespace(), start=start)


class Texts:
    """Particles over a finite model that count tokens and have texts, as the sampler's records need."""

    def __init__(self, inner, dead, tokens, decoded=0):
        self.inner, self.dead, self.tokens, self.decoded = inner, dead, tokens, decoded

    def with_(self, inner, decoded=None):
        return type(self)(inner, self.dead, self.tokens, self.decoded if decoded is None else decoded)

    @property
    def shape(self):
        return self.inner.shape

    @property
    def ended(self):
        return self.inner.ended

    def log_value(self):
        gone = self.dead[:, None] & (self.inner.depth > 0)
        return np.where(gone, -np.inf, self.inner.log_value())

    def extend(self, pool_size, rng):
        drawn = pool_size * (~self.inner.ended).sum(axis=1) * self.tokens
        return self.with_(self.inner.extend(pool_size, rng), self.decoded + drawn)

    def select(self, index):
        return self.with_(self.inner.select(index))

    def steps(self):
        return [[[str(s)] for s in row] for row in self.inner.state]


class JoinableTexts(Texts):
    def join(self, other):
        return self.with_(self.inner.join(other.inner))
