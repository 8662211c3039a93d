"""Models by name: a local folder, or a model of the hub as ``org/name`` or ``org/name@revision``.

A folder that exists wins over a model of the hub. What is downloaded lies in the cache of ``huggingface_hub``, which
transformers shares; without network a cached model is used. `ask` and `not_found` are for data sets as well.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from rmtools.errors import UserError, reason

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "README.md")
"""The files of a model that are read: weights, configuration, tokenizer, card."""
NOT_READ = ("*/*", "consolidated*")
PICKLED = "pytorch_model*.bin"
"""Weights of models that have no safetensors."""
SECONDS = 10.0
"""How long the hub may take to say whether it has a model or data set; a cached one is used after that."""
COMMIT = re.compile(r"[0-9a-f]{40}")
HOW_TO_NAME = (
    "name a folder written by save_pretrained (config.json, weights, tokenizer), or a hub model as org/name or "
    "org/name@revision"
)

# Of this process, by name and commit: a commit never changes, so the hub is not asked again.
_downloaded: dict[tuple[str, str], Path] = {}


@dataclass(frozen=True)
class FoundModel:
    """A model on this machine.

    Attributes
    ----------
    name : str
        Its folder as it was named, or ``org/name``.
    folder : Path
    commit : str
        Of a hub model; "" for a folder.
    """

    name: str
    folder: Path
    commit: str = ""

    @property
    def pinned(self) -> str:
        """The name that finds the same files again: the folder, or ``org/name@commit``."""
        return with_commit(self.name, self.commit)

    def __str__(self) -> str:
        return f"{self.name}@{self.commit[:8]}" if self.commit else self.name


def find_model(name: str | Path, revision: str = "") -> FoundModel:
    """Return the folder of a model, downloading a hub model that is not cached.

    Parameters
    ----------
    name : str or Path
        A folder, ``org/name`` or ``org/name@revision`` (branch, tag or commit; default: the newest).
    revision : str
        Of a hub model whose name has none.

    Raises
    ------
    UserError
        If there is neither a folder nor such a hub model, it may not be read, or the hub cannot be reached and the model
        is not cached.
    """
    if not isinstance(name, str | Path):
        raise UserError(f"a model is named by a path or a text, got {name!r}", HOW_TO_NAME)
    if Path(name).is_file():
        raise UserError(f"there is no model at {name}: it is a file, no folder", HOW_TO_NAME)
    if str(name) and Path(name).is_dir():
        return FoundModel(str(name), Path(name))
    repository, named = split_name(str(name))
    if not is_hub_name(repository):
        raise UserError(
            f"there is no model at {name}: no such folder, and it is no name on the hub", HOW_TO_NAME
        )
    asked = named or revision
    if (repository, asked) not in _downloaded:
        folder = _download(repository, asked)
        return FoundModel(repository, _downloaded.setdefault((repository, folder.name), folder), folder.name)
    return FoundModel(repository, _downloaded[repository, asked], asked)


def split_name(name: str) -> tuple[str, str]:
    """Return ``org/name`` and the revision, "" if none is named; a folder's name has none."""
    if Path(name).is_dir():
        return name, ""
    repository, _, revision = name.partition("@")
    return repository, revision


def with_commit(name: str, fingerprint: str) -> str:
    """Return ``org/name@commit`` if the fingerprint is a commit; the name as it is for a folder, or if it has a revision."""
    known = "@" in name or Path(name).is_dir() or not COMMIT.fullmatch(fingerprint)
    return name if known else f"{name}@{fingerprint}"


def is_hub_name(name: str) -> bool:
    """Return whether ``name`` could be a model's name on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def cached_commit(name: str) -> str:
    """Return the commit of a hub model as far as it is cached, "" if it is not."""
    from huggingface_hub import try_to_load_from_cache

    repository, revision = split_name(name)
    if COMMIT.fullmatch(revision):
        return revision
    found = is_hub_name(repository) and try_to_load_from_cache(
        repository, "config.json", revision=revision or None
    )
    return Path(found).parent.name if isinstance(found, str) else ""


def _download(repository: str, revision: str) -> Path:
    """Return the folder of a hub model in the cache; download what is missing there."""
    from huggingface_hub.errors import HTTPError

    try:
        ask(repository, revision)
        return _snapshot(repository, revision, local=False)
    except (OSError, HTTPError) as error:
        try:
            return _snapshot(repository, revision, local=True)
        except FileNotFoundError:
            raise not_found(repository, revision, error) from error


def ask(repository: str, revision: str = "", data_set: bool = False) -> None:
    """Ask the hub whether it has a model or data set, for `SECONDS` at most: raise what its client raises.

    Downloading alone would try again for half a minute without network, and wait for ever if packets are dropped.
    """
    import huggingface_hub

    client = huggingface_hub.HfApi()
    about = client.dataset_info if data_set else client.model_info
    about(repository, revision=revision or None, timeout=SECONDS)


def _snapshot(repository: str, revision: str, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    def folder(*files: str) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(files),
                ignore_patterns=list(NOT_READ),
                local_files_only=local,
            )
        )

    found = folder(*FILES)
    return found if any(found.glob("*.safetensors")) else folder(*FILES, PICKLED)


def not_found(
    repository: str, revision: str, error: Exception, kind: str = "model", how: str = HOW_TO_NAME
) -> UserError:
    """Return the error for a name that is no folder and cannot be had from the hub; ``how`` says how to name a ``kind``."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    log_in = f"for a private or gated {kind} run `hf auth login` with an account that may read it"
    here = f"there is no folder {repository} here"
    page = f"https://huggingface.co/{'' if kind == 'model' else 'datasets/'}{repository}"
    if isinstance(error, RevisionNotFoundError):
        return UserError(
            f"the hub's {kind} {repository} has no revision {revision}",
            "name a branch, a tag or a commit of it",
        )
    if isinstance(error, GatedRepoError) or status(error) == 403:
        return UserError(
            f"{here}, and the hub's {kind} {repository} is gated: this account may not read it",
            f"ask for access at {page}; {log_in}",
        )
    if isinstance(error, RepositoryNotFoundError) or status(error) == 401:
        return UserError(f"{here}, and the hub has no such {kind}, or a private one", f"{how}; {log_in}")
    return UserError(
        f"{here}, and the hub's {kind} {repository} is not cached and the hub cannot be reached: {reason(error)}",
        f"{how}; a hub {kind} needs network once (and no HF_HUB_OFFLINE)",
    )


def status(error: Exception) -> int | None:
    """Return the HTTP status of an error of the hub's client, if it has one."""
    return getattr(getattr(error, "response", None), "status_code", None)
