"""Models by their names on the hub: found, recorded by commit, pushed; against a stand-in (tests/hub.py)."""


def test_the_stand_in_keeps_commits_and_a_cache(hub, tmp_path):
    from huggingface_hub import HfApi, snapshot_download

    one, two = (
        hub.put("o/m", _folder(tmp_path / "1", a="1", b="x")),
        hub.put("o/m", _folder(tmp_path / "2", a="2")),
    )
    assert hub.files("o/m") == ["a"]
    assert snapshot_download("o/m").endswith(two)
    assert snapshot_download("o/m", revision=one, ignore_patterns=["b"]).endswith(one)
    assert hub.downloads == ["a", "a"]
    HfApi().upload_folder(repo_id="o/m", folder_path=tmp_path / "1", delete_patterns=["*"])
    assert hub.commits["o/m"] == [one, two, one]
    HfApi().create_repo("o/new", private=True, exist_ok=True)
    assert hub.private == {"o/new"}


def _folder(path, **files):
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    return path
