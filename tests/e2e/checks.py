"""What every refusal of the command line must look like, and samples without the seconds they took."""

import re

BARS = ("Loading weights", "Writing model shards", "━")


class Result:
    def __init__(self, code, out, err):
        self.code, self.out = code, out
        self.err = err
        self.lines = [
            x for x in err.replace("\r", "\n").splitlines() if x.strip() and not any(b in x for b in BARS)
        ]


def without_seconds(path):
    """Return the bytes of a file of samples; seconds are the only figure that the same command does not repeat."""
    return re.sub(rb'"seconds": [^,}]+', b'"seconds": 0', path.read_bytes())


def check_error(result, *words):
    """One line on standard error that says fact and fix, exit code 2, no traceback."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert len(result.lines) == 1, result.err
    assert result.lines[0].startswith("rmtools: error: ")
    assert "fix: " in result.lines[0]
    for word in words:
        assert str(word) in result.lines[0]


def check_late(result, *words):
    """As ``check_error``, after a progress bar has begun."""
    result.lines = result.lines[-1:]
    check_error(result, *words)


def sample(run, checkpoint, prompts_file, *more):
    """Run a sampling that is to be refused: nothing may be written."""
    out = prompts_file.parent / "out.jsonl"
    result = run("sample", "--model", checkpoint, "--prompts", prompts_file, "--out", out, *more)
    assert not out.exists()
    return result
