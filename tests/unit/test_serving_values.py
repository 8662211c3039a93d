"""Values of a model behind a server: those of the same weights in this process, and what is not taken from a server."""

import numpy as np
import pytest
import torch
from assets import real_tokenizer
from published import save, tokenizer_of
from value_server import serving

from rmtools.errors import UserError
from rmtools.lm.checkpoint import load_value_model
from rmtools.lm.formats import load as loading
from rmtools.lm.formats.load import Asked
from rmtools.lm.formats.reading import Reading
from rmtools.lm.steps import StepSettings
from rmtools.serving import value_connection
from rmtools.serving.endpoint import ServerSettings
from rmtools.serving.value_connection import connect_values

CLASSIFIER = ("/classify", "/pooling")
QUICK = ServerSettings(patience=0.0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def served(value, value_folder, rng):
    """Serve the checkpoint's logits: ``served(paths, kind)`` is a context with the server and the scorer."""
    import contextlib

    @contextlib.contextmanager
    def of(paths=CLASSIFIER, kind="", **more):
        with serving(lambda ids: value.model(ids).logits, paths, kind) as server:
            yield server, connect_values(server.url, value_folder, rng, QUICK, **more)

    return of


@pytest.fixture
def trees(value, task, prompts):
    """Two trajectories with children, of uneven lengths."""
    rows = []
    for prompt, n in zip(prompts[:2], (3, 1), strict=True):
        steps = task.step_choices(prompt, [])
        rows.append(value.steps.encode(prompt, steps[:n], [steps[:2]] * n))
    return rows


@pytest.mark.parametrize("paths", [CLASSIFIER, ("/classify",), ("/pooling",)])
def test_whole_rollouts_have_the_values_of_the_weights_here(served, value, trees, paths):
    told = []
    with served(paths) as (server, scorer):
        found = scorer.score(trees, told.append)
        assert {path for path, _ in server.asked[-1:]} <= set(paths)
    for ours, theirs in zip(found, value.score(trees), strict=True):
        np.testing.assert_allclose(ours.log_value, theirs.log_value, atol=1e-5)
        for a, b in zip(ours.children, theirs.children, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert sum(told) == len(trees)


def test_steps_are_asked_for_where_the_prefix_cache_serves_them(served, value, prompts):
    with served() as (server, scorer):
        ids = [value.steps.prompt_ids(p) for p in prompts[:2]]
        ours, state = scorer.start(ids)
        theirs, other = value.start(ids)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        rows = torch.tensor([0, 1, 1, 0])
        state, other = state.select(rows), other.select(rows)
        step = value.steps.step_ids("u r3 \n")
        tokens = torch.tensor([step, step, [-1] * len(step), step])
        ours, state = scorer.advance(state, tokens)
        theirs, _ = value.advance(other, tokens)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert bool(torch.isnan(ours[2]))
        # Equal prefixes are sent once.
        assert server.asked[-1] == ("/classify", 2)
        joined, _ = scorer.advance(state.join(state), torch.cat([tokens, tokens]))
        assert joined[:4].nan_to_num().tolist() == joined[4:].nan_to_num().tolist()


def test_the_endpoint_that_reads_everything_again_is_said(served, caplog):
    with served(("/pooling",)):
        assert "/pooling reads every prefix from its beginning" in caplog.text


def test_rows_are_put_in_order_and_probabilities_are_seen(served, value, trees):
    for kind in ("reversed", "probabilities"):
        with served(("/classify",), kind) as (_, scorer):
            for ours, theirs in zip(scorer.score(trees), value.score(trees), strict=True):
                np.testing.assert_allclose(ours.log_value, theirs.log_value, atol=1e-4)


@pytest.mark.parametrize(
    ("paths", "kind", "message"),
    [
        (("/classify",), "unnumbered", "lost their order"),
        (("/classify",), "nan", "not finite"),
        (("/classify",), "three", "4 numbers"),
        (("/classify",), "html", "not JSON"),
        (("/classify",), "redirect", "redirects to http://elsewhere.invalid"),
        (("/classify",), "short", "1 of 2 sequences"),
        ((), "", "gives no values of prm"),
        (("/v1/completions",), "", "gives no values of prm"),
    ],
)
def test_what_is_no_reward_model_is_told_at_once(served, paths, kind, message):
    with pytest.raises(UserError, match=message), served(paths, kind):
        pass


def test_ways_are_named(served):
    with (
        pytest.raises(UserError, match="choose auto, classify, pooling, completions, score"),
        served(way="chat"),
    ):
        pass
    with pytest.raises(UserError, match="choose auto, classify, pooling"), served(way="score"):
        pass
    with served(way="pooling") as (server, _):
        assert {path for path, _ in server.asked} == {"/pooling"}


SETTINGS = StepSettings("\n\n", 8)
ROWS = [("What is 3 + 4?", ["It is 7.", "#### 7"]), ("Ann has 7 apples.", ["She eats (1)"])]


@pytest.mark.parametrize("paths", [("/v1/completions",), ("/v1/score",)])
def test_label_tokens_of_a_published_model(tmp_path, monkeypatch, rng, paths):
    """Of a language model that is read at a tag, from a server's law of the next token; with its label mass where it is told."""
    key = "math-shepherd"
    folder = save(key, tmp_path / "model")
    for module in (loading, value_connection):
        monkeypatch.setattr(module, "load_tokenizer", lambda path: tokenizer_of(key))
    local = load_value_model(folder, prm_format=key, steps=SETTINGS, root_value=0.25)[0]
    from transformers import AutoModelForCausalLM

    bare = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = Asked(key, SETTINGS, Reading(0.01, 0.25))
    trees = [
        local.steps.encode(q, [s + "\n\n" for s in steps], [["No.\n\n"]] * len(steps)) for q, steps in ROWS
    ]
    with serving(lambda ids: bare(ids).logits, paths) as server:
        scorer = connect_values(server.url, folder, rng, QUICK, asked=asked)
        found = scorer.score(trees)
        _, state = scorer.start([local.steps.prompt_ids(q) for q, _ in ROWS])
        tokens = torch.tensor([local.steps.step_ids("It is 7.\n\n")] * 2)
        ours, _ = scorer.advance(state, tokens)
    for a, b in zip(found, local.score(trees), strict=True):
        np.testing.assert_allclose(a.log_value, b.log_value, atol=1e-5)
        np.testing.assert_allclose(np.concatenate(a.children), np.concatenate(b.children), atol=1e-5)
    _, state = local.start([local.steps.prompt_ids(q) for q, _ in ROWS])
    np.testing.assert_allclose(ours, local.advance(state, tokens)[0], atol=1e-5)
    if paths == ("/v1/completions",):
        np.testing.assert_allclose(scorer.label_mass(), local.label_mass(), rtol=1e-3)


@pytest.mark.parametrize("key", ["implicit", "vgs"])
def test_formats_that_no_server_gives(tmp_path, monkeypatch, rng, key):
    monkeypatch.setattr(loading, "load_tokenizer", lambda path: real_tokenizer("llama2"))
    folder = save(f"{key}@llama2", tmp_path / "model")
    with serving(lambda ids: ids, ()) as server, pytest.raises(UserError, match=f"the format {key}"):
        connect_values(server.url, folder, rng, QUICK, asked=Asked(key, SETTINGS))


def test_an_export_knows_its_own_server(tmp_path, value, value_folder, rng):
    """Its mark records p of a few tokens: a server with other weights is refused."""
    from rmtools.lm.export import export_merged

    folder = export_merged(value_folder, tmp_path / "export")
    with serving(lambda ids: value.model(ids).logits, CLASSIFIER) as server:
        connect_values(server.url, folder, rng, QUICK)
    with (
        serving(lambda ids: -value.model(ids).logits, CLASSIFIER) as server,
        pytest.raises(UserError, match=r"is not the model of .*the export recorded"),
    ):
        connect_values(server.url, folder, rng, QUICK)
