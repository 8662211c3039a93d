"""Published PRMs in audit and sample: what is said first, first steps as the root, prompts of a chat, recorded scores."""

import copy
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import rmtools as rm
from rmtools.auditing import audit
from rmtools.auditing.recording import audit_recording
from rmtools.cli.main import app
from rmtools.data.scoring import score_rollouts
from rmtools.errors import UserError
from rmtools.lm.checkpoint import fingerprint
from rmtools.lm.prompt_format import PromptFormat, PromptRenderer
from rmtools.lm.steps import StepSettings
from rmtools.testing import check_scorer

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + ' \n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def prm_folder(policy_folder, tokenizer, tmp_path_factory):
    """A judge of the crossing's steps, as trl writes one: a classifier of two labels on the policy."""
    from transformers import AutoModelForTokenClassification

    torch.manual_seed(3)
    model = AutoModelForTokenClassification.from_pretrained(policy_folder, num_labels=2, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=0.2)
    folder = tmp_path_factory.mktemp("trl") / "prm"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_published_model_is_audited_and_says_how_it_is_read(prm_folder, rollouts, settings):
    value, none = rm.load_value_model(prm_folder, steps=settings, floor=0.05)
    assert none is None
    assert value.first_steps
    report = audit(rollouts, value)
    first = str(report).replace("\n", " ")
    assert "Format trl (its architecture LlamaForTokenClassification" in first
    assert "p is taken as an estimate of a value" in first
    assert "the mean over the policy's first steps" in first
    assert {m.role for m in report.models} >= {"model", "constant"}
    # The mean over the first steps of all rows of a prompt: no Bellman error there.
    scored = score_rollouts(rollouts, value)
    for name in {r.prompt_id for r in rollouts}:
        rows = [i for i, r in enumerate(rollouts) if r.prompt_id == name]
        places = [
            np.flatnonzero((scored.prefix_trajectory == i) & (scored.prefix_depth == 0))[0] for i in rows
        ]
        first_steps = np.concatenate([scored.child_log_value[p][scored.child_present[p]] for p in places])
        for i in rows:
            assert scored.log_value[i][0] == pytest.approx(np.log(np.exp(first_steps).mean()))
            assert scored.own_log_value[i][0] == scored.log_value[i][0]


def test_aggregates_make_prefixes_of_steps(prm_folder, rollouts, settings):
    def p(aggregate, root=0.5):
        value, _ = rm.load_value_model(
            prm_folder, prm_format="trl", steps=settings, aggregate=aggregate, root_value=root
        )
        trees = [
            value.steps.encode(r.prompt, r.steps, [[c.text for c in at] for at in r.children])
            for r in rollouts
        ]
        found = value.score(trees)
        start, state = value.start([value.steps.prompt_ids(rollouts[0].prompt)])
        assert float(start[0]) == pytest.approx(found[0].log_value[0])
        for t, step in enumerate(rollouts[0].steps):
            new, state = value.advance(state, torch.tensor([value.steps.step_ids(step)]))
            assert float(new[0]) == pytest.approx(found[0].log_value[t + 1], abs=1e-5)
        return [np.exp(value.tilt.log_probability(v.log_value)) for v in found], [
            [np.exp(value.tilt.log_probability(at)) for at in v.children] for v in found
        ]

    last, branches = p("last")
    for name, of in {
        "product": np.cumprod,
        "min": np.minimum.accumulate,
        "mean": lambda x: np.cumsum(x) / np.arange(1, len(x) + 1),
    }.items():
        found, children = p(name, 0.3)
        for got, steps, at, its in zip(found, last, children, branches, strict=True):
            np.testing.assert_allclose(got, [0.3, *of(steps[1:])], atol=1e-6)
            for t in range(len(at)):
                for k in range(len(at[t])):
                    assert at[t][k] == pytest.approx(of([*steps[1 : t + 1], its[t][k]])[-1], abs=1e-6)


