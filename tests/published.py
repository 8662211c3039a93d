"""Tiny published PRMs of random weights in the exact layout of their files, and bare computations of their scores."""

import functools
import json
from pathlib import Path

import torch
from assets import ASSETS, real_tokenizer, tiny_model
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
    "judge": "llama3_1",
}
LABELLED = {"math-shepherd", "rlhflow", "openrlhf", "versaprm", "judge"}


def base(key):
    """The key of a format, without the tokenizer that is named behind an @ instead of its own."""
    return key.partition("@")[0]


def tokenizer_name(key):
    return key.partition("@")[2] or TOKENIZER[key]


@functools.cache
def tokenizer_of(key):
    """The tokenizer of a format's models; that of Qwen's formats with the tag and the template of the published ones."""
    import copy

    found = copy.deepcopy(real_tokenizer(tokenizer_name(key)))
    key = base(key)
    if TOKENIZER[key] == "qwen3":
        found.chat_template = QWEN_TEMPLATE
    if key == "qwen-prm":
        found.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
    return found


def backbone(key, seed=0):
    """The language model of a format's tokenizer."""
    return language_model(tokenizer_name(key), seed)


@functools.cache
def language_model(name, seed):
    """A language model of random weights, with logits that differ between tokens."""
    model = tiny_model(name, seed, tie_word_embeddings=False, vocab_size=ASSETS[name].vocabulary + 8)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(0, 0.25)
    return model


@functools.cache
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
    found = Qwen2ForCausalLM(Qwen2Config(**given, tie_word_embeddings=False)).eval()
    found.model.load_state_dict(
        {n: t for n, t in model.model.state_dict().items() if "_norm." not in n}, strict=False
    )
    return found


def head(key):
    """The layers of a format's head."""
    return head_of(base(key))


@functools.cache
def head_of(key):
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


def model_of(key):
    return as_qwen2(backbone(key)) if base(key) in ("qwen-prm", "vgs", "skywork") else backbone(key)


def save(key, folder: Path, seed=0, tensors_of=None, **changes) -> Path:
    """Write a format's model as it is published: sharded, the head under its own names; ``changes`` of the configuration.

    ``tensors_of(tensors)`` returns what is written in their place.
    """
    model = model_of(key) if seed == 0 else backbone(key, seed)
    key = base(key)
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
        tensors = tensors_of(tensors) if tensors_of else tensors
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
def ratios(key, question, steps):
    """Cumulative log ratio of two language models after every step, nats, in the format implicit."""
    tokenizer, total, found, before = tokenizer_of(key), 0.0, [], 0
    chat = [{"role": "user", "content": question}]
    front = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    for t in range(len(steps) + 1):
        text = front + "".join(f"Step {k + 1}: {s}\n\n" for k, s in enumerate(steps[:t]))
        ids = tokenizer(text)["input_ids"]
        if t:
            new = range(before, len(ids))
            laws = [torch.log_softmax(logits(key, ids, seed).double(), -1) for seed in (0, 1)]
            total += sum(float(laws[0][i - 1, ids[i]] - laws[1][i - 1, ids[i]]) for i in new)
            found.append(total)
        before = len(ids)
    return found


@torch.inference_mode()
def bare(key, question, steps):
    """p after every step, each from one whole text of plain transformers, as the publishers read it."""
    full, key = key, base(key)
    tokenizer = tokenizer_of(full)

    def encode(text, **more):
        return tokenizer(text, **more)["input_ids"]

    if key == "trl":
        ids, at = [tokenizer.bos_token_id, *encode(question, add_special_tokens=False)], []
        for step in steps:
            ids += encode(step, add_special_tokens=False) + encode("\n", add_special_tokens=False)
            at.append(len(ids) - 1)
        return [float(torch.softmax(head(key)[0](hidden(full, ids)[i]).double(), -1)[1]) for i in at]
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
            float(torch.softmax(last(torch.relu(first(hidden(full, ids)[i]))).double(), -1)[1]) for i in at
        ]
    if key in ("math-shepherd", "openrlhf"):
        text = f"{question} " + "\n".join(f"{s} ки" for s in steps)
        ids = encode(text, add_special_tokens=key == "math-shepherd")
        tag = encode("ки", add_special_tokens=False)[-1]
        good, bad = (encode(x, add_special_tokens=False)[-1] for x in "+-")
        return [pair(logits(full, ids)[i], good, bad) for i, t in enumerate(ids) if t == tag]
    if key == "rlhflow":
        found, talk = [], []
        good, bad = (encode(x, add_special_tokens=False)[-1] for x in "+-")
        for k, step in enumerate(steps):
            talk.append({"role": "user", "content": step if k else f"{question} {step}"})
            talk.append({"role": "assistant", "content": "+"})
            ids = encode(tokenizer.apply_chat_template(talk, tokenize=False), add_special_tokens=False)
            found.append(pair(logits(full, ids)[-3], good, bad))
        return found
    if key == "skywork":
        ids, at = encode((tokenizer.bos_token or "") + question + "\n"), []
        for step in steps:
            ids = ids + encode(step) + encode("\n")[-1:]
            at.append(len(ids) - 1)
        return [float(torch.sigmoid(head(key)[0](hidden(full, ids)[i]).double())[0]) for i in at]
    if key == "judge":
        found = []
        for t in range(len(steps)):
            text = f"Question: {question}\n\nSolution so far:\n\n" + "".join(
                f"{s}\n\n" for s in steps[: t + 1]
            )
            text += "Is every step of this solution correct? Answer Yes or No."
            chat = [{"role": "user", "content": text}]
            shown = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            law = logits(full, encode(shown, add_special_tokens=False))[-1]
            found.append(pair(law, *(encode(x, add_special_tokens=False)[0] for x in ("Yes", "No"))))
        return found
    if key == "versaprm":
        ids = encode(question + " \n\n" + " \n\n\n\n".join(steps) + " \n\n\n\n")
        tag = encode(" \n\n\n\n", add_special_tokens=False)
        assert len(tag) == 1
        return [pair(logits(full, ids)[i], 10, 12) for i, t in enumerate(ids) if t == tag[0]]
    raise KeyError(key)
