"""What can go wrong on the way to a server, one by one: fact, reason and fix, and the API key in none of them."""

import logging
import re
import threading
import time
import urllib.parse

import numpy as np
import pytest

from rmtools.errors import UserError
from rmtools.serving import retry
from rmtools.serving.endpoint import Endpoint, ServerSettings, api_key, base_url
from rmtools.serving.errors import ServerErrors
from rmtools.serving.responses import ModelCard, choose_model, read_answer
from rmtools.serving.server import connect
from rmtools.serving.threads import run_all

KEY = "sk-right-1234567890"
WRONG_KEY = "sk-wrong-0987654321"
BODY = {"model": "tiny", "prompt": "r2 . \n", "max_tokens": 4, "temperature": 1.0, "n": 1, "seed": 1}


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def endpoint(server, monkeypatch):
    """``endpoint(kind, **settings)``, with short waits."""
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.05)
    return lambda kind, **more: Endpoint(server.url(kind), np.random.default_rng(0), ServerSettings(**more))


def everything_said(error):
    """The texts of an error and of all that it came from."""
    while error is not None:
        yield f"{error} {error!r} {error.args} {vars(error)}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("kind", "patience", "message"),
    [
        (
            "limited",
            2,
            r"429.*3600 s: too many requests.*`concurrency`",
        ),
        ("failing", 0.2, r"500.*out of memory"),
        (
            "html",
            0.2,
            "not JSON",
        ),
        ("garbled", 0.2, "without choices"),
        (
            "nested",
            0.2,
            "not JSON",
        ),
        (
            "halves",
            0.2,
            "not JSON",
        ),
        ("dribbling", 0, r"within 0\.3 s"),
        ("hanging", 0, r"within 0\.3 s.*`concurrency`"),
        ("locked", 9, "401.*OPENAI_API_KEY"),
        ("forbidden", 9, "403.*OPENAI_API_KEY"),
        ("moved", 9, "http://elsewhere.invalid"),
        ("strict", 9, r"400.*\['min_p'\]"),
    ],
)
def test_failures_are_told(endpoint, kind, patience, message):
    """What waiting cannot mend is not asked again."""
    found = endpoint(kind, patience=patience, timeout=0.3 if kind in ("hanging", "dribbling") else 5)
    with pytest.raises(UserError, match=message):
        found.ask(BODY | {"min_p": 0.0}, "x")
    assert (found.repeated > 0) == (patience == 0.2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("HTTP_PROXY", "ftp://127.0.0.1:9"),
        ("SSL_CERT_FILE", "/nonexistent/certificates.pem"),
    ],
)
def test_an_environment_without_a_way_out(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=name):
        Endpoint("http://127.0.0.1:9", np.random.default_rng(0), ServerSettings())


@pytest.mark.parametrize("host", [".invalid", "a" * 300])
def test_names_that_no_host_has(host):
    with pytest.raises(UserError, match=re.escape(host)):
        Endpoint(f"http://{host}/v1", np.random.default_rng(0), ServerSettings(patience=0)).models()


def test_escape_sequences_of_a_server_do_not_reach_the_terminal():
    assert ServerErrors("u", "").clean("\x1b[31mred\x1b]0;title\x07 \n end") == "[31mred ]0;title end"


def test_negative_counts_of_tokens_are_none():
    body = {"choices": [{"text": "a"}], "usage": {"completion_tokens": -45}}
    assert read_answer(body).tokens == 0


def test_nobody_at_home(step_tokenizer):
    """At the beginning of a run at once; in the middle not before patience runs out."""
    message = "no server answers at http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match=message):
        connect("http://127.0.0.1:9", step_tokenizer, np.random.default_rng(0), ServerSettings(patience=60))
    begun = time.monotonic()
    with pytest.raises(UserError, match=message):
        Endpoint("http://127.0.0.1:9", np.random.default_rng(0), ServerSettings(patience=1)).ask(BODY, "x")
    assert time.monotonic() - begun > 0.2


