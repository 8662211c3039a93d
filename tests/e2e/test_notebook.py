from pathlib import Path

import jupytext
import nbclient
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.py")), ids=lambda p: p.stem)
def test_notebook_runs(path: Path) -> None:
    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = [
        o.text
        for c in notebook.cells
        if c.cell_type == "code"
        for o in c.outputs
        if o.output_type == "stream"
    ]
    assert any("sigma^2" in text for text in printed)


def test_pairs_have_the_same_source() -> None:
    for path in NOTEBOOKS.glob("*.py"):
        paired, source = jupytext.read(path.with_suffix(".ipynb")), jupytext.read(path)
        assert [c.source for c in paired.cells] == [c.source for c in source.cells]
        assert any(c.get("outputs") for c in paired.cells), f"{path.stem}.ipynb is not executed"
