"""Chat messages in files: ``[{"role": "user", "content": "6 * 7?"}]``, with texts or lists of text parts as content."""

from typing import Any

from rmtools.errors import UserError
from rmtools.lm.prompt_format import Turn

ROLES = ("system", "user", "assistant")


def read_turns(given: Any, where: str) -> tuple[Turn, ...]:
    """Return chat messages as turns; raise ``UserError`` unless each has a role and a text, and the user speaks last."""
    turns = []
    for i, message in enumerate(given if isinstance(given, list) else []):
        values = message if isinstance(message, dict) else {}
        role, content = values.get("role"), values.get("content")
        if role not in ROLES:
            raise UserError(
                f"{where}: message {i} has the role {role!r}",
                f"the roles of a prompt are: {', '.join(ROLES)}",
            )
        if isinstance(content, list) and all(
            isinstance(x, dict) and x.get("type") == "text" for x in content
        ):
            content = "".join(str(x.get("text", "")) for x in content)
        if not isinstance(content, str) or not content.strip():
            raise UserError(f'{where}: message {i} has no text "content"', "write it as text")
        if role == "system" and i:
            raise UserError(f"{where}: message {i} is a system turn behind others", "put it first")
        turns.append((role, content))
    if not turns:
        raise UserError(f"{where} has no message", 'give [{"role": "user", "content": "…"}]')
    if turns[-1][0] != "user":
        raise UserError(
            f"{where}: the last message is the {turns[-1][0]}'s, and a prompt ends with a user's",
            "drop it if it is the solution; add the question if it is an example",
        )
    return tuple(turns)