def test_a_wrong_address_is_told_at_once(endpoint, server, step_tokenizer, caplog):
    """No request is sent again, also where the name of a model is given, so that the list of models need not be read."""
    for kind, message in (
        ("html", "not JSON"),
        ("failing", "500"),
        ("garbled", "without choices"),
    ):
        with pytest.raises(UserError, match=message):
            connect(server.url(kind), step_tokenizer, np.random.default_rng(0), ServerSettings(model="tiny"))
    with pytest.raises(UserError, match="not JSON"):
        endpoint("html", patience=60).models()
    with pytest.raises(UserError, match="404"):
        endpoint("nameless", patience=60).models()
    assert not [m for m in caplog.messages if "trying again" in m]


def test_models(server, step_tokenizer, endpoint):
    def name(kind, model=None):
        return connect(
            server.url(kind), step_tokenizer, np.random.default_rng(0), ServerSettings(model=model)
        ).template.model

    assert name("vllm") == name("several", "tiny") == name("nameless", "tiny") == "tiny"
    with pytest.raises(UserError, match="tiny, large"):
        name("several")
    with pytest.raises(UserError, match=r"'huge'.*tiny, large"):
        name("several", "huge")
    with pytest.raises(UserError, match="list of models"):
        name("nameless")
    with pytest.raises(UserError, match=r"404.*huge.*renamed"):
        endpoint("other").ask(BODY | {"model": "huge"}, "x")
    with pytest.raises(UserError, match="no model"):
        choose_model([], None, "http://x")
    assert choose_model([ModelCard("a", 7)], None, "http://x") == ModelCard("a", 7)


@pytest.mark.parametrize("kind", ["busy", "flaky"])
def test_passing_failures_are_waited_out(endpoint, server, kind, caplog):
    """429 with Retry-After; 500, a broken connection and half an answer: the request is answered whole, once."""
    found = endpoint(kind)
    seen = len(server.log())
    begun = time.monotonic()
    answer = found.ask(BODY | {"n": 3}, f"patient-{kind}")
    assert len(answer.choices) == 3
    assert found.repeated == {"busy": 1, "flaky": 3}[kind]
    assert [line[0] for line in server.log()[seen:]] == [kind]
    if kind == "busy":
        assert time.monotonic() - begun >= 0.2
    assert len(caplog.messages) == {"busy": 1, "flaky": 2}[kind]
    assert all("trying again for 300 s" in m for m in caplog.messages)


def test_the_key_is_sent_and_never_said(server, step_tokenizer, monkeypatch, endpoint, caplog, capfd):
    """Right and wrong, in errors, what they came from, reprs and logs down to the last detail."""
    caplog.set_level(logging.DEBUG)
    for kind, key in (
        ("locked", WRONG_KEY),
        ("forbidden", WRONG_KEY),
        ("moved", KEY),
        ("failing", KEY),
        ("html", KEY),
    ):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        found = endpoint(kind, patience=0.2)
        with pytest.raises(UserError) as caught:
            found.ask(BODY, "x")
        for said in (
            *everything_said(caught.value),
            repr(found),
            repr(found.errors[0]),
            str(caught.traceback),
        ):
            assert key not in said
        if kind == "failing":
            assert "(500): out of memory, key Bearer ***; fix" in str(caught.value)
        if kind == "locked":
            assert "refused the API key (401); fix: set OPENAI_API_KEY" in str(caught.value)
        with pytest.raises(TypeError, match="copied"):
            found.__reduce_ex__(2)
    policy = connect(server.url("locked"), step_tokenizer, np.random.default_rng(0))
    assert policy.template.model == "tiny"
    assert KEY not in repr(policy) + repr(policy.template) + policy.name
    out, err = capfd.readouterr()
    for key in (KEY, WRONG_KEY):
        assert key not in caplog.text + out + err


def test_a_key_is_cut_out_however_it_is_written():
    key = "sk-a'b\\c\"d/e"
    said = ServerErrors("http://x", key).clean(f"{key} {[key]} {urllib.parse.quote(key, safe='')} rest")
    assert said.count("***") == 3
    assert "sk-a" not in said
    assert ServerErrors("http://x", "").clean("as  it\nis") == "as it is"


