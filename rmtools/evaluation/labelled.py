"""Rows of ProcessBench and PRMBench as solutions with their labels, each checked by its format's reader.

The subset of a ProcessBench row is what its id begins with ("gsm8k-12": gsm8k), or else the name of its file.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtools.data.readers.files import read_rows
from rmtools.data.readers.read import READERS
from rmtools.data.readers.row import Field, Options, RowError
from rmtools.data.rollouts import Rollout
from rmtools.errors import UserError

NUMBERED = re.compile(r"(?P<subset>[A-Za-z][\w-]*?)[-_]\d+")
CORRECT = "correct"
"""Class of PRMBench's rows without an error."""


@dataclass(frozen=True)
class LabelledSteps:
    """A solution whose steps people judged.

    Attributes
    ----------
    rollout : Rollout
        Problem and steps, as the reader of the format makes them.
    wrong : tuple of int
        Depths of the wrong steps from 0: of ProcessBench the first one only, () if all are right.
    group : str
        Subset (ProcessBench) or class (PRMBench).
    problem : str
        What is resampled as one: the problem's text.
    """

    rollout: Rollout
    wrong: tuple[int, ...]
    group: str
    problem: str


def read_processbench(paths: Sequence[str | Path], delimiter: str = "\n") -> list[LabelledSteps]:
    """Read files of ProcessBench (arXiv 2412.06559).

    Raises
    ------
    UserError
        If a file cannot be read, has no row or rows of another format, or a label is none of a row's steps: row and field are
        named.
    """
    found = []
    for row, rollout, path in _rows(paths, "processbench", delimiter):
        match = NUMBERED.fullmatch(str(row.get("id", "")))
        first = row["label"]
        wrong = () if first < 0 else (first,)
        found.append(
            LabelledSteps(rollout, wrong, match["subset"] if match else path.stem, row["problem"].strip())
        )
    return found


def read_prmbench(paths: Sequence[str | Path], delimiter: str = "\n") -> list[LabelledSteps]:
    """Read files of PRMBench (arXiv 2501.03124); errors as `read_processbench`.

    A row is its modified process; its class is ``classification``, "unclassified" without that field.
    """
    found = []
    for row, rollout, _ in _rows(paths, "prmbench", delimiter):
        wrong = tuple(sorted({i - 1 for i in row["error_steps"]}))
        problem = row.get("original_question") or row["modified_question"]
        group = str(row.get("classification") or "unclassified")
        found.append(LabelledSteps(rollout, wrong, group, str(problem).strip()))
    return found


def _rows(
    paths: Sequence[str | Path], name: str, delimiter: str
) -> Iterator[tuple[dict[str, Any], Rollout, Path]]:
    form, options, count = READERS[name], Options(delimiter=delimiter), 0
    for path in map(Path, paths):
        for place, row in read_rows(path):
            count += 1
            if not form.names(row):
                there = (
                    f"the fields {', '.join(row)}" if isinstance(row, dict) else f"no object but {row!r:.40}"
                )
                missing = [f for f in form.fields if not isinstance(row, dict) or f not in row]
                raise UserError(
                    f"{place} is no row of {name}: it has {there}, and lacks {', '.join(missing)}",
                    f"name a file of {name}: its rows have {', '.join(form.fields)}",
                )
            try:
                (rollout,) = form.read(Field(row), options)
            except RowError as error:
                raise UserError(
                    f"{place}{error}", f"repair the row, or leave it out; docs/formats.md has {name}"
                ) from None
            if isinstance(rollout, Rollout):
                yield row, rollout, path
    if not count:
        raise UserError(f"{', '.join(map(str, paths))} holds no row", f"name a file of {name}")
