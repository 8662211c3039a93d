"""Tiny published PRMs of random weights in the exact layout of their files, and bare computations of their scores."""

import functools
import json
from pathlib import Path

import torch
from assets import real_tokenizer, tiny_model
from safetensors.torch import save_file

QWEN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
TOKENIZER = {
    "trl": "llama3_1",
    "qwen-prm": "qwen3",
    "math-shepherd": "mistral",
    "rlhflow": "llama3_1",
    "skywork": "qwen3",
    "openrlhf": "mistral",
    "versaprm": "llama3_1",
    "implicit": "qwen3",
    "vgs": "qwen3",
}
LABELLED = {"math-shepherd", "rlhflow", "openrlhf", "versaprm", "judge"}


@functools.cache
def tokenizer_of(key):
    """The tokenizer of a format's models, of its own; Qwen's with the tag and the template of the published one."""
    import copy

    found = copy.deepcopy(real_tokenizer(TOKENIZER[key]))
    if TOKENIZER[key] == "qwen3":
        found.chat_template = QWEN_TEMPLATE
    if key == "qwen-prm":
        found.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
    return found


@functools.cache
def backbone(key, seed=0):
    """A language model of random weights, with logits that differ between tokens."""
    model = tiny_model(TOKENIZER[key], seed, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed + 1))
    return model


def as_qwen2(model):
    """The same weights as a Qwen2 model, without what Qwen3 has more."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    given = {n: getattr(model.config, n) for n in (*names, "vocab_size", "max_position_embeddings")}
    torch.manual_seed(5)
    return Qwen2ForCausalLM(Qwen2Config(**given, tie_word_embeddings=False)).eval()


@functools.cache
def head(key):
    """The layers of a format's head."""
    torch.manual_seed(7)
    bias = key != "vgs"
    shapes = {
        "qwen-prm": [(32, 32), (32, 2)],
        "vgs": [(32, 32), (32, 3)],
        "skywork": [(32, 1)],
        "trl": [(32, 2)],
    }
    layers = [torch.nn.Linear(a, b, bias=bias) for a, b in shapes[key]]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(0, 0.15)
    return layers


NAMES = {
    "qwen-prm": ("score.0", "score.2"),
    "vgs": ("score.0", "score.2"),
    "skywork": ("v_head.summary",),
    "trl": ("score",),
}
ARCHITECTURE = {
    "qwen-prm": "Qwen2ForProcessRewardModel",
    "vgs": "Qwen2ForClassifier",
    "skywork": "Qwen2ForPrmModel",
    "trl": "LlamaForTokenClassification",
}


@functools.cache
def model_of(key):
    return as_qwen2(backbone(key)) if key in ("qwen-prm", "vgs", "skywork") else backbone(key)


def save(key, folder: Path, **changes) -> Path:
    """Write a format's model as it is published: sharded, the head under its own names; ``changes`` of the configuration."""
    model = model_of(key)
    if key not in NAMES:
        model.save_pretrained(folder, max_shard_size="12MB")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            n: t.contiguous()
            for n, t in model.state_dict().items()
            if key == "qwen-prm" or "lm_head" not in n
        }
        for name, layer in zip(NAMES[key], head(key), strict=True):
            tensors |= {f"{name}.{n}": t.detach() for n, t in layer.state_dict().items()}
        config = model.config.to_dict() | {"architectures": [ARCHITECTURE[key]]}
        if key == "qwen-prm":
            config["auto_map"] = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
        if key in ("vgs", "trl"):
            n = head(key)[-1].out_features
            config |= {
                "id2label": {str(i): f"LABEL_{i}" for i in range(n)},
                "label2id": {f"LABEL_{i}": i for i in range(n)},
            }
        (folder / "config.json").write_text(json.dumps(config | changes, default=str))
        names = sorted(tensors)
        shards = [names[: len(names) // 2], names[len(names) // 2 :]]
        index = {}
        for i, part in enumerate(shards):
            file = f"model-{i + 1:05}-of-00002.safetensors"
            save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@torch.inference_mode()
def hidden(key, ids):
    return model_of(key).model(input_ids=torch.tensor([ids])).last_hidden_state[0]


@torch.inference_mode()
def logits(key, ids, seed=0):
    model = model_of(key) if seed == 0 else backbone(key, seed)
    return model(input_ids=torch.tensor([ids])).logits[0]


def pair(law, good, bad):
    return float(torch.softmax(law[[bad, good]].double(), -1)[1])


@torch.inference_mode()
def bare(key, question, steps):
    """p after every step, each from one whole text of plain transformers, as the publishers read it."""
    tokenizer = tokenizer_of(key)

    def encode(text, **more):
        return tokenizer(text, **more)["input_ids"]

    if key == "trl":
        ids, at = [tokenizer.bos_token_id, *encode(question, add_special_tokens=False)], []
        for step in steps:
            ids += encode(step, add_special_tokens=False) + encode("\n", add_special_tokens=False)
            at.append(len(ids) - 1)
        return [float(torch.softmax(head(key)[0](hidden(key, ids)[i]).double(), -1)[1]) for i in at]
    if key == "qwen-prm":
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question},
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ]
        ids = encode(tokenizer.apply_chat_template(messages, tokenize=False))
        at = [i for i, t in enumerate(ids) if t == tokenizer.convert_tokens_to_ids("<extra_0>")]
        first, last = head(key)
        return [
            float(torch.softmax(last(torch.relu(first(hidden(key, ids)[i]))).double(), -1)[1]) for i in at
        ]
    if key in ("math-shepherd", "openrlhf"):
        text = f"{question} " + "\n".join(f"{s} ки" for s in steps)
        ids = encode(text, add_special_tokens=key == "math-shepherd")
        tag = encode("ки", add_special_tokens=False)[-1]
        good, bad = (encode(x, add_special_tokens=False)[-1] for x in "+-")
        return [pair(logits(key, ids)[i], good, bad) for i, t in enumerate(ids) if t == tag]
    if key == "rlhflow":
        found, talk = [], []
        good, bad = (encode(x, add_special_tokens=False)[-1] for x in "+-")
        for k, step in enumerate(steps):
            talk.append({"role": "user", "content": step if k else f"{question} {step}"})
            talk.append({"role": "assistant", "content": "+"})
            ids = encode(tokenizer.apply_chat_template(talk, tokenize=False), add_special_tokens=False)
            found.append(pair(logits(key, ids)[-3], good, bad))
        return found
    if key == "skywork":
        ids, at = encode((tokenizer.bos_token or "") + question + "\n"), []
        for step in steps:
            ids = ids + encode(step) + encode("\n")[-1:]
            at.append(len(ids) - 1)
        return [float(torch.sigmoid(head(key)[0](hidden(key, ids)[i]).double())[0]) for i in at]
    if key == "versaprm":
        ids = encode(question + " \n\n" + " \n\n\n\n".join(steps) + " \n\n\n\n")
        tag = encode(" \n\n\n\n", add_special_tokens=False)
        assert len(tag) == 1
        return [pair(logits(key, ids)[i], 10, 12) for i, t in enumerate(ids) if t == tag[0]]
    raise KeyError(key)