def test_keys_that_cannot_be_are_refused_unsaid(monkeypatch):
    assert api_key() == ""
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert api_key() == KEY
    for broken in (
        "sk-wrong 098",
        "sk-wrong\n098",
        "sk-wrong\u2013098",
        "sk-wrong\x00098".replace("\x00", "\x7f"),
    ):
        monkeypatch.setenv("OPENAI_API_KEY", broken)
        with pytest.raises(UserError, match="API key") as caught:
            api_key()
        assert all("sk-wrong" not in said for said in everything_said(caught.value))


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        (" https://host/v1/ ", "https://host/v1"),
        ("http://host:1/v1/completions", "http://host:1/v1"),
        ("https://host/openai/v3", "https://host/openai/v3"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_addresses(given, used):
    assert base_url(given) == used


@pytest.mark.parametrize(
    "given", ["localhost:8000", "", "ftp://host", "http://", "http://host:80x", "http://a b", "8000"]
)
def test_addresses_that_are_none(given):
    with pytest.raises(UserError, match="http://localhost:8000/v1"):
        base_url(given)


@pytest.mark.parametrize(
    "given", ["http://me:secret@host", "https://host/v1?key=secret", "me:secret@host", "http://h/#secret"]
)
def test_addresses_with_secrets_are_refused_unsaid(given):
    with pytest.raises(UserError, match="secret") as caught:
        base_url(given)
    assert all("secret@" not in s and "=secret" not in s for s in everything_said(caught.value))


def test_settings_that_cannot_be():
    zero = ("concurrency", "timeout", "temperature", "prompts_per_request")
    for wrong in (*({name: 0} for name in zero), {"patience": -1}, {"temperature": float("nan")}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            ServerSettings(**wrong)


def test_answers_are_read_by_index_and_strictly():
    def choice(index, text, **more):
        return {"index": index, "text": text, "finish_reason": "stop", **more}

    found = read_answer({"choices": [choice(2, "c"), choice(0, "a"), choice(1, "b")]})
    assert ([c.text for c in found.choices], found.indexed, found.tokens) == (["a", "b", "c"], True, 0)
    parts = [{"choices": [choice(i, t)], "usage": {"completion_tokens": 4}} for i, t in ((1, "b"), (0, "a"))]
    found = read_answer(parts)
    assert ([c.text for c in found.choices], found.indexed, found.tokens) == (["a", "b"], True, 8)
    assert not read_answer({"choices": [choice(0, "a"), choice(0, "b")]}).indexed
    assert not read_answer({"choices": [choice(0, "a"), choice(2, "b")]}).indexed
    both = choice(0, "a", stop_reason=None, matched_stop="\n")
    assert read_answer({"choices": [both]}).choices[0].matched == "\n"
    for broken in (
        {},
        [],
        "x",
        None,
        {"choices": []},
        {"choices": [{"index": 0}]},
        {"choices": ["a"]},
        {"choices": [{"text": None}]},
        {"choices": "text"},
        {"error": "no"},
    ):
        with pytest.raises(UserError, match="answers"):
            read_answer(broken)


def test_threads_are_bounded_and_results_in_order():
    running, most, lock = 0, 0, threading.Lock()

    def job(i, stop):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (i % 5))
        with lock:
            running -= 1
        return i * i

    results = run_all([lambda stop, i=i: job(i, stop) for i in range(60)], 5)
    assert results == [i * i for i in range(60)]
    assert 1 < most <= 5
    assert run_all([], 5) == []


def test_a_job_that_fails_ends_the_others():
    begun, stopped = [], threading.Event()

    def waits(stop):
        begun.append(1)
        if stop.wait(20):
            stopped.set()

    def fails(stop):
        time.sleep(0.05)
        raise UserError("no", "none")

    with pytest.raises(UserError, match=r"^no"):
        run_all([waits, fails, *[waits] * 50], 2)
    assert stopped.wait(5)
    assert len(begun) == 1
