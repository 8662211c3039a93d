"""The token ids that a published PRM reads: those of the question, and of one step after the other.

A step has the same ids whatever follows it, and whether it is read with its solution or behind a cache.
"""

from typing import Any

from rmtools.errors import UserError
from rmtools.lm.formats.conventions import Convention
from rmtools.lm.prompt_format import FIXED_DATE, chat_template
from rmtools.lm.steps import NEXT, StepTokenizer

KNOWN = 100_000
# Stand for the texts of turns; a template changes none of them.
MARKS = ("QmarkA", "QmarkB", "QmarkC", "QmarkD")
BODY = "a."  # stands for what was read before


class Rendering:
    """The texts of a `Convention` in the ids of a PRM's own tokenizer.

    Parameters
    ----------
    convention : Convention
    steps : StepTokenizer
        Over the tokenizer of the PRM.
    name : str
        Of the PRM, for messages.

    Raises
    ------
    UserError
        If the tokenizer has no chat template and the convention needs one, or the tag is not one token of it.
    """

    def __init__(self, convention: Convention, steps: StepTokenizer, name: str) -> None:
        self.convention = convention
        self.steps = steps
        self.name = name
        opening, _, closing = convention.step.partition("{step}")
        self._opening, self._between = opening, convention.between
        self._closing, self._verdict = closing, convention.verdict
        self._front = self._behind = ""
        self._lead = ""  # what a template writes between the end of a prompt and what the assistant says
        if convention.chat:
            self._read_template()
        self._known: dict[tuple[str, str, int], list[int]] = {}
        self.tag_id = self._tag()
        self._closing_ids = self._alone(self._closing)
        if convention.tag and convention.apart:
            self._closing_ids = self._closing_ids[-1:]
        self.verdict = self._ids(BODY + self._closing, self._verdict, "") if self._verdict else []

    def prompt(self, question: str) -> list[int]:
        """Return the ids of a question, at least one."""
        found = self._known.get((question, "", -1))
        if found is None:
            found = self._prompt(question)
            self._remember((question, "", -1), found)
        return found

    def step(self, question: str, step: str, k: int) -> list[int]:
        """Return the ids of the step with ``k`` steps before it; the last one is where it is read, unless there is a verdict."""
        key = (question if k == 0 else "", step, k)
        found = self._known.get(key)
        if found is None:
            found = self._step(question, step, k)
            self._remember(key, found)
        return found

    def label_ids(self) -> tuple[int, int]:
        """Return the tokens of a good and of a bad step; raise ``UserError`` if they do not differ."""
        found = []
        for label in self.convention.labels:
            ids = self._label(label)
            if len(ids) > 1 and self.convention.tag:
                raise UserError(
                    f"the label {label!r} of {self.name} is {len(ids)} tokens of its tokenizer, and one is read",
                    'name the right labels in a JSON file of the format, as "labels": [good, bad]',
                )
            found.append(ids[0])
        if found[0] == found[1]:
            good, bad = self.convention.labels
            raise UserError(
                f"the labels {good!r} and {bad!r} of {self.name} begin with the same token "
                f"({self.steps.step_text(found[:1])!r}): its law of the next token does not tell them apart",
                'choose labels that differ in their first token, as "labels": [good, bad] in a JSON file of the format',
            )
        return found[0], found[1]

    def _label(self, label: str) -> list[int]:
        if self._verdict:
            found = self.steps.between(self._verdict, self._lead + label, "")
            if found:
                return found
        return self._alone(label)

    def _read_template(self) -> None:
        """Read from the chat template what stands before, between and behind the texts."""
        a, b, c, d = MARKS
        how = self.convention.chat
        if how == "assistant":
            self._front, self._behind = self._parts([("user", a), ("assistant", b)], a, b)[:2]
        elif how == "user":
            self._front, behind = self._parts([("user", a)], a)
            header = self._parts([("user", a), ("assistant", b)], a, b)[1]
            self._verdict += behind
            self._lead = header.removeprefix(behind) if header.startswith(behind) else ""
        else:
            turns = [("user", a), ("assistant", b), ("user", c), ("assistant", d)]
            self._front, header, middle, again, _ = self._parts(turns, a, b, c, d)
            self._between += middle
            self._closing += again
            if header != again:
                raise UserError(
                    f"the chat template of {self.name} writes later turns in another way than the first: its steps cannot be "
                    "told apart",
                    "use the tokenizer that belongs to the reward model",
                )

    def _parts(self, turns: list[tuple[str, str]], *marks: str) -> list[str]:
        """Return the text of a conversation cut at its marks."""
        from jinja2 import TemplateError

        tokenizer: Any = self.steps.tokenizer
        template = chat_template(tokenizer)
        if not template:
            raise UserError(
                f"the format {self.convention.key} renders chats, and the tokenizer of {self.name} has no chat template",
                "use the tokenizer that belongs to the reward model, or another `prm_format`",
            )
        template = FIXED_DATE + template if "strftime_now" in template else template
        system = [("system", self.convention.system)] if self.convention.system else []
        messages = [{"role": role, "content": text} for role, text in [*system, *turns]]
        try:
            text = str(
                tokenizer.apply_chat_template(
                    messages,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=turns[-1][0] == "user",
                )
            )
        except TemplateError as error:
            raise UserError(
                f"the chat template of {self.name} refuses the turns of the format {self.convention.key}: {error}",
                "use the tokenizer that belongs to the reward model, or another `prm_format`",
            ) from error
        found = []
        for mark in marks:
            before, mark_found, text = text.partition(mark)
            if not mark_found:
                raise UserError(
                    f"the chat template of {self.name} drops a turn of the format {self.convention.key}",
                    "use the tokenizer that belongs to the reward model, or another `prm_format`",
                )
            found.append(before)
        return [*found, text]

    def _prompt_text(self, question: str) -> str:
        shown = self.convention.question.replace("{question}", question)
        return self._front + shown + (self._behind if self.convention.chat == "assistant" else "")

    def _prompt(self, question: str) -> list[int]:
        text = self._prompt_text(question)
        bos, how = self.steps.tokenizer.bos_token_id, self.convention.bos
        if not text:
            raise UserError(
                "a question is empty: the reward model has no text to read", "give every prompt some text"
            )
        if how == "usual":
            return self.steps.prompt_ids(text)
        if how == "written":
            return self._alone(str(self.steps.tokenizer.bos_token or "") + text)
        ids = self._alone(text)
        return ids if how == "never" or bos is None else [int(bos), *ids]

    def _step(self, question: str, step: str, k: int) -> list[int]:
        body = self._opening.replace("{k}", str(k + 1)) + step
        begin = self._between if k else self.convention.first
        if self.convention.apart:
            return [*(self._alone(body) if body else []), *self._closing_ids]
        left = BODY + self._closing if k else self._prompt_text(question)
        own = None if k else self.prompt(question)
        found = self._ids(left, begin + body + self._closing, self._verdict or self._between, own)
        if self.tag_id is not None and found[-1] != self.tag_id:
            raise UserError(
                f"the step {step[-60:]!r} takes the tag {self.convention.tag!r} of {self.name} into another token",
                "end steps with text",
            )
        return found

    def _ids(self, left: str, text: str, right: str, own: list[int] | None = None) -> list[int]:
        """Return the ids of a text between others; by itself if ``left`` would not keep its ids (``own``)."""
        for after in (right + NEXT, ""):
            read = self.steps.between(left, text, after, own)
            if read:
                return read
        return self.steps.step_ids(text)

    def _alone(self, text: str) -> list[int]:
        return list(self.steps.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _tag(self) -> int | None:
        """Return the id of the tag; raise ``UserError`` unless it is the same token wherever it stands."""
        tag = self.convention.tag
        if not tag or self.convention.apart:
            return None
        after = (self._between or "") + NEXT
        found = [self.steps.between(left, tag, right) for left in (BODY, "7", "a)") for right in (after, "")]
        ids = {tuple(f or ()) for f in found}
        if len(ids) != 1 or len(next(iter(ids))) != 1:
            seen = next((f for f in found if f and len(f) != 1), None)
            what = (
                f"{len(seen)} tokens ({', '.join(map(str, seen))})"
                if seen
                else "another token by its context"
            )
            raise UserError(
                f"the tag {tag!r} of the format {self.convention.key} is not one token of the tokenizer of {self.name}: "
                f"{what}",
                "name another `prm_format`; or a JSON file with the tag that the model was trained with, as the end of "
                '"step" and as "tag"',
            )
        return next(iter(ids))[0]

    def _remember(self, key: tuple[str, str, int], ids: list[int]) -> None:
        if len(self._known) < KNOWN:
            self._known[key] = ids