def test_audit_and_sample_from_the_command_line(prm_folder, policy_folder, rollouts, settings, tmp_path):
    from rmtools.data.rollouts import RolloutMetadata, write_rollouts

    meta = RolloutMetadata(str(policy_folder), "", "crossing", 3, settings, 1.0, 5)
    write_rollouts(tmp_path / "rollouts", rollouts, meta)
    run = CliRunner().invoke(
        app,
        [
            *("audit", "--model", str(prm_folder), "--rollouts", str(tmp_path / "rollouts"), "--no-pilot"),
            *("--out", str(tmp_path / "audit"), "--root-value", "0.4"),
        ],
    )
    assert run.exit_code == 0, run.output
    said = " ".join(run.output.split())
    assert "Format trl" in said
    assert "the value of a prompt alone: p = 0.4, as given" in said
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": {json.dumps(rollouts[0].prompt)}}}\n')
    run = CliRunner().invoke(
        app,
        [
            *("sample", "--model", str(prm_folder), "--policy", str(policy_folder), "--task", "crossing"),
            *("--horizon", "3", "--prompts", str(tmp_path / "p.jsonl"), "-n", "4", "--aggregate", "product"),
            *("--out", str(tmp_path / "s.jsonl")),
        ],
    )
    assert run.exit_code == 0, run.output
    assert "a prefix has the product over its steps" in " ".join(run.output.split())
    assert (tmp_path / "s.jsonl").read_text().count("\n") == 1


CRUCIBLE = Path(__file__).parents[3] / "shared" / "data" / "crucible"


@pytest.mark.skipif(not CRUCIBLE.is_dir(), reason=f"there is no recording in {CRUCIBLE}")
def test_the_recording_of_a_beam_is_audited(tmp_path):
    """63 distinct prefixes of eight problems; figures of the recording as it was published."""
    scores, branches = CRUCIBLE / "math500-beam-hard-prm.json", CRUCIBLE / "math500-beam-hard-steps.json"
    value, none = rm.load_value_model(scores, prm_format="recorded")
    assert none is None
    found = audit_recording(value, branches)
    assert [d.n for d in found.depths] == [16, 16, 16, 15]
    plug_in = [d.plug_in for d in found.depths]
    np.testing.assert_allclose(plug_in, [-0.063, -0.095, -0.070, -0.131], atol=0.001)
    assert found.at_zero.ratio_error.mean_square.estimate == pytest.approx(0.0191, abs=0.0005)
    for k, depth in enumerate(found.depths):
        assert depth.signed.estimate > depth.plug_in  # Jensen's bias is taken off
        assert abs(depth.signed_floor.estimate) < abs(depth.signed.estimate)  # the floor damps
        assert depth.depth == k + 1
    assert "What it cannot" in str(found)
    run = CliRunner().invoke(
        app,
        [
            *("audit", "--model", str(scores), "--prm-format", "recorded", "--rollouts", str(branches)),
            *("--out", str(tmp_path / "audit")),
        ],
    )
    assert run.exit_code == 0, run.output
    assert "63 distinct prefixes of 8 problems" in " ".join(run.output.split())
    assert (tmp_path / "audit" / "recording.json").is_file()


def test_recorded_scores_are_values_at_the_recorded_prefixes_alone(tmp_path):
    file = tmp_path / "scores.jsonl"
    rows = [("Q?", ["a", "b"], [0.9, 0.5]), ("Q?", ["a", "c"], [0.9, 0.2])]
    file.write_text(
        "".join(json.dumps({"prompt": q, "steps": s, "scores": p}) + "\n" for q, s, p in rows),
        encoding="utf-8",
    )
    value, _ = rm.load_value_model(
        file, prm_format="recorded", steps=StepSettings("\n", 4), root_value=0.6, aggregate="min"
    )
    tree = value.steps.encode("Q?", ["a\n", "b\n"], [[], ["c\n"]])
    found = value.score([tree])[0]
    np.testing.assert_allclose(found.log_value, value.tilt.log_potential(np.asarray([0.6, 0.9, 0.5])))
    np.testing.assert_allclose(found.children[1], value.tilt.log_potential(np.asarray([0.2])))
    _, state = value.start([value.steps.prompt_ids("Q?")])
    first, state = value.advance(state, torch.tensor([value.steps.step_ids("a\n")]))
    assert float(first[0]) == pytest.approx(found.log_value[1])
    with pytest.raises(UserError, match=r"no score of the prefix 'Q\?' with 2 steps .*'a … d'"):
        value.score([value.steps.encode("Q?", ["a\n", "d\n"])])
    for broken, said in [
        ('{"prompt": "Q?", "steps": ["a"], "scores": [1.5]}', "not all in"),
        ('{"prompt": "Q?", "steps": ["a"], "scores": [0.5, 0.5]}', "2 scores for 1 steps"),
        ('{"prompt": "Q?"}', "lacks prompt, steps or scores"),
    ]:
        file.write_text(broken)
        with pytest.raises(UserError, match=said):
            rm.load_value_model(file, prm_format="recorded")
    with pytest.raises(UserError, match="it is no file"):
        rm.load_value_model(tmp_path / "none.jsonl", prm_format="recorded")
    with pytest.raises(UserError, match="root_value"):
        rm.load_value_model(file, prm_format="recorded", root_value=1.5)


