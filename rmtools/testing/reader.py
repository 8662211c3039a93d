"""The contract of a reader of a public format: its rows, and what it refuses."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rmtools.data.readers.row import Dropped, Field, Format, Options, RowError
from rmtools.data.rollouts import Rollout, parse_row
from rmtools.errors import UserError
from rmtools.testing.laws import require


def check_reader(
    form: Format,
    rows: Sequence[Mapping[str, Any]],
    *,
    steps: Sequence[Sequence[str]] | None = None,
    rewards: Sequence[Sequence[float | None]] | None = None,
    options: Options | None = None,
) -> None:
    """Check the contract of a reader, declared with :func:`rmtools.data.readers.row.public_format`.

    A row of the format becomes valid rollouts, or is reported as dropped, and is never lost in silence; the text of its steps
    keeps its order; a row is read the same whatever was read before, and stays as it was; a row without a field of the format
    is refused with ``RowError``. Without ``steps`` and ``rewards``, a reader that drops every row or turns rewards round passes.

    Parameters
    ----------
    form : Format
    rows : sequence of mapping
        Right rows of the format.
    steps : sequence of sequence of str, optional
        For each row, texts that its rollouts' steps must hold in this order.
    rewards : sequence of sequence of (float or None), optional
        For each row, the rewards of its rollouts in order, and so their number.
    options : Options, optional

    Raises
    ------
    AssertionError
        Names the law, and the row.
    """
    options = options or Options()
    given = copy.deepcopy(list(rows))
    found = [list(form.read(Field(row), options)) for row in rows]
    require(list(rows) == given, "a reader leaves its rows as they were")
    again = [list(form.read(Field(row), options)) for row in reversed(rows)][::-1]
    for i, (row, one, two) in enumerate(zip(rows, found, again, strict=True)):
        require(form.fits(row), f"row {i} has the fields of the format {form.name}: {', '.join(form.fields)}")
        require(one == two, f"row {i} is read alike whatever was read before: {one}, then {two}")
        require(one, f"row {i} becomes rollouts or Dropped, and is never lost in silence")
        kept = [x for x in one if isinstance(x, Rollout)]
        require(
            all(isinstance(x, Rollout | Dropped) for x in one), f"row {i} becomes rollouts or Dropped: {one}"
        )
        for rollout in kept:
            try:
                same = parse_row(asdict(rollout), f"row {i}") == rollout
            except UserError as error:
                raise AssertionError(f"rollouts are valid: {error}") from error
            require(same, f"rollouts are valid: row {i} changes when it is written and read")
        if rewards is not None:
            got = [rollout.reward for rollout in kept]
            require(got == list(rewards[i]), f"row {i} has rollouts of rewards {rewards[i]}, got {got}")
        text = "".join(s for rollout in kept for s in rollout.steps)
        for piece in steps[i] if steps is not None else ():
            require(piece in text, f"steps keep their order and none is lost: row {i} lacks {piece!r} there")
            text = text[text.index(piece) + len(piece) :]
        for name in form.fields:
            _check_refused(form, {n: v for n, v in row.items() if n != name}, name, options)


def _check_refused(form: Format, row: Mapping[str, Any], name: str, options: Options) -> None:
    """Check that a row without the field ``name`` is refused, if the format needs it, with an error that names row and field."""
    try:
        found = list(form.read(Field(row), options))
    except RowError:
        return
    except Exception as error:
        raise AssertionError(f"a row without {name} is refused with RowError, got {error!r}") from error
    read = any(isinstance(x, Rollout) for x in found) and not form.fits(row)
    require(not read, f"a row without {name} is refused with RowError, and was read")
