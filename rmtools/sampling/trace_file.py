"""Reading traces: a record a line, checked before it is drawn.

>>> import pathlib, tempfile
>>> file = pathlib.Path(tempfile.mkdtemp()) / "trace.jsonl"
>>> _ = file.write_text('{"kind": "trace", "schema_version": 99}')
>>> read_trace(file)  # doctest: +ELLIPSIS
Traceback (most recent call last):
...
rmtools.errors.UserError: ...trace.jsonl, line 1: schema version 99, this rmtools reads 1; fix: ...
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from rmtools.errors import UserError
from rmtools.sampling.trace import KIND, SCHEMA_VERSION

FIX = "write it again with `rmtools sample --trace FILE`"
Record = dict[str, Any]
LARGEST = 1e300  # nats and the like; JSON knows numbers that no float holds


class _FaultError(Exception):
    """What is wrong with a record."""


def read_trace(path: str | Path) -> list[Record]:
    """Return the records of a trace file (docs/formats.md, Trace), in order.

    Raises
    ------
    UserError
        If the file cannot be read or has no record, or a line is cut off, no JSON, no trace, of another schema version, or
        contradicts itself; names file and line.
    """
    found = [parse_record(path, line, text) for line, text in trace_lines(path)]
    if not found:
        raise empty(path)
    return found


def read_traced_prompt(path: str | Path, index: int) -> Record:
    """Return record ``index`` (from 0) of a trace file; the other lines are only counted.

    Raises
    ------
    UserError
        As `read_trace`, or if there is no such record (says how many there are).
    """
    count = 0
    for line, text in trace_lines(path):
        if count == index:
            return parse_record(path, line, text)
        count += 1
    if not count:
        raise empty(path)
    raise UserError(
        f"there is no prompt {index} in {path}: it has {count}",
        f"choose one of 0 to {count - 1} with --prompt",
    )


def empty(path: str | Path) -> UserError:
    """Return the error of a file without records."""
    return UserError(f"the trace {path} is empty", FIX)


def trace_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of every line that is not blank."""
    try:
        with Path(path).open(encoding="utf-8", newline="\n") as source:
            for number, line in enumerate(source, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UserError(f"the trace {path} cannot be read: {error.strerror or error}", FIX) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"the trace {path} is no UTF-8 text: {error.reason} at byte {error.start}", FIX
        ) from error


def parse_record(path: str | Path, number: int, line: str) -> Record:
    """Return the record on a line; raises ``UserError`` naming file and line."""
    try:
        values = json.loads(line, parse_constant=_refuse)
        check_record(values)
    except (ValueError, RecursionError) as error:
        what = "the line is cut off" if not line.endswith("\n") else f"not valid JSON: {error}"
        raise UserError(f"{path}, line {number}: {what}", FIX) from error
    except _FaultError as fault:
        raise UserError(f"{path}, line {number}: {fault}", FIX) from None
    return values


def check_record(values: Any) -> None:
    """Raise ``_FaultError`` unless ``values`` is a record whose parts agree."""
    need(isinstance(values, dict) and values.get("kind") == KIND, 'no trace: there is no "kind": "trace"')
    version = values.get("schema_version")
    need(version == SCHEMA_VERSION, f"schema version {version}, this rmtools reads {SCHEMA_VERSION}")
    for name in ("n_particles", "pool_size"):
        need(is_count(values.get(name)) and values[name] > 0, f'"{name}" must be a count of at least 1')
    need(is_count(values.get("run")), '"run" must be a count')
    n, m = values["n_particles"], values["pool_size"]
    need(isinstance(values.get("prompt"), str), '"prompt" must be a text')
    need(isinstance(values.get("sampler"), dict), '"sampler" must be an object')
    root = values.get("root")
    need(
        isinstance(root, dict)
        and root.get("id") == 0
        and "log_value" in root
        and is_number(root["log_value"]),
        '"root" must have id 0 and a log value',
    )
    need(isinstance(values.get("steps"), list), '"steps" must be a list')
    before = {0: n}
    for t, step in enumerate(values["steps"]):
        try:
            before = check_step(step, n, m, before)
        except _FaultError as fault:
            raise _FaultError(f"step {t + 1}: {fault}") from None
    check_end(values, n)