def test_options_of_published_models_are_refused_for_a_checkpoint(value_folder, tmp_path):
    run = CliRunner().invoke(
        app, ["audit", "--model", str(value_folder), "--aggregate", "min", "--out", str(tmp_path)]
    )
    assert isinstance(run.exception, UserError)
    assert "`aggregate` is for published reward models" in str(run.exception)


def test_questions_are_read_from_chats(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    renderer = PromptRenderer(PromptFormat("chat", few_shot=(("r1 . ", "u r2 "),)), tokenizer)
    text = renderer.render("r2 . c13 .")
    assert renderer.question(text) == "r2 . c13 ."
    assert renderer.question(text.removeprefix(tokenizer.bos_token)) == "r2 . c13 ."
    assert renderer.question("something else") == "something else"


def test_published_and_recorded_models_are_scorers(prm_folder, rollouts, settings, tmp_path):
    """The contract: whole scoring is incremental scoring, whatever else is in a batch."""
    value, _ = rm.load_value_model(prm_folder, steps=settings, aggregate="mean", floor=0.05)
    check_scorer(value, rollouts[:4])
    lines = []
    for r in rollouts[:3]:
        solutions = [r.steps, *([*r.steps[:t], c.text] for t, at in enumerate(r.children) for c in at)]
        for steps in solutions:
            scores = [0.1 + hash_of(steps[: t + 1]) % 80 / 100 for t in range(len(steps))]
            lines.append(json.dumps({"prompt": r.prompt, "steps": steps, "scores": scores}))
    file = tmp_path / "scores.jsonl"
    file.write_text("\n".join(lines))
    recorded, _ = rm.load_value_model(file, prm_format="recorded", steps=settings)
    check_scorer(recorded, rollouts[:3])


def hash_of(steps):
    return zlib.crc32("".join(steps).encode())


def test_a_published_model_is_audited_by_its_name(prm_folder, rollouts):
    report = audit(rollouts, str(prm_folder), controls=False, compare=[prm_folder])
    assert report.provenance["published"]["format"] == "trl"
    assert report.provenance["checkpoint_fingerprint"] == fingerprint(prm_folder)
    assert "compare 1" in report.pairs


def test_samples_do_not_depend_on_the_value_of_the_prompt_alone(prm_folder, policy, rollouts, settings):
    """The root's value cancels in weights and in the estimate of Z."""

    def drawn(root):
        value, _ = rm.load_value_model(prm_folder, steps=settings, root_value=root, floor=0.05)
        return rm.sample(value, [rollouts[0].prompt], policy=policy, n_particles=8, seed=4)[0]

    one, other = drawn(0.1), drawn(0.9)
    assert one.steps == other.steps
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-9)
    assert one.record["log_z"] == pytest.approx(other.record["log_z"], abs=1e-9)


def test_the_question_of_a_rendered_prompt_is_read(prm_folder, rollouts, settings):
    """A row whose prompt is rendered has the values of its question."""
    value, _ = rm.load_value_model(prm_folder, steps=settings, root_value=0.5)
    plain = score_rollouts(rollouts[:2], value)
    rows = [replace(r, prompt=f"r0 . r1 . {r.prompt}", question=r.prompt, ids=None) for r in rollouts[:2]]
    found = score_rollouts(rows, value)
    for a, b in zip(plain.own_log_value, found.own_log_value, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
