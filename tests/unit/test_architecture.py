"""Arrows between the rooms point down, and no circle exists, also inside a room."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

import rmtools

PACKAGE = Path(rmtools.__file__).parent
# From the ground up; a room imports from itself and from floors below its own (docs/architecture.md).
FLOORS = (
    ("errors", "seeds"),
    ("files", "summary"),
    ("codec",),
    ("plots",),
    ("particles",),
    ("exact",),
    ("stats",),
    ("core",),
    ("lm",),
    ("serving", "adapters", "data"),
    ("sampling",),
    ("jobs",),
    ("training", "auditing", "evaluation", "testing"),
    ("verify",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Every module with the modules it imports, also inside functions and for type checkers."""
    names = {
        ".".join(("rmtools", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in PACKAGE.rglob("*.py")
    }
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                ends = [f"{node.module}.{alias.name}" for alias in node.names]
                found[name] |= {end if end in names else node.module for end in ends} & names.keys()
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & names.keys()
        found[name] -= {"rmtools", name}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor():
    assert {room(name) for name in arrows() if name != "rmtools"} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_arrows_point_down(name):
    up = {
        f"{module} -> {other}"
        for module, others in arrows().items()
        if module != "rmtools" and room(module) == name
        for other in others
        if room(other) != name and FLOOR[room(other)] >= FLOOR[name]
    }
    assert not up


def test_no_circles():
    """`static_order` raises CycleError, which names the modules."""
    assert set(graphlib.TopologicalSorter(arrows()).static_order()) >= arrows().keys()


LONGEST, MOST_PARAMETERS = 80, 8
# What users call with keywords; every other function groups its arguments into dataclasses.
FACE = {"audit", "collect_rollouts", "load_value_model", "sample", "sample_prompts", "smc"}


def functions() -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (f"{path.relative_to(PACKAGE)}: {node.name}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_no_function_is_long():
    """Decorators and docstrings count."""
    long = []
    for name, node in functions():
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if (lines := (node.end_lineno or first) - first + 1) > LONGEST:
            long.append(f"{name} has {lines} lines")
    assert not long


def test_no_function_has_many_parameters():
    many = []
    for name, node in functions():
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([p for p in parameters if p.arg not in ("self", "cls")])
        if count > MOST_PARAMETERS and not name.startswith("cli") and node.name not in FACE:
            many.append(f"{name} has {count} parameters")
    assert not many
