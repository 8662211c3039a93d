"""``rmtools report``: one page and one JSON file about a whole run."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as `make quickstart` writes it.")],
) -> None:
    """Summarise a run: success of three ways to sample, the audit, predicted against measured sigma^2, training."""
    from rmtools.verify.summary import write_summary

    for check in write_summary(run)["checks"]:
        value = "not available" if check["value"] is None else f"{check['value']:.4g}"
        print(f"{'holds' if check['holds'] else 'FAILS'}  {check['name']}: {value} ({check['limit']})")
    print(f"summary: {run / 'summary.json'}\nreport: {run / 'report.html'}")
