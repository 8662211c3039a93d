"""``--value-server``: audit, sample and evaluate give what the same weights give in this process."""

import json

import pytest
from checks import check_error
from value_server import serving


@pytest.fixture
def served(value):
    """The address of a server of the checkpoint's logits, at both of vLLM's endpoints."""
    with serving(lambda ids: value.model(ids).logits, ("/classify", "/pooling")) as server:
        yield server


def test_sampling_is_as_with_the_weights_here(run, served, value_folder, prompts_file, tmp_path):
    found = {}
    for name, more in (("here", ()), ("there", ("--value-server", served.url))):
        out = tmp_path / f"{name}.jsonl"
        result = run(
            "sample", "--model", value_folder, "--prompts", prompts_file, "-n", 8, "--out", out, *more
        )
        assert result.code == 0, result.err
        found[name] = [json.loads(line) for line in out.read_text().splitlines()]
    assert (
        f"values from prm at {served.url}/v1: /classify for steps, /pooling for whole rollouts" in result.out
    )
    for a, b in zip(found["here"], found["there"], strict=True):
        assert a["log_z"] == pytest.approx(b["log_z"], abs=1e-4)
        assert [s["steps"] for s in a["samples"]] == [s["steps"] for s in b["samples"]]
    assert {path for path, _ in served.asked[8:]} == {"/classify"}


def test_an_audit_has_the_same_figures(run, served, value_folder, drawn_rollouts, tmp_path):
    found = {}
    for name, more in (("here", ()), ("there", ("--value-server", served.url))):
        options = ("--model", value_folder, "--rollouts", drawn_rollouts / "rollouts", "--no-pilot")
        result = run("audit", *options, "--out", tmp_path / name, *more)
        assert result.code == 0, result.err
        (found[name],) = (
            m
            for m in json.loads((tmp_path / name / "audit.json").read_text())["models"]
            if m["role"] == "model"
        )
    for key in ("plug_in", "signed_mean"):
        here, there = (found[n]["error"]["sampled"][key] for n in ("here", "there"))
        flat = [x["estimate"] if "estimate" in x else x["rms"]["estimate"] for x in (here, there)]
        assert flat[0] == pytest.approx(flat[1], abs=1e-4)
    assert "/pooling" in {path for path, _ in served.asked}


def test_calibration_of_a_served_model(run, served, value_folder, drawn_rollouts, tmp_path):
    options = (drawn_rollouts / "rollouts", "--model", value_folder, "--value-server", served.url)
    result = run("evaluate", "calibration", *options, "--out", tmp_path / "c")
    assert result.code == 0, result.err
    assert (tmp_path / "c" / "evaluate.json").exists()


def test_what_is_missing_or_another_model_is_said(run, served, value_folder, prompts_file, tmp_path):
    base = ("sample", "--model", value_folder, "--prompts", prompts_file, "--out", tmp_path / "s.jsonl")
    check_error(run(*base, "--value-server-model", "large"), "--value-server-model needs --value-server")
    result = run(*base, "--value-server", served.url, "--value-server-model", "large")
    check_error(result, "no model 'large'", "prm")
    check_error(run(*base, "--value-server", "http://127.0.0.1:9"), "no server answers at http://127.0.0.1:9")
    assert not (tmp_path / "s.jsonl").exists()