def check_end(values: Mapping[str, Any], n: int) -> None:
    """Raise ``_FaultError`` unless the figures of the final particles are there."""
    for name in ("rewards", "log_z", "draw", "argmax"):
        need(name in values, f'there is no "{name}"')
    check_list(values, "log_weights", n, is_number)
    rewards = values["rewards"]
    rewarded = rewards is None or (is_list(rewards, n, is_number) and None not in rewards)
    need(rewarded, f'"rewards" must be {n} numbers, or null')
    need(is_number(values["log_z"]), '"log_z" must be a number or null')
    for name in ("draw", "argmax"):
        i = values[name]
        need(i is None or (is_count(i) and i < n), f'"{name}" must be one of 0 to {n - 1}, or null')


def check_step(step: Any, n: int, m: int, before: Mapping[int, int]) -> dict[int, int]:
    """Raise ``_FaultError`` unless a step is whole and continues the prefixes of the one before; return id: copies."""
    need(isinstance(step, dict) and isinstance(step.get("nodes"), list), '"nodes" must be a list')
    for node in step["nodes"]:
        check_node(node, before)
    copies = {node["id"]: node["copies"] for node in step["nodes"]}
    need(len(copies) == len(step["nodes"]), "two nodes have one id")
    check_list(step, "candidates", n * m, lambda i: is_count(i) and i in copies)
    check_list(step, "particles", n, lambda i: is_count(i) and i in copies)
    check_list(step, "ancestors", n, lambda i: is_count(i) and i < n)
    check_list(step, "log_increments", n, is_number)
    kept = Counter(step["particles"])
    need(all(kept[i] == c for i, c in copies.items()), '"copies" do not count "particles"')
    need(is_number(step.get("ess")) and step.get("ess") is not None, '"ess" must be a number')
    need(isinstance(step.get("resampled"), bool), '"resampled" must be true or false')
    need(is_count(step.get("unique_ancestors")), '"unique_ancestors" must be a count')
    return copies


def check_node(node: Any, before: Mapping[int, int]) -> None:
    """Raise ``_FaultError`` unless a node is whole and continues, or waits at, a prefix that particles were at."""
    need(
        isinstance(node, dict) and is_count(node.get("id")) and is_count(node.get("parent")),
        "a node has no id and parent",
    )
    at = f"node {node['id']}"
    need(isinstance(node.get("text"), str), f"{at} has no text")
    need("log_value" in node and is_number(node["log_value"]), f"{at} has no log value")
    need(isinstance(node.get("ended"), bool), f'{at}: "ended" must be true or false')
    need(is_count(node.get("copies")), f"{at} has no copies")
    waits = node["id"] in before
    need(not waits or node["ended"], f"{at} is there twice and has not ended")
    need(before.get(node["id"] if waits else node["parent"], 0) > 0, f"{at} continues no particle")


def check_list(values: Mapping[str, Any], name: str, length: int, is_one: Any) -> None:
    """Raise ``_FaultError`` unless a field is a list of ``length`` of what ``is_one`` accepts."""
    need(is_list(values.get(name), length, is_one), f'"{name}" must be a list of {length} fitting values')


def is_list(values: Any, length: int, is_one: Any) -> bool:
    """Whether ``values`` is a list of ``length`` of what ``is_one`` accepts."""
    return isinstance(values, list) and len(values) == length and all(is_one(x) for x in values)


def is_count(value: Any) -> bool:
    """Whether ``value`` is an integer of at least 0, no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number or null."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value is None
    return abs(value) < LARGEST


def need(holds: bool, what: str) -> None:
    """Raise ``_FaultError`` where something does not hold."""
    if not holds:
        raise _FaultError(what)


def _refuse(constant: str) -> NoReturn:
    raise _FaultError(f"{constant} is no JSON number")
