"""The audit in a checkpoint's model card: one section, replaced by the next audit."""

from pathlib import Path

from rmtools.files import write_text

CARD_FILE = "README.md"
BEGIN, END = "<!-- rmtools audit -->", "<!-- end of rmtools audit -->"


def write_card(checkpoint: Path, markdown: str) -> Path:
    """Put ``markdown`` into the checkpoint's README.md, in place of an earlier audit; the rest of it is kept.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    UserError
        If it cannot be written; what stood there before is kept.
    """
    path = Path(checkpoint) / CARD_FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    section = f"{BEGIN}\n\n{markdown.strip()}\n\n{END}"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        whole = f"{before}{section}{after}"
    else:
        whole = f"{text.rstrip()}\n\n{section}\n" if text.strip() else f"{section}\n"
    write_text(path, whole)
    return path
