"""The public face: names, laziness, types, examples, and the five lines of the README."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import statistics
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import rmtools as rm

ROOT = Path(rm.__file__).parents[1]


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, where nothing is imported yet."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )


def test_names():
    assert len(rm.__all__) <= 30
    assert rm.__all__ == sorted(set(rm.__all__))
    assert set(rm.__all__) <= set(dir(rm))
    rooms = {module.name for module in pkgutil.iter_modules(rm.__path__)}
    assert not rooms & set(rm.__all__)
    assert all(name in rm.__doc__ for name in rm.__all__)


def test_the_imports_for_type_checkers_are_those_made():
    tree = ast.parse(inspect.getsource(rm))
    [block] = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    imports = {a.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert sorted(imports) == rm.__all__
    for name, module in imports.items():
        assert getattr(rm, name) is getattr(importlib.import_module(module), name)


@pytest.mark.filterwarnings("ignore")
def test_every_name_survives_the_import_of_every_module():
    """A submodule of the same name would take the place of the face's object when it is imported."""
    for module in pkgutil.walk_packages(rm.__path__, "rmtools."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name, module in rm._HOME.items():
        home = importlib.import_module(f"rmtools.{module}")
        assert getattr(rm, name) is (home if name == "families" else getattr(home, name)), name


def test_import_is_lazy():
    found = run("import sys, rmtools; print(*sorted({m.partition('.')[0] for m in sys.modules}))")
    assert not {"numpy", "torch", "transformers", "scipy", "pandas", "matplotlib"} & set(found.stdout.split())
    found = run("import sys, rmtools; rmtools.smc, rmtools.solve; print('torch' in sys.modules)")
    assert found.stdout == "False\n"


def test_import_costs_little():
    """Processor time, which other work on the machine leaves alone; medians of interleaved runs. The promise is 50 ms."""

    def seconds(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    pairs = [(seconds("pass"), seconds("import rmtools")) for _ in range(9)]
    assert statistics.median(own - empty for empty, own in pairs) < 0.05


def test_unknown_names_tell_the_nearest():
    with pytest.raises(AttributeError, match="did you mean PRMTrainer") as error:
        rm.PrmTrainr  # noqa: B018
    assert error.value.name == "PrmTrainr"
    with pytest.raises(AttributeError, match="load_rollouts"):
        rm.zzz  # noqa: B018
    assert not hasattr(rm, "__wrapped__")


def test_a_missing_package_is_named():
    found = run(
        """
        import sys
        sys.modules["torch"] = None
        import rmtools
        rmtools.smc
        try:
            rmtools.sample
        except ModuleNotFoundError as error:
            print(error.name, "|", error)
        """
    )
    name, text = found.stdout.split(" | ")
    assert name == "torch"
    assert "rmtools.sample needs the package torch" in text
    assert "pip install" in text


def test_types_are_checked():
    """`make lint` checks face_types.py, where every name has its own type and a wrong argument is an error."""
    program = Path(__file__).with_name("face_types.py")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert str(program.relative_to(ROOT)) in settings["files"]
    assert settings["warn_unused_ignores"]
    text = program.read_text()
    assert all(re.search(rf"\brm\.{name}\b", text) for name in rm.__all__)


@pytest.fixture
def workspace(tmp_path, monkeypatch, policy_folder, value_folder, rollouts_folder, prompts):
    """A working folder as the examples assume it: policy, prm, rollouts, prompts.jsonl."""
    for name, target in (("policy", policy_folder), ("prm", value_folder), ("rollouts", rollouts_folder)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def rollouts_folder(tmp_path_factory, policy, task):
    folder = tmp_path_factory.mktemp("face") / "rollouts"
    rm.collect_rollouts(policy, 24, task=task, trajectories=4, children=3, completions=2, out=folder)
    return folder


@pytest.mark.parametrize("name", rm.__all__)
@pytest.mark.filterwarnings("ignore")
def test_examples(name, workspace, task, capsys):
    """Each name has a docstring of its own whose example shows what it returns."""
    value = getattr(rm, name)
    text = value.__doc__ or ""
    assert text.strip()
    assert not text.startswith(f"{name}(")  # what dataclass writes where nothing else is
    names = vars(value) if isinstance(value, ModuleType) else vars(sys.modules[value.__module__])
    example = doctest.DocTestParser().get_doctest(text, {**names, "task": task}, f"rmtools.{name}", None, 0)
    shown = [e for e in example.examples if e.want and doctest.SKIP not in e.options]
    assert shown, f"rmtools.{name} has no example that shows a result"
    assert any(f"rm.{name}" in e.source for e in example.examples)
    with contextlib.redirect_stderr(io.StringIO()):
        failed, attempted = doctest.DocTestRunner().run(example)
    assert attempted
    assert not failed, capsys.readouterr().out


def test_the_modules_example():
    assert doctest.testmod(rm).attempted
    assert not doctest.testmod(rm).failed


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def printed(block: str) -> str:
    """Return what the README says a block prints: the indented lines that follow it."""
    after = (ROOT / "README.md").read_text(encoding="utf-8").partition(block + "```\n")[2]
    lines = after.lstrip("\n").split("\n\n")[0].splitlines()
    return "".join(line[4:] + "\n" for line in lines if line.startswith("    "))


def test_readme_on_an_exact_model(capsys):
    block = next(b for b in python_blocks() if "persistent" in b)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed(block)


@pytest.mark.filterwarnings("ignore")
def test_readme_five_lines(workspace, capsys):
    """As it stands in the README, on the tiny models of the tests."""
    block = next(b for b in python_blocks() if "PRMTrainer" in b)
    (workspace / "prm").unlink()
    quickstart = workspace / "runs/quickstart"
    (quickstart / "samples").mkdir(parents=True)
    (quickstart / "rollouts").mkdir()
    (quickstart / "policy").symlink_to(workspace / "policy")
    for part in ("train", "audit"):
        (quickstart / "rollouts" / part).symlink_to(workspace / "rollouts")
    (quickstart / "samples/prompts.jsonl").symlink_to(workspace / "prompts.jsonl")
    exec(compile(block.replace("max_steps=50", "max_steps=3"), "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert (workspace / "prm/rmtools.json").exists()
    assert "particles" in out
    assert out.rstrip("\n").splitlines()[-1].startswith(("s ", "d ", "u ", "F"))


@pytest.mark.filterwarnings("ignore")
def test_readme_audit(workspace, capsys, monkeypatch):
    block = next(b for b in python_blocks() if "compare=" in b)
    folder = workspace / "elsewhere"
    (folder / "rollouts").mkdir(parents=True)
    (folder / "rollouts/audit").symlink_to(workspace / "rollouts")
    for name, target in (("policy", "policy"), ("prm", "prm"), ("other-prm", "prm")):
        (folder / name).symlink_to(workspace / target)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert [*names["report"].pairs] == ["compare 1"]
    assert "compare 1" in capsys.readouterr().out


class TestSample:
    """`rm.sample` against the command, and its refusals."""

    @pytest.mark.parametrize(
        "given",
        [
            {"n_particles": 6},
            {"algorithm": "best-of-n", "n_particles": 4, "terminal": "verifier"},
            {"algorithm": "mh", "pool_size": 2, "mh_steps": 2},
        ],
    )
    def test_records_are_those_of_the_command(self, given, workspace):
        from typer.testing import CliRunner

        from rmtools.cli.main import app

        flags = [f"--{k.replace('_', '-')}={v}" for k, v in given.items()]
        found = CliRunner().invoke(
            app, ["sample", "--model", "prm", "--prompts", "prompts.jsonl", "--seed", "3", *flags]
        )
        assert found.exit_code == 0, found.output
        lines = [json.loads(line) for line in Path("samples.jsonl").read_text().splitlines()]
        samples = rm.sample("prm", rm.load_prompts("prompts.jsonl"), seed=3, **given)
        for record in (*lines, *(p.record for p in samples)):
            assert record["cost"].pop("seconds") > 0
        assert [p.record for p in samples] == [
            {k: v for k, v in line.items() if k != "provenance"} for line in lines
        ]

    def test_a_scorer_and_a_policy_in_memory(self, workspace, policy, value, prompts, task):
        named = rm.sample("prm", prompts[:3], n_particles=4, policy=policy)
        assert [p.rewards is not None for p in named] == [True] * 3
        given = rm.sample(value, prompts[:3], n_particles=4, policy=policy)
        assert [p.steps for p in given] == [p.steps for p in named]
        assert all(p.rewards is None for p in given)
        judged = rm.sample(value, prompts[:3], n_particles=4, policy=policy, task=task)
        assert [p.rewards.tolist() for p in judged] == [p.rewards.tolist() for p in named]

    def test_results(self, workspace, prompts):
        samples = rm.sample("prm", prompts[:6], n_particles=4, trace=True)
        first = samples[0]
        assert len(str(samples).splitlines()) <= 12
        assert len(str(first).splitlines()) <= 12
        assert first.best == "".join(first.steps[first.chosen])
        np.testing.assert_allclose(first.weights.sum(), 1)
        frame = samples.to_frame()
        assert frame.columns[0] == "prompt"
        assert frame.groupby("prompt").size().tolist() == [4] * 6
        assert frame[frame.chosen].text.tolist() == samples.best
        for result in (samples, samples[:2], first):
            assert "<table" in result._repr_html_()
            assert result.plot().get_size_inches().min() > 1
        assert isinstance(samples[:2], rm.Samples)

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"prompts": "a text"}, "list of prompts"),
            ({"prompts": []}, "empty"),
            ({"prompts": [3]}, "prompt 0"),
            ({"prompts": [{"text": "a"}]}, "prompt 0"),
            ({"n_particles": 2.5}, "n_particles"),
            ({"n_particles": 0}, "n_particles"),
            ({"seed": -1}, "seed"),
            ({"seed": "1"}, "seed"),
            ({"model": 3}, "model"),
            ({"model": "nowhere"}, "nowhere"),
            ({"policy": 3}, "policy"),
            ({"terminal": "end"}, "terminal"),
            ({"algorithm": "smcc"}, "algorithm"),
            ({"task": "crosing"}, "crosing"),
            ({"observe": 3}, "observe"),
            ({"model": object(), "policy": "policy"}, "steps, tilt, name, start, advance"),
        ],
    )
    def test_wrong_arguments(self, change, word, workspace, prompts):
        arguments = {"model": "prm", "prompts": prompts[:1], "n_particles": 2} | change
        with pytest.raises(rm.UserError, match=word):
            rm.sample(**arguments)

    def test_an_unknown_option_lists_the_known_ones(self):
        with pytest.raises(TypeError, match=r"n_particle'.*pool_size"):
            rm.sample("prm", ["a"], n_particle=3)
        with pytest.raises(TypeError, match=r"particles'.*nearest is 'n_particles'"):
            rm.sample("prm", ["a"], particles=3)

    def test_a_scorer_needs_a_policy(self, value, prompts):
        with pytest.raises(rm.UserError, match="policy"):
            rm.sample(value, prompts[:1])


class TestCollect:
    """`rm.collect_rollouts` in memory, into a folder, and by the command."""

    def test_rows_are_those_of_the_command(self, workspace, task):
        from typer.testing import CliRunner

        from rmtools.cli.main import app

        flags = "--horizon 3 --prompts 6 --trajectories 2 --children 3 --max-step-tokens 6 --seed 5 --out by-command"
        found = CliRunner().invoke(app, ["rollout", "--policy", "policy", *flags.split()])
        assert found.exit_code == 0, found.output
        counts = {"trajectories": 2, "children": 3, "seed": 5, "max_step_tokens": 6}
        own = rm.collect_rollouts("policy", 6, task=task, **counts)
        folder = rm.collect_rollouts("policy", 6, task=task, **counts, out="by-function")
        command = rm.load_rollouts("by-command")
        assert list(own) == list(command) == list(folder)
        assert own.metadata == command.metadata == folder.metadata

    def test_wrong_arguments(self, policy, task, prompts):
        for change, word in (
            ({"prompts": 0}, "prompts"),
            ({"prompts": "prompts.jsonl"}, "load_prompts"),
            ({"prompts": [None]}, "prompt 0"),
            ({"children": 0}, "children"),
            ({"seed": 2**32}, "seed"),
            ({"task": "crosing"}, "crosing"),
        ):
            with pytest.raises(rm.UserError, match=word):
                rm.collect_rollouts(policy, **{"prompts": prompts[:1], "task": task} | change)


def test_a_prompts_file_without_prompts(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    for name, word in (("empty.jsonl", "empty"), ("rows.jsonl", "line 1"), ("none.jsonl", "cannot be read")):
        with pytest.raises(rm.UserError, match=word):
            rm.load_prompts(tmp_path / name)
    with pytest.raises(rm.UserError, match="list"):
        rm.load_prompts([{"prompt": "a"}])


RESULTS = ("AuditReport", "ExactResult", "Rollouts", "SMCResult", "Samples")


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.filterwarnings("ignore")
def test_results_print_in_a_few_lines(name, workspace, policy, value):
    from matplotlib.figure import Figure

    model = rm.families.persistent(horizon=4, eps=0.1)
    result = {
        "AuditReport": lambda: rm.audit("rollouts", "prm"),
        "ExactResult": lambda: rm.solve(model),
        "Rollouts": lambda: rm.load_rollouts("rollouts"),
        "SMCResult": lambda: rm.smc(model.particles(3), 8, rng=np.random.default_rng(0)),
        "Samples": lambda: rm.sample("prm", rm.load_prompts("prompts.jsonl"), n_particles=4),
    }[name]()
    assert type(result) is getattr(rm, name)
    for text in (str(result), repr(result)):
        assert 0 < len(text.splitlines()) <= (20 if name == "AuditReport" else 12)
        assert max(map(len, text.splitlines())) <= 160
    assert result._repr_html_().startswith("<")
    assert len(result.to_frame()) > 0
    assert isinstance(result.plot(), Figure)


def test_families_is_a_module():
    assert isinstance(rm.families, ModuleType)
