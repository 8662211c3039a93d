"""How commands end: one line and an exit code, with a traceback on request."""

import errno

import pytest

from rmtools.cli.errors import TRACEBACK, exit_on_user_error, with_dashes
from rmtools.errors import UserError


def ended(error, capsys):
    with pytest.raises(SystemExit) as found, exit_on_user_error():
        raise error
    return found.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("the fact\nof it", "do so"), 2, "rmtools: error: the fact of it; fix: do so\n"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300),
            2,
            f"rmtools: error: File name too long: {'a' * 300}; fix: name another file\n",
        ),
        (KeyboardInterrupt(), 130, "rmtools: interrupted; nothing half-written was kept\n"),
    ],
)
def test_an_error_is_one_line(error, code, line, capsys, monkeypatch):
    monkeypatch.delenv(TRACEBACK, raising=False)
    assert ended(error, capsys) == (code, line)


def test_the_traceback_is_below_the_line_on_request(capsys, monkeypatch):
    monkeypatch.setenv(TRACEBACK, "1")
    code, err = ended(UserError("the fact", "do so"), capsys)
    line, rest = err.split("\n", 1)
    assert (code, line) == (2, "rmtools: error: the fact; fix: do so")
    assert rest.startswith("Traceback (most recent call last):")
    assert "raise error" in rest


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "broken disk")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)), exit_on_user_error():
        raise error


def test_parameters_are_named_as_flags():
    """Lower rooms name parameters; a flag's name is known to the command line alone."""
    from rmtools.cli.main import in_flags

    text = "`ess_threshold` is a fraction of `n_particles`, `rmtools sample` and `nothing` stay, `n`"
    assert in_flags(text) == (
        "--ess-threshold is a fraction of --n-particles, `rmtools sample` and `nothing` stay, --n-particles"
    )


def test_assignments_are_named_as_flags_too():
    from rmtools.cli.main import in_flags

    assert in_flags("fix: n_particles=4, say; tv=.05 stays") == "fix: --n-particles 4, say; tv=.05 stays"
    assert with_dashes("`learning_rate` is 0, `rmtools prompts` stays") == (
        "--learning-rate is 0, `rmtools prompts` stays"
    )
