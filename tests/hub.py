"""A stand-in for the hub's client: repositories and the local cache are folders, a commit is the hash of its files."""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelInfo, RepoUrl
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects


class StandInHub:
    """What ``snapshot_download`` and ``HfApi``'s ``create_repo``, ``model_info`` and ``upload_folder`` do, in one folder.

    Attributes
    ----------
    commits : dict of str to list of str
        Commits of each repository, the newest last.
    tags : dict of str to str
        Commits by name, of any repository.
    private, gated : set of str
        Names of private repositories, and of those that refuse to be read.
    online, writable : bool
        Set one to False: the hub cannot be reached; it refuses every upload.
    downloads : list of str
        Files that were copied into the cache.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commits: dict[str, list[str]] = {}
        self.tags: dict[str, str] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.online = self.writable = True
        self.downloads: list[str] = []

    def put(self, name: str, folder: str | Path) -> str:
        """Make the files of ``folder`` the newest commit of the repository; return the commit."""
        return self._commit(name, {p.relative_to(folder): p for p in _files(Path(folder))})

    def files(self, name: str) -> list[str]:
        """Return the files of the newest commit."""
        folder = self.root / "repos" / name / self.commits[name][-1]
        return [str(p.relative_to(folder)) for p in _files(folder)]

    # The client's calls

    def create_repo(self, repo_id: str, *, private: bool | None = None, **_: Any) -> RepoUrl:
        self._answer(write=True)
        if repo_id not in self.commits:
            self._commit(repo_id, {})
            self.private |= {repo_id} if private else set()
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: str | Path,
        allow_patterns: Any = None,
        ignore_patterns: Any = None,
        delete_patterns: Any = None,
        commit_message: str | None = None,
        **_: Any,
    ) -> CommitInfo:
        self._answer(write=True)
        if repo_id not in self.commits:
            raise _error(RepositoryNotFoundError, 404)
        old = self._there(repo_id, self.commits[repo_id][-1])
        gone = set(filter_repo_objects(old, allow_patterns=delete_patterns)) if delete_patterns else set()
        kept = {Path(name): path for name, path in old.items() if name not in gone}
        names = {str(p.relative_to(folder_path)): p for p in _files(Path(folder_path))}
        new = filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        commit = self._commit(repo_id, {**kept, **{Path(name): names[name] for name in new}})
        url = f"https://huggingface.co/{repo_id}"
        return CommitInfo(f"{url}/commit/{commit}", commit_message or "", "", commit)

    def model_info(self, repo_id: str, *, revision: str | None = None, **_: Any) -> ModelInfo:
        self._answer()
        if repo_id in self.gated:
            raise _error(GatedRepoError, 403)
        if repo_id not in self.commits:
            raise _error(RepositoryNotFoundError, 401)
        there = {**{c: c for c in self.commits[repo_id]}, **self.tags}
        commit = self.commits[repo_id][-1] if revision in (None, "main") else there.get(revision)
        if commit is None:
            raise _error(RevisionNotFoundError, 404)
        return ModelInfo(id=repo_id, sha=commit, private=repo_id in self.private)

    def snapshot_download(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        allow_patterns: Any = None,
        ignore_patterns: Any = None,
        local_files_only: bool = False,
        **_: Any,
    ) -> str:
        cache, revision = self.root / "cache" / repo_id.replace("/", "--"), revision or "main"
        if local_files_only or not self.online:
            ref = cache / "refs" / revision
            folder = cache / "snapshots" / (ref.read_text() if ref.exists() else revision)
            if not folder.exists():
                raise LocalEntryNotFoundError("no cached snapshot") from OfflineModeIsEnabled("offline")
            return str(folder)
        commit = self.model_info(repo_id, revision=revision).sha
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs" / revision).write_text(commit)
        folder, there = cache / "snapshots" / commit, self._there(repo_id, commit)
        for name in filter_repo_objects(
            there, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            if not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(there[name], folder / name)
                self.downloads.append(name)
        return str(folder)

    def _answer(self, write: bool = False) -> None:
        if not self.online:
            raise OfflineModeIsEnabled("the hub cannot be reached: offline mode is enabled")
        if write and not self.writable:
            raise _error(HfHubHTTPError, 403)

    def _there(self, name: str, commit: str) -> dict[str, Path]:
        folder = self.root / "repos" / name / commit
        return {str(p.relative_to(folder)): p for p in _files(folder)}

    def _commit(self, name: str, files: dict[Path, Path]) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        for inside in sorted(files):
            digest.update(str(inside).encode() + b"\0" + files[inside].read_bytes())
        commit = digest.hexdigest()
        for inside, path in files.items():
            target = self.root / "repos" / name / commit / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(path, target)
        self.commits.setdefault(name, []).append(commit)
        return commit


def stand_in(monkeypatch: Any, root: Path) -> StandInHub:
    """Return a new hub that takes the place of the real one for the client of this process."""
    import huggingface_hub

    hub = StandInHub(root)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    for name in ("create_repo", "model_info", "upload_folder"):
        call = getattr(hub, name)
        monkeypatch.setattr(
            huggingface_hub.HfApi,
            name,
            lambda self, *given, _call=call, **named: _call(*given, **named),
        )
        monkeypatch.setattr(huggingface_hub, name, call)
    return hub


def _files(folder: Path) -> Iterable[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    import httpx2

    request = httpx2.Request("GET", "https://huggingface.co/api")
    return kind(f"{status} Client Error", response=httpx2.Response(status, request=request))
