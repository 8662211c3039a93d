"""Where a text that joins a question and its first step is cut."""

import re

from rmtools.data.readers.row import Options, RowError


def split_question(joined: str, field: str, options: Options) -> tuple[str, str]:
    """Return question and first step: the step begins at the first match of ``options.first_step``.

    >>> split_question("How much is 1 + 1? Step 1: It is 2.", "text", Options())
    ('How much is 1 + 1?', 'Step 1: It is 2.')

    Raises
    ------
    RowError
        If there is no match, or nothing before or in it: the two cannot be told apart, and are not guessed.
    """
    found = re.search(options.first_step, joined)
    if found is None or not joined[: found.start()].strip() or not joined[found.start() :].strip():
        raise RowError(
            field, f"does not show where the first step begins: no {options.first_step!r} after a question"
        )
    return joined[: found.start()].rstrip(), joined[found.start() :]
