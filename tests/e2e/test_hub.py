"""Commands with models of the hub, against a stand-in; and the real client against a small server."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from checks import check_error

from rmtools.data.load import load_rollouts

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_every_command_takes_names_of_the_hub(run, hub, remote, prompts_file, tmp_path):
    commit = hub.commits["org/policy"][0]
    rollouts = tmp_path / "rollouts"
    drawn = (
        "--prompts",
        prompts_file,
        "--horizon",
        3,
        "--trajectories",
        3,
        "--children",
        2,
        "--completions",
        4,
    )
    assert run("rollout", "--policy", "org/policy", *drawn, "--out", rollouts).code == 0
    known = load_rollouts(rollouts).metadata
    assert (known.policy, known.policy_fingerprint) == (f"org/policy@{commit}", commit)

    audit = ("audit", "--rollouts", rollouts, "--out", tmp_path / "audit")
    result = run(*audit, "--model", "org/prm", "--compare", "org/prm@main")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())["provenance"]
    assert found["checkpoint_fingerprint"] == hub.commits["org/prm"][0]
    assert (found["checkpoint"], found["policy"]) == (
        f"org/prm@{hub.commits['org/prm'][0][:8]}",
        known.policy,
    )
    assert "another policy" not in result.out

    drawn = ("--prompts", prompts_file, "--out", tmp_path / "s.jsonl", "-n", 2)
    result = run("sample", "--model", "org/prm", *drawn)
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])["provenance"]
    assert record["policy"] == known.policy
    assert record["model_fingerprint"] == hub.commits["org/prm"][0]

    result = run(
        "audit",
        *audit[1:3],
        "--model",
        "implicit:org/policy",
        "--policy",
        "org/policy",
        "--out",
        tmp_path / "i",
    )
    assert result.code == 0, result.err


def test_what_needs_a_folder_says_so(run, hub, remote, prompts_file, tmp_path):
    check_error(run("audit", "--model", "org/prm"), "no folder for its audit", "--out")
    check_error(run("audit", "--model", "org/prm", "--card", "--out", tmp_path / "a"), "--card", "no folder")
    check_error(
        run("sample", "--model", "org/prm", "--prompts", prompts_file, "--accuracy", "tv=.05"), "--audit"
    )
    hub.online = False
    for verb in (("sample", "--prompts", prompts_file), ("audit",), ("verify", "lm")):
        check_error(run(*verb, "--model", "org/none"), "no folder org/none here", "HF_HUB_OFFLINE")
    assert not (tmp_path / "a").exists()


def test_export_and_push(run, hub, remote, value_folder, tmp_path):
    merged = ("export", "--model", "org/prm", "--merge", "--out", tmp_path / "merged")
    hub.writable = False
    check_error(
        run(*merged, "--push", "org/out"),
        "could not be pushed",
        f"--model {tmp_path / 'merged'} --push org/out",
    )
    assert (tmp_path / "merged" / "model.safetensors").exists()
    hub.writable = True
    result = run("export", "--model", tmp_path / "merged", "--push", "org/out", "--private")
    assert result.code == 0, result.err
    assert hub.commits["org/out"][-1] in result.out
    assert hub.private == {"org/out"}
    assert {"rmtools.json", "README.md", "model.safetensors"} <= set(hub.files("org/out"))
    check_error(run("export", "--model", value_folder, "--push", "org/x"), "adapter on a folder", "--merge")
    check_error(run("export", "--model", value_folder), "--merge", "--push")
    check_error(run("export", "--model", value_folder, "--push", "org/x", "--out", tmp_path), "--out")
    check_error(run(*merged, "--private"), "--private")


def test_a_merged_checkpoint_is_audited_without_its_base(run, hub, remote, prompts_file, tmp_path):
    merged = ("export", "--model", "org/prm", "--merge", "--out", tmp_path / "merged", "--push", "org/out")
    assert run(*merged).code == 0
    settings = tmp_path / "merged" / "rmtools.json"
    settings.write_text(
        json.dumps({**json.loads(settings.read_text()), "base": "../gone", "base_revision": ""})
    )
    hub.put("org/out", tmp_path / "merged")
    drawn = ("--prompts", prompts_file, "--trajectories", 3, "--children", 2, "--completions", 4)
    result = run("audit", "--model", "org/out", *drawn, "--out", tmp_path / "a")
    assert result.code == 0, result.err
    assert "untrained control is left out" in result.out


class Server(BaseHTTPRequestHandler):
    """The three answers of the hub that a download needs."""

    folder: Path

    def do_GET(self) -> None:
        _, *parts = self.path.split("?")[0].split("/")
        files = {p.name: p.read_bytes() for p in self.folder.iterdir()}
        if parts[:4] == ["api", "models", "org", "m"]:
            listed = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in files.items()
            ]
            about = {"id": "org/m", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            self.answer(200, json.dumps(listed if "tree" in parts else about).encode())
        elif parts[:3] == ["org", "m", "resolve"] and parts[-1] in files:
            self.answer(200, files[parts[-1]])
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815 - the server's name for it

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        etag = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        for name, value in {**etag, **(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_real_client(policy_folder, tmp_path):
    """It finds, downloads and names the commit; then the cache is enough; a missing model is refused quickly."""
    Server.folder = policy_folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = (
        "import sys, time; from rmtools.lm.hub import find_model; began = time.monotonic()\n"
        "try: found = find_model(sys.argv[1]); print(found.pinned, found.folder, end=' ')\n"
        "except ValueError as error: print(error, end=' ')\n"
        "print(time.monotonic() - began)"
    )

    def find(name, **more):
        base = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        environment = {**os.environ, **base, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **more}
        done = subprocess.run(
            [sys.executable, "-c", program, name], env=environment, capture_output=True, text=True, check=True
        )
        *said, seconds = done.stdout.split()
        assert float(seconds) < 20
        return " ".join(said)

    try:
        pinned, folder = find("org/m").split()
        assert pinned == f"org/m@{COMMIT}"
        assert {"config.json", "model.safetensors"} <= {p.name for p in Path(folder).iterdir()}
        assert (Path(folder) / "config.json").read_bytes() == (policy_folder / "config.json").read_bytes()
        assert find("org/m@main", HF_HUB_OFFLINE="1") == f"{pinned} {folder}"
        assert "hf auth login" in find("org/none")
    finally:
        server.shutdown()
        server.server_close()
    assert find(pinned) == f"{pinned} {folder}"
    assert "cannot be reached" in find("org/none")


def test_a_hub_that_never_answers_is_given_up(tmp_path):
    """Models and data sets alike, within the limit: the real clients would try again, or wait for ever."""
    program = (
        "import time, datasets, torch, rmtools as rm; from rmtools.lm import hub; hub.SECONDS = 0.5\n"
        "for call in (rm.load_value_model, rm.load_rollouts):\n"
        "    began = time.monotonic()\n"
        "    try: call('org/none')\n"
        "    except rm.UserError as error: print('org/none' in error.fact, 'network' in error.fix, time.monotonic() - began)"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **base, "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    said = [line.split() for line in done.stdout.splitlines()]
    assert [words[:2] for words in said] == [["True", "True"]] * 2
    assert all(float(seconds) < 5 for *_, seconds in said)
