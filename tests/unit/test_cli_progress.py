"""Live progress: the figures that are shown, on a terminal and off one."""

import sys

import pytest

from rmtools.cli.progress import EVERY, WINDOW, Live, live_progress, progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_speed_is_of_the_last_seconds():
    clock = Clock()
    live = Live("sampling", 9, clock=clock)
    assert live.speed is None
    for _ in range(100):
        clock.now += 1.0
        live.step(50)
    assert live.speed == pytest.approx(50)
    for _ in range(int(WINDOW) + 1):
        clock.now += 1.0
        live.step(200)
    assert live.speed == pytest.approx(200)
    assert live.tokens == 100 * 50 + 200 * (int(WINDOW) + 1)
    assert len(live._seen) <= WINDOW + 2


def test_only_what_is_known_is_shown():
    clock = Clock()
    live = Live("sampling", 9, clock=clock)
    assert str(live) == "sampling: 0 of 9 prompts"
    clock.now += 2
    live.step(9000, 7.25)
    assert str(live) == "sampling: 0 of 9 prompts, 4,500 tokens/s, ESS 7.2"
    live.done(3)
    live.step(0)
    assert str(live) == "sampling: 3 of 9 prompts, 4,500 tokens/s, ESS 7.2"
    live.done(2, 0)
    live.done(1, 1)
    assert str(live).endswith("ESS 7.2, 1 of 6 solved")


def test_off_a_terminal_a_line_now_and_then(capsys):
    clock = Clock()
    with live_progress("sampling", 4, clock=clock) as live:
        for _ in range(4):
            clock.now += 0.4 * EVERY
            live.step(10)
            live.done(1, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [x.split(",")[0] for x in lines] == ["sampling: 2 of 4 prompts", "sampling: 4 of 4 prompts"]


def test_counted_work_has_lines_too(capsys):
    clock = Clock()
    with progress("training", 4, clock) as tick:
        for _ in range(4):
            clock.now += 0.4 * EVERY
            tick(1)
    assert "training: 3 of 4" in capsys.readouterr().err.splitlines()


def test_an_error_leaves_no_line(capsys):
    def fail():
        with live_progress("sampling", 4) as live:
            live.step(3)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert capsys.readouterr().err == ""


def test_only_the_main_process_shows(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with live_progress("sampling", 4) as live:
        live.done(4)
    assert live.finished == 4
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with live_progress("sampling", 4, clock=Clock()) as live:
        live.step(10, 3.0)
        live.done(4, 2)
    shown = capsys.readouterr().err
    assert "ESS 3.0, 2 of 4 solved" in shown
    assert "4/4" in shown
