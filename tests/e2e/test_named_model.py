"""The commands of docs/real_model.md for a model that a user names, run as they stand on a small one of its architecture."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from assets import real_tokenizer, token_id
from transformers import Qwen2Config, Qwen2ForCausalLM

from rmtools.data.load import load_rollouts

DOCS = Path(__file__).parents[2] / "docs" / "real_model.md"
MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
# The turns of Qwen 2.5's template, without tools.
TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}{%- for message in messages %}{%- if message.role != 'system' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
END, PAD = 151645, 151643
WORDS = {"3": 0.17, "4": 0.17, "\n": 0.16, "<|im_end|>": 0.27, "<|endoftext|>": 0.23}


def small_qwen(folder):
    """Write a Qwen2 of random weights that draws a few words with about these probabilities: a solution is short."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"vocab_size": 151936, "eos_token_id": END, "pad_token_id": PAD, "bos_token_id": PAD}
    model = Qwen2ForCausalLM(
        Qwen2Config(**sizes, **ends, num_key_value_heads=2, tie_word_embeddings=False, initializer_range=0.2)
    )
    tokenizer, (embeddings, head) = real_tokenizer("qwen3"), (model.model.embed_tokens, model.lm_head)
    with torch.no_grad():
        embeddings.weight[:, 0] = 10.0  # the first place of every state is the same, and carries the law
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
        head.weight[:, 0] = -10.0
        for word, p in WORDS.items():
            head.weight[token_id(tokenizer, word), 0] = torch.tensor(p).log() / 5
    model.generation_config.eos_token_id = [END, PAD]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def commands():
    """The commands of the block that begins with the model's name."""
    (block,) = re.findall(rf"```bash\n(rmtools rollout --policy {MODEL}.*?)```", DOCS.read_text(), re.DOTALL)
    return [shlex.split(line)[1:] for line in block.replace("\\\n", " ").strip().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder that holds the model under its name, and a few questions like GSM8K's."""
    folder = tmp_path_factory.mktemp("named")
    (folder / MODEL).mkdir(parents=True)
    small_qwen(folder / MODEL)
    (folder / "data/gsm8k").mkdir(parents=True)
    for name, names in (("train", "Ada Bo Cy Di Ed Flo Gus Hal Ida Jo"), ("test", "Kim Lee Mo")):
        rows = [
            {
                "question": f"{who} has {n % 2 + 1} eggs and buys 2. How many?",
                "answer": f"2 + {n % 2 + 1}\n#### {3 + n % 2}",
            }
            for n, who in enumerate(names.split())
        ]
        (folder / f"data/gsm8k/{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.mark.slow
def test_the_commands_of_the_documentation(run, place, monkeypatch):
    monkeypatch.chdir(place)
    for arguments in commands():
        found = run(*arguments)
        assert found.code == 0, (arguments, found.err)
    metadata = json.loads(Path("runs/qwen/train/metadata.json").read_text())
    settings = json.loads(Path("runs/qwen/prm/rmtools.json").read_text())
    assert settings["end_ids"] == [PAD, END]
    form = metadata["prompt_format"]
    assert form == settings["prompt_format"]
    assert (form["kind"], form["system"][:8]) == ("chat", "Reason s")
    assert [settings[k] for k in ("temperature", "top_k", "top_p")] == [0.7, 20, 0.8]
    rows = load_rollouts("runs/qwen/train")
    first = rows[0]
    assert first.prompt.startswith("<|im_start|>system\nReason step by step")
    assert first.prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert first.prompt.count("<|im_start|>") == 3
    assert first.question.startswith("Ada has 1 eggs")
    assert {r.reward for r in rows} == {0.0, 1.0}
    ended = {ids[-1][-1] for r in rows if (ids := r.ids)}
    assert {END, PAD} <= ended
    audit = json.loads(Path("runs/qwen/prm/audit/audit.json").read_text())
    assert audit["provenance"]["n_trajectories"] == 12
    samples = [json.loads(line) for line in Path("runs/qwen/samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3
    assert samples[0]["prompt"].startswith("<|im_start|>system\nReason step by step")
