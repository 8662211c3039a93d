"""The report of an evaluation: ``evaluate.json``, one page to look at (``evaluate.html``), the same as Markdown, and a few lines.

Markdown and page are two forms of the same sections.
"""

import json
from pathlib import Path
from typing import TypeAlias

from rmtools.codec import VERSION, to_json
from rmtools.evaluation.best_of_n import BestOfN
from rmtools.evaluation.calibration import Calibration
from rmtools.evaluation.pages import best_of_n, calibration, prmbench, processbench
from rmtools.evaluation.pages.layout import EvaluationPage
from rmtools.evaluation.prmbench import PRMBench
from rmtools.evaluation.processbench import ProcessBench
from rmtools.files import json_text, replacing_files
from rmtools.plots.page import markdown, page
from rmtools.summary import Summary

Evaluation: TypeAlias = BestOfN | ProcessBench | PRMBench | Calibration
JSON_FILE, PAGE_FILE, TEXT_FILE = "evaluate.json", "evaluate.html", "evaluate.md"
EVALUATION_VERSION = 1


def write_evaluation(found: Evaluation, out: Path) -> None:
    """Write ``evaluate.json``, ``evaluate.md`` and ``evaluate.html`` into the folder ``out``, all or none."""
    own = page_of(found)
    sections = own.all_sections(_provenance(found))
    with replacing_files(Path(out), last=JSON_FILE) as new:
        (new / PAGE_FILE).write_text(page(own.title, sections), encoding="utf-8")
        (new / TEXT_FILE).write_text(markdown(own.title, sections), encoding="utf-8")
        (new / JSON_FILE).write_text(
            json_text({VERSION: EVALUATION_VERSION, **to_json(found)}), encoding="utf-8"
        )


def summary(found: Evaluation) -> Summary:
    """Return the lines that answer, for the terminal."""
    own = page_of(found)
    return Summary(own.title, {what: f"{figure}  {remark}".rstrip() for what, figure, remark, _ in own.facts})


def page_of(found: Evaluation) -> EvaluationPage:
    """Return the page of an evaluation of any kind."""
    if isinstance(found, BestOfN):
        return best_of_n.page_of(found)
    if isinstance(found, ProcessBench):
        return processbench.page_of(found)
    return prmbench.page_of(found) if isinstance(found, PRMBench) else calibration.page_of(found)


def _provenance(found: Evaluation) -> tuple[tuple[str, str], ...]:
    rows = {"file": found.source, **found.provenance}
    shown = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in rows.items()}
    return tuple((name.replace("_", " "), text) for name, text in shown.items() if text)
