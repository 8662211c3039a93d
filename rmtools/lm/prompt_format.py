r"""How a question becomes the text that models read: as it stands, or as a chat rendered by a tokenizer's template.

Prompts are rendered once, where they enter. Rollouts and checkpoints record the format, since the values of a model
trained on one format say nothing about prompts of another.

- ``raw``: the question as it stands. Every example of ``few_shot`` stands in front of it: its question, its solution
  without the newlines at its end, and a blank line.
- ``chat``: the turns ``system`` (if any), user and assistant for every example, and user (the question), rendered by the
  template, which also begins the assistant's turn. Texts lose the white space around them. A template that writes the
  date is given a fixed one.

>>> PromptRenderer(PromptFormat(few_shot=(("1 + 1?\n", "It is 2.\n"),)), None).render("2 + 2?\n")
'1 + 1?\nIt is 2.\n\n2 + 2?\n'
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from rmtools.errors import UserError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["raw", "chat"]
AskedKind = Literal["auto", "raw", "chat"]
KINDS = ("auto", "raw", "chat")
Turn = tuple[str, str]
"""Role (system, user or assistant) and text."""
Example = tuple[str, str]
"""Question and solution."""

# In front of a template that writes the date: it would make another prompt every day.
FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


@dataclass(frozen=True)
class PromptFormat:
    """How prompts are rendered.

    Attributes
    ----------
    kind : {"raw", "chat"}
    system : str
        Text of the system turn; "" for none.
    few_shot : tuple of (str, str)
        Examples in front of every question: question and solution.
    template : str
        Hash of the chat template; "" if raw.
    """

    kind: Kind = "raw"
    system: str = ""
    few_shot: tuple[Example, ...] = ()
    template: str = ""

    def __str__(self) -> str:
        parts = [f"system {_short(self.system)}"] if self.system else []
        if self.few_shot:
            many = "s" if len(self.few_shot) > 1 else ""
            parts.append(f"{len(self.few_shot)} few-shot example{many} ({_hash(json.dumps(self.few_shot))})")
        parts += [f"template {self.template}"] if self.template else []
        return f"{self.kind} with {', '.join(parts)}" if parts else self.kind


RAW = PromptFormat()


@dataclass(frozen=True)
class AskedFormat:
    """The format that a user asks for; None, and ``auto``: not given."""

    kind: AskedKind = "auto"
    system: str | None = None
    few_shot: tuple[Example, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown `prompt_format` {self.kind!r}", f"choose one of: {', '.join(KINDS)}")
        if self.system is not None and not isinstance(self.system, str):
            raise UserError(f"`system` must be text, got {type(self.system).__name__}", "pass one text")

    def chosen(self, form: PromptFormat, policy: str, otherwise: str = "prompt_format='raw'") -> str:
        """Return the line to say once if ``auto`` chose chat, else ""; ``otherwise`` chooses raw."""
        if self.kind != "auto" or form.kind == "raw":
            return ""
        return (
            f"prompts are rendered by the chat template of {policy or 'the policy'} (format: {form}); "
            f"{otherwise} takes them as they stand"
        )

    @property
    def given(self) -> bool:
        """Whether anything is asked for."""
        return self != AskedFormat()

    def agrees(self, form: PromptFormat) -> bool:
        """Return whether ``form`` is what is asked for, as far as anything is."""
        return (
            self.kind in ("auto", form.kind)
            and self.system in (None, form.system)
            and self.few_shot in (None, form.few_shot)
        )

    def resolve(
        self, tokenizer: "PreTrainedTokenizerBase", *, turns: bool = False, auto: Kind | None = None
    ) -> PromptFormat:
        """Return the format of prompts that nothing was trained on yet.

        ``auto`` is chat for prompts given as ``turns``; otherwise as the argument says, or chat if the tokenizer has a
        template. Raises ``UserError`` if chat is asked for without a template, or a system turn without chat.
        """
        kind = self.kind
        if kind == "auto":
            usual: Kind = auto or ("chat" if chat_template(tokenizer) else "raw")
            kind = "chat" if turns or self.system else usual
        if kind == "chat":
            why = "the prompts are chat messages" if turns and self.kind == "auto" else "chat is asked for"
            template = _require_template(tokenizer, why)
            return PromptFormat("chat", (self.system or "").strip(), self.few_shot or (), _hash(template))
        if self.system:
            raise UserError(
                "`system` is a turn of a chat, and `prompt_format` is raw",
                "leave `system` out, write its text into the prompts, or use `prompt_format` chat",
            )
        return PromptFormat("raw", few_shot=self.few_shot or ())

    def as_recorded(
        self, recorded: PromptFormat, tokenizer: "PreTrainedTokenizerBase", *, turns: bool = False
    ) -> PromptFormat:
        """Return the format that a checkpoint records; raise ``UserError`` if another one is asked for.

        Also if the ``tokenizer``, which renders the prompts, has another template, or prompts are given as ``turns`` and
        the checkpoint's are raw.
        """
        if turns and self.kind == "auto" and recorded.kind == "raw":
            raise UserError(
                "the prompts are chat messages, and the checkpoint was trained on raw prompts",
                "pass `prompt_format` raw to take what the user says as the prompt, or use a checkpoint of chat prompts",
            )
        kind = recorded.kind if self.kind == "auto" else self.kind
        system = recorded.system if kind == "chat" and self.system is None else (self.system or "").strip()
        wanted = PromptFormat(kind, system, recorded.few_shot if self.few_shot is None else self.few_shot)
        if kind == "chat":
            template = _require_template(tokenizer, f"the format of the prompts is {wanted}")
            wanted = replace(wanted, template=_hash(template))
        require_same_format(wanted, recorded, "the prompts'", asked=self.given)
        return wanted


def require_same_format(
    found: PromptFormat, recorded: PromptFormat, whose: str, *, asked: bool = False
) -> None:
    """Raise ``UserError`` if prompts are of another format than those a checkpoint was trained on."""
    if found == recorded:
        return
    if asked:
        fix = "leave `prompt_format`, `system` and `few_shot` out: the checkpoint's are the default"
    elif replace(found, template="") == replace(recorded, template=""):
        fix = "use the tokenizer of the policy that the checkpoint was trained for: its chat template is another"
    else:
        fix = "make rollouts with the checkpoint's `prompt_format`, `system` and `few_shot`, or train on such as these"
    raise UserError(
        f"{whose} format is {found}, the checkpoint's is {recorded}: its values are of other texts", fix
    )


class PromptRenderer:
    """Render prompts in one format.

    Parameters
    ----------
    form : PromptFormat
    tokenizer : transformers.PreTrainedTokenizerBase or None
        Its template is used; not needed for raw prompts.
    """

    def __init__(self, form: PromptFormat, tokenizer: "PreTrainedTokenizerBase | None") -> None:
        self.form = form
        self.tokenizer: Any = tokenizer
        self._marks: set[str] = set()
        if form.kind == "chat":
            written = self._apply([("user", "a")], "a user turn alone")
            known: Any = tokenizer
            special = (str(t) for t in known.added_tokens_decoder.values() if t.special)
            self._marks = {t for t in special if t in written}

    def render(self, question: str, turns: Sequence[Turn] = (), where: str = "a prompt") -> str:
        """Return the text of a prompt, given as a question or as chat turns, the last of them the user's.

        Raises
        ------
        UserError
            If turns have no raw form, the template refuses or drops one, or the question is rendered already; ``where``
            names the prompt.
        """
        if self.form.kind == "chat":
            return self._chat(turns or [("user", question)], where)
        if len(turns) > 1:
            raise UserError(
                f"{where} has {len(turns)} chat turns, and `prompt_format` is raw: only a single user turn has a raw form",
                "pass `prompt_format` chat, or write the prompt as one text",
            )
        return self._examples + question

    def question(self, text: str) -> str:
        """Return the question that `render` wrote into ``text``, with or without the special tokens in front of it.

        A text of several turns is returned as it is.
        """
        if self.form.kind == "raw":
            return text.removeprefix(self._examples)
        mark = "Qmark"
        front, _, behind = self.render(mark).partition(mark)
        if bos := str(getattr(self.tokenizer, "bos_token", None) or ""):
            front, text = front.removeprefix(bos), text.removeprefix(bos)
        whole = text.startswith(front) and text.endswith(behind)
        return text[len(front) : len(text) - len(behind)] if whole else text

    def written(self, text: str) -> bool:
        """Return whether a text is rendered already: it holds a special token that the template writes, or the examples."""
        if self.form.kind == "chat":
            return any(mark in text for mark in self._marks)
        return bool(self._examples) and text.startswith(self._examples)

    @property
    def _examples(self) -> str:
        """What stands in front of raw questions."""
        return "".join(q + s.rstrip("\n") + "\n\n" for q, s in self.form.few_shot)

    def _chat(self, turns: Sequence[Turn], where: str) -> str:
        own = [text for role, text in turns[:1] if role == "system"]
        if own and self.form.system:
            raise UserError(
                f"{where} has a system turn of its own, and `system` gives another",
                "leave `system` out, or the turn",
            )
        system = own[0] if own else self.form.system
        said = [(role, text.strip()) for role, text in turns[len(own) :]]
        shown = [t for q, s in self.form.few_shot for t in (("user", q.strip()), ("assistant", s.strip()))]
        for role, text in (("system", system), *shown, *said):
            if mark := next((m for m in self._marks if m in text), None):
                whose = f"the system turn of {where}" if role == "system" else where
                raise UserError(
                    f"{whose} holds {mark}, which the chat template writes around turns: it seems to be rendered already",
                    "pass `prompt_format` raw, or the text without the template",
                )
        what = "a system turn" if system else "these turns"
        found = self._apply([*([("system", system)] if system else []), *shown, *said], what)
        for name, text in (("the system turn", system.strip()), ("the question", said[-1][1])):
            if text not in found:
                raise UserError(
                    f"the chat template of {self._name} drops {name} of {where}",
                    "leave `system` out, or pass `prompt_format` raw",
                )
        return found

    def _apply(self, turns: Sequence[Turn], what: str) -> str:
        from jinja2 import TemplateError

        messages = [{"role": role, "content": text} for role, text in turns]
        template = chat_template(self.tokenizer)
        template = FIXED_DATE + template if "strftime_now" in template else template
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            )
        except TemplateError as error:
            fix = "leave `system` out and write its text into the questions, or pass `prompt_format` raw"
            raise UserError(
                f"the chat template of {self._name} refuses {what}: {reason(error)}",
                fix
                if what == "a system turn"
                else "begin with a user turn and alternate, or pass `prompt_format` raw",
            ) from error

    @property
    def _name(self) -> str:
        return str(self.tokenizer.name_or_path or "the tokenizer")


def read_questions(value: Any, form: PromptFormat, tokenizer: "PreTrainedTokenizerBase | None") -> None:
    """Let a published reward model, which renders questions itself, read them from prompts of this format."""
    if hasattr(value, "question_of"):
        value.question_of = PromptRenderer(form, tokenizer).question


def chat_template(tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """Return the chat template of a tokenizer (of several the default), "" if it has none."""
    found: Any = getattr(tokenizer, "chat_template", None)
    return str((found.get("default") if isinstance(found, dict) else found) or "")


def _require_template(tokenizer: "PreTrainedTokenizerBase", why: str) -> str:
    found = chat_template(tokenizer)
    if not found:
        raise UserError(
            f"{why}, and the tokenizer of {tokenizer.name_or_path or 'the policy'} has no chat template",
            "pass `prompt_format` raw, or name an instruction-tuned model, whose tokenizer has one",
        )
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
