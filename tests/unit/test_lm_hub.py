"""Models by their names on the hub: found, recorded by commit, pushed; against a stand-in (tests/hub.py)."""

import json

import numpy as np
import pytest
import torch

from rmtools.errors import UserError
from rmtools.lm import hub as names
from rmtools.lm.checkpoint import (
    SETTINGS_FILE,
    CheckpointSettings,
    fingerprint,
    has_fingerprint,
    load_value_model,
)
from rmtools.lm.classifier import new_token_classifier, source_name
from rmtools.lm.export import export_merged, push
from rmtools.lm.hub import find_model, is_hub_name, split_name
from rmtools.lm.policy import load_policy, load_tokenizer


def test_the_stand_in_keeps_commits_and_a_cache(hub, tmp_path):
    from huggingface_hub import HfApi, snapshot_download

    one = hub.put("o/m", _folder(tmp_path / "1", a="1", b="x"))
    two = hub.put("o/m", _folder(tmp_path / "2", a="2"))
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


# Finding


@pytest.mark.parametrize("name", ["./prm", "/tmp/prm", "../prm", "a/b/c", "a b/c", "", "a/b.git", "~/prm"])
def test_paths_are_no_names_of_the_hub(hub, name):
    assert not is_hub_name(name)
    with pytest.raises(UserError, match="no such folder"):
        find_model(f"{name}")


def test_a_folder_wins(hub, tmp_path, monkeypatch, policy_folder):
    hub.put("org/policy", policy_folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "policy").mkdir(parents=True)
    (tmp_path / "org" / "policy@v1").mkdir()
    for name in ("org/policy", "org/policy@v1"):
        found = find_model(name)
        assert (found.name, str(found.folder), found.commit, found.pinned) == (name, name, "", name)
        assert split_name(name) == (name, "")
    assert hub.downloads == []


def test_a_revision_decides_the_files_and_only_needed_ones_are_copied(hub, tmp_path):
    files = {
        "config.json": "1",
        "model.safetensors": "",
        "tokenizer.model": "",
        "merges.txt": "",
        "README.md": "",
    }
    one = hub.put("org/m", _folder(tmp_path / "1", **files))
    unneeded = {"flax_model.msgpack": "", "consolidated.safetensors": "", "pytorch_model.bin": "", "x.py": ""}
    folder = _folder(tmp_path / "2", **{**files, **unneeded, "config.json": "2"})
    _folder(folder / "original", **{"params.json": ""})
    two = hub.put("org/m", folder)
    hub.tags["v1"] = one
    assert find_model("org/m").commit == find_model(f"org/m@{two}").commit == two
    assert set(hub.downloads) == set(files)
    tagged = find_model("org/m@v1")
    assert (tagged.pinned, tagged.folder.joinpath("config.json").read_text()) == (f"org/m@{one}", "1")
    assert str(tagged) == f"org/m@{one[:8]}"
    assert find_model("org/m", "v1") == find_model("org/m@v1", two) == tagged


def test_pickled_weights_are_copied_where_there_are_no_others(hub, tmp_path):
    hub.put("org/m", _folder(tmp_path / "1", **{"config.json": "", "pytorch_model.bin": ""}))
    assert {p.name for p in find_model("org/m").folder.iterdir()} == {"config.json", "pytorch_model.bin"}


def test_the_newest_commit_is_looked_up_again_and_a_pinned_one_is_not(hub, tmp_path):
    one = hub.put("org/m", _folder(tmp_path / "1", **{"model.safetensors": "1"}))
    assert find_model("org/m").commit == one
    two = hub.put("org/m", _folder(tmp_path / "2", **{"model.safetensors": "2"}))
    assert find_model("org/m").commit == two
    hub.online = False
    assert find_model(f"org/m@{one}").commit == one


def test_without_network_a_cached_model_is_used(hub, tmp_path, monkeypatch):
    commit = hub.put("org/m", _folder(tmp_path / "1", **{"model.safetensors": "1"}))
    find_model("org/m")
    hub.online = False
    monkeypatch.setattr(names, "_downloaded", {})
    assert find_model("org/m").commit == commit
    with pytest.raises(UserError, match=r"org/other.*offline") as error:
        find_model("org/other")
    assert "HF_HUB_OFFLINE" in error.value.fix


def test_what_the_hub_refuses(hub, tmp_path):
    hub.put("org/m", _folder(tmp_path / "1", a=""))
    with pytest.raises(UserError, match="org/none") as error:
        find_model("org/none")
    assert "hf auth login" in error.value.fix
    with pytest.raises(UserError, match="no revision v9"):
        find_model("org/m@v9")
    hub.gated.add("org/m")
    with pytest.raises(UserError, match="gated") as error:
        find_model("org/m")
    assert "hf auth login" in error.value.fix


# Loading


def test_a_policy_is_recorded_with_its_commit(hub, policy_folder, settings, policy):
    commit = hub.put("org/policy", policy_folder)
    found = load_policy("org/policy", settings)
    assert found.name == f"org/policy@{commit}"
    assert fingerprint(found.name) == commit
    for name, tensor in policy.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
    assert load_tokenizer("org/policy").get_vocab() == policy.steps.tokenizer.get_vocab()


def test_a_classifier_says_where_it_comes_from(hub, policy_folder):
    commit = hub.put("org/policy", policy_folder)
    model = new_token_classifier("org/policy", 0)
    assert (model.name_or_path, source_name(model)) == ("org/policy", f"org/policy@{commit}")
    assert source_name(new_token_classifier(str(policy_folder), 0)) == str(policy_folder)


