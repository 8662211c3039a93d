"""The one retry policy: what is sent again, how often, after which delays, and until when."""

import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest

from rmtools.errors import UserError
from rmtools.serving import retry
from rmtools.serving.errors import PassingError, retry_after
from rmtools.serving.retry import RetryPolicy


class Clock(threading.Event):
    """Time that passes by waiting alone; it is also the event that is waited for."""

    def __init__(self):
        super().__init__()
        self.now, self.waits = 100.0, []

    def monotonic(self):
        return self.now

    def wait(self, timeout):
        self.now += timeout
        self.waits.append(timeout)
        return self.is_set()


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(retry, "time", found)
    return found


def failing(times, kind="failing", wait=0.0, busy=False):
    """A request that fails so many times, and then returns the number of its attempt."""

    def send(attempt):
        if attempt < times:
            raise PassingError(UserError(f"failure {attempt}", "wait"), kind, wait, busy)
        return attempt

    return send


def call(clock, send, patience=300.0, first=False):
    again = []
    policy = RetryPolicy(patience, np.random.default_rng(0))
    return policy.call(send, again.append, clock, first=first), again


def test_a_request_is_sent_until_it_is_answered(clock):
    attempt, again = call(clock, failing(5))
    assert attempt == len(again) == len(clock.waits) == 5
    assert [f.error.fact for f in again] == [f"failure {i}" for i in range(5)]


def test_patience_counts_from_the_first_failure(clock):
    with pytest.raises(UserError, match="failure"):
        call(clock, failing(10**6), patience=60.0)
    assert 30 < sum(clock.waits) <= 60
    clock.waits.clear()
    with pytest.raises(UserError, match="failure 0; fix: wait"):
        call(clock, failing(1), patience=0.0)
    with pytest.raises(UserError, match="failure 0; fix: wait"):
        call(clock, failing(1, wait=61.0, busy=True), patience=60.0)
    assert clock.waits == []


def test_an_event_ends_the_waiting(clock):
    clock.set()
    with pytest.raises(UserError, match="failure 0"):
        call(clock, failing(3))
    assert len(clock.waits) == 1


def test_other_errors_are_not_tried_again(clock):
    def refused(attempt):
        raise UserError("refused", "")

    def bug(attempt):
        raise KeyError("a bug keeps its traceback")

    for send, error in ((refused, UserError), (bug, KeyError)):
        with pytest.raises(error):
            call(clock, send)
    assert clock.waits == []


@pytest.mark.parametrize(
    ("failure", "attempts"),
    [
        ({"kind": "absent"}, 1),
        ({"kind": "unreadable"}, 1),
        ({"kind": "failing"}, 1),
        ({"kind": "broken"}, 3),
        ({"kind": "failing", "busy": True}, 6),
        ({"kind": "limited", "busy": True}, 6),
    ],
)
def test_at_first_only_a_busy_server_is_waited_for(clock, failure, attempts):
    seen = []
    send = failing(5, **failure)

    def counted(attempt):
        seen.append(attempt)
        return send(attempt)

    if attempts == 6:
        assert call(clock, counted, first=True)[0] == 5
    else:
        with pytest.raises(UserError, match=f"failure {attempts - 1}"):
            call(clock, counted, first=True)
    assert len(seen) == attempts


def test_waiting_times_grow_and_heed_the_server():
    found, again = (RetryPolicy(300.0, np.random.default_rng(0)) for _ in range(2))
    waits = np.asarray([[found.delay(k, 0.0) for k in range(12)] for _ in range(200)])
    np.testing.assert_array_equal(waits[0], [again.delay(k, 0.0) for k in range(12)])
    middle = np.minimum(30.0, 0.5 * 2.0 ** np.arange(12))
    assert (waits >= 0.5 * middle).all()
    assert (waits <= 1.5 * middle).all()
    assert (waits.std(0) > 0.2 * middle).all()
    assert all(found.delay(k, 7.0) >= 7.0 for k in range(12))


def test_retry_after_is_a_number_or_a_date():
    soon = datetime.now(UTC) + timedelta(seconds=90)
    assert 85 < retry_after(format_datetime(soon, usegmt=True)) <= 90
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == retry_after("-3") == retry_after("nan") == 0.0
    assert retry_after("2.5") == 2.5


@pytest.mark.parametrize(
    ("suspect", "kinds", "waits"),
    [
        (False, ["loading", "loading"], 2),
        (True, ["loading"], 0),
        (True, ["limited", "limited"], 2),
        (False, ["broken", "loading"], 1),
    ],
)
def test_a_server_that_a_request_may_have_stopped_is_not_waited_for(clock, suspect, kinds, waits):
    """At the first contact one that loads is waited for, unless it answered before or failed otherwise."""

    def send(attempt):
        if attempt < len(kinds):
            busy = kinds[attempt] != "broken"
            raise PassingError(UserError("no", "wait"), kinds[attempt], busy=busy)
        return "done"

    policy = RetryPolicy(300.0, np.random.default_rng(0))
    if waits == len(kinds):
        assert policy.call(send, lambda f: None, clock, first=True, suspect=suspect) == "done"
    else:
        with pytest.raises(UserError):
            policy.call(send, lambda f: None, clock, first=True, suspect=suspect)
    assert len(clock.waits) == waits
