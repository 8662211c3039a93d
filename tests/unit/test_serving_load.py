"""Many requests: how many at a time, to which of several servers, and none lost or answered twice whatever fails."""

import threading
import time
import tracemalloc

import numpy as np
import pytest
from stand_in import WAYS, choice, often_failing, serving, settle

from rmtools.errors import UserError
from rmtools.serving import retry, window
from rmtools.serving.endpoint import Endpoint, ServerSettings
from rmtools.serving.window import FIRST_WINDOW, Window, Windows


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.02)


def endpoint(*urls, **settings):
    return Endpoint(list(urls), np.random.default_rng(0), ServerSettings(**settings))


def echo(body, name):
    return [choice(f"{body['prompt']} {name}")]


def ask(source, numbers):
    """Ask one request per number; every answer must be that of its request."""
    bodies = [{"model": "tiny", "prompt": f"p{k}", "max_tokens": 8} for k in numbers]
    answers = source.ask_all(bodies, [f"r-{k}" for k in numbers])
    assert [a.choices[0].text for a in answers] == [f"p{k} r-{k}" for k in numbers]


def test_a_window_grows_with_answers_and_is_halved_when_the_server_is_busy():
    w = Window(64)
    for _ in range(48):
        w.grow()
    assert w.size == 64, "doubling from 16 while nothing was refused"
    w.halve(sent=1.0, now=2.0)
    w.halve(sent=1.5, now=2.5)
    assert w.size == 32, "requests sent before the halving say nothing new"
    for _ in range(33):
        w.grow()
    assert 32.9 < w.size < 33.1, "then by one for each window of answers"
    for k in range(9):
        w.halve(sent=3.0 + k, now=3.5 + k)
    assert w.size == 1
    assert Window(4).size == 4


def test_the_next_request_goes_to_the_least_busy_server_that_does_not_rest(monkeypatch):
    windows, stop = Windows(3, 2), threading.Event()
    at = [windows.enter(stop) for _ in range(6)]
    assert sorted(at) == [0, 0, 1, 1, 2, 2]
    stop.set()
    assert windows.enter(stop) == -1, "no room anywhere"
    windows.leave(0, 0.0, answered=False, busy=False, failed=True)
    windows.leave(1, 0.0, answered=True, busy=False, failed=False)
    assert windows.enter(stop) == 1, "server 0 failed a moment ago"
    monkeypatch.setattr(window, "REST", 0.0)
    windows.leave(0, 0.0, answered=False, busy=False, failed=True)
    assert windows.enter(stop) == 0
    for k in (1, 2):
        windows.each[k].rest(1e12)
        windows.each[k].in_flight = 0
    windows.each[0].rest(1e12)
    assert windows.enter(stop) in (1, 2), "where all rest, they are asked all the same"


def test_requests_adapt_to_a_server_that_takes_few():
    """More than 4 at a time are refused with 429: the window comes down to that, and every request is answered."""

    def write(body, name):
        time.sleep(0.01)
        return echo(body, name)

    with serving(write) as server:
        server.fails = lambda name, attempt: "429" if server.in_flight > 4 else ""
        source = endpoint(server.url, concurrency=32)
        ask(source, range(300))
        assert source.windows.each[0].size < FIRST_WINDOW
        settle(server)
        assert sum(server.sent.values()) == 300
        source.close()


def survive(total, share, rounds):
    """Return the traced memory after each round of requests to a server that fails this share in every way it can."""
    used, ways = [], set()
    with serving(echo) as server:
        fails = often_failing(share)

        def noted(name, attempt):
            ways.add(way := fails(name, attempt))
            return way

        server.fails = noted
        source = endpoint(server.url)
        tracemalloc.start()
        for k in range(rounds):
            ask(source, range(k * total // rounds, (k + 1) * total // rounds))
            server.bodies.clear()
            used.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        settle(server)
        assert len(server.sent) == sum(server.sent.values()) == total, "lost, or answered twice"
        assert ways == {"", *WAYS}
        assert server.connections < total / 4, "connections are kept"
        source.close()
    return used


def test_nothing_is_lost_or_doubled_whatever_fails():
    survive(400, 0.2, 1)


@pytest.mark.slow
def test_ten_thousand_requests_with_one_in_twenty_failing():
    """Memory may grow by the server's own tally of 10,000 names, about a megabyte, and by no more."""
    used = survive(10_000, 0.05, 10)
    assert used[-1] - used[1] < 4 << 20


def test_several_servers_share_the_work_and_one_may_die():
    died = threading.Event()

    def write(body, name):  # slowly: of servers that answer at once the first is always free
        time.sleep(0.02)
        return echo(body, name)

    with serving(write) as one, serving(write) as two:
        two.fails = lambda name, attempt: "cut" if died.is_set() else ""
        source = endpoint(one.url, two.url, concurrency=4)
        ask(source, range(100))
        settle(one, two)
        assert min(sum(s.sent.values()) for s in (one, two)) > 25
        died.set()
        before = sum(two.sent.values())
        ask(source, range(100, 200))
        settle(one, two)
        assert sum(one.sent.values()) + before == 200
        assert len(one.sent + two.sent) == 200
        source.close()


def test_where_all_servers_are_gone_the_error_names_one(monkeypatch):
    source = endpoint("http://127.0.0.1:9/v1", "http://127.0.0.1:19/v1", patience=0.1)
    with pytest.raises(UserError, match=r"no server answers at http://127.0.0.1:1?9/v1"):
        ask(source, [0])
    with pytest.raises(UserError, match="named twice"):
        endpoint("http://127.0.0.1:9", "http://127.0.0.1:9/v1/")