def test_a_checkpoint_of_the_hub_gives_the_values_of_its_folder(
    hub, remote, value, step_tokenizer, prompts, tmp_path
):
    name, checkpoint = remote.policy, remote.prm
    tree = [step_tokenizer.encode(p, []) for p in prompts]
    expected = [v.log_value for v in value.score(tree)]
    hub.put(name, _folder(tmp_path / "newer", **{"config.json": "{}"}))  # changes nothing
    found, settings = load_value_model(checkpoint)
    assert found.name == f"{checkpoint}@{hub.commits[checkpoint][0][:8]}"
    assert settings.policy == f"{name}@{hub.commits[name][0]}"
    for mine, its in zip(expected, found.score(tree), strict=True):
        np.testing.assert_array_equal(mine, its.log_value)
    policy = load_policy(settings.policy, settings.steps)
    shared, _ = load_value_model(checkpoint, beside=policy)
    for mine, its in zip(expected, shared.score(tree), strict=True):
        np.testing.assert_allclose(mine, its.log_value, atol=1e-5)
    untrained, _ = load_value_model(checkpoint, untrained=True)
    assert "untrained" in untrained.name


def test_a_copy_on_the_hub_has_the_fingerprint_of_its_folder(hub, policy_folder, tmp_path):
    local, commit = fingerprint(policy_folder), hub.put("org/policy", policy_folder)
    other = hub.put("org/other", _folder(tmp_path / "other", **{"model.safetensors": "other"}))
    for name, recorded, same in (
        (str(policy_folder), local, True),
        (f"org/policy@{commit}", local, True),
        (f"org/policy@{commit}", commit, True),
        (f"org/other@{other}", local, False),
        (f"org/other@{other}", commit, False),
        (str(policy_folder), commit, False),
        (f"org/policy@{commit}", "", False),
    ):
        assert has_fingerprint(name, recorded) is same


def test_sampling_from_python(hub, remote, prompts):
    import rmtools as rm

    found = rm.sample(remote.prm, prompts[:2], n_particles=2)
    local = rm.sample(str(remote.folder), prompts[:2], n_particles=2, policy=remote.policy)
    assert [s.best for s in found] == [s.best for s in local]


def test_names_of_an_older_checkpoint_are_pinned_by_their_fingerprints(hub, remote):
    name, checkpoint = remote.policy, remote.prm
    folder = find_model(checkpoint).folder
    written = json.loads((folder / SETTINGS_FILE).read_text())
    (folder / SETTINGS_FILE).write_text(json.dumps({**written, "policy": name, "base_revision": ""}))
    found = CheckpointSettings.load(folder)
    assert (found.policy, found.base, found.base_revision) == (
        f"{name}@{hub.commits[name][0]}",
        name,
        hub.commits[name][0],
    )


# Pushing


def test_what_is_pushed_and_pulled_gives_equal_values(
    hub, value_folder, value, step_tokenizer, prompts, tmp_path
):
    merged = export_merged(value_folder, tmp_path / "merged")
    (merged / "README.md").write_text("# A card\n")
    (merged / "notes.pdf").write_text("")
    (merged / "audit").mkdir()
    (merged / "audit" / "audit.json").write_text("{}")
    name = push(merged, "org/merged", private=True)
    assert name == f"org/merged@{hub.commits['org/merged'][-1]}"
    assert hub.private == {"org/merged"}
    expected = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "rmtools.json",
        "README.md",
        "export.json",
    }
    assert expected <= set(hub.files("org/merged"))
    assert not {"notes.pdf", "audit/audit.json"} & set(hub.files("org/merged"))
    pulled, settings = load_value_model(name)
    tree = [step_tokenizer.encode(p, []) for p in prompts]
    for mine, its in zip(load_value_model(merged)[0].score(tree), pulled.score(tree), strict=True):
        np.testing.assert_array_equal(mine.log_value, its.log_value)
    for mine, its in zip(value.score(tree), pulled.score(tree), strict=True):
        np.testing.assert_allclose(mine.log_value, its.log_value, atol=1e-5)
    assert settings.steps == value.steps.settings


def test_an_adapter_replaces_merged_weights_of_an_earlier_upload(hub, remote, tmp_path):
    hub.put(
        "org/mine", _folder(tmp_path / "old", **{"model.safetensors": "", "config.json": "{}", "x.md": ""})
    )
    push(remote.folder, "org/mine")
    files = set(hub.files("org/mine"))
    assert {"adapter_model.safetensors", "adapter_config.json", "x.md"} <= files
    assert not {"model.safetensors", "config.json"} & files


def test_what_is_not_pushed(hub, remote, value_folder, tmp_path):
    with pytest.raises(UserError, match="this machine"):
        push(value_folder, "org/mine")
    for name in ("prm", "org/a/b", "org/prm@v1", "./prm"):
        with pytest.raises(UserError, match=f"'{name}'"):
            push(remote.folder, name)
    with pytest.raises(UserError, match="is public"):
        push(remote.folder, remote.prm, private=True)
    with pytest.raises(UserError, match="no folder"):
        push(remote.prm, "org/mine")
    hub.writable = False
    with pytest.raises(UserError, match="403") as error:
        push(remote.folder, "org/mine")
    assert "hf auth login" in error.value.fix
    hub.writable, hub.online = True, False
    with pytest.raises(UserError, match="pushed to org/mine"):
        push(remote.folder, "org/mine")
    hub.online = True
    (remote.folder / "README.md").unlink()
    with pytest.raises(UserError, match="no model card"):
        push(remote.folder, "org/mine")
    (remote.folder / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read"):
        push(remote.folder, "org/mine")
    assert set(hub.commits) == {"org/policy", "org/prm"}
