r"""How published process reward models are read: rendering, where a value is read, from which head, and what it means.

A `Convention` says it as data. The reward model sees the question, then every step behind its opening and before its
closing text; the score of a step is read at the last token of its closing text. What is the same for all prefixes of a
solution stays in the cache; what only the reading needs (``verdict``) is dropped from it again.

>>> CONVENTIONS["math-shepherd"].step, CONVENTIONS["math-shepherd"].labels
('{step} ки', ('+', '-'))
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rmtools.codec import check_ranges, from_json
from rmtools.errors import UserError
from rmtools.files import read_json

Meaning = Literal["value", "judgement", "depends"]
Head = Literal["classifier", "mlp", "scalar", "labels", "ratio", "recorded"]
Chat = Literal["", "assistant", "turns", "user"]

OWN, RECORDED, JUDGE = "rmtools", "recorded", "judge"
FIX = "see docs/published_prms.md for the fields of such a file"


@dataclass(frozen=True)
class Convention:
    r"""How one kind of published PRM is read.

    Attributes
    ----------
    key : str
        What ``prm_format`` names.
    head : {"classifier", "mlp", "scalar", "labels", "ratio", "recorded"}
        ``classifier``: a linear head of two labels; ``mlp``: two linear layers with a ReLU between them; ``scalar``: one logit;
        ``labels``: the next-token law, restricted to two label tokens; ``ratio``: the ratio of two language models;
        ``recorded``: none, the scores are in a file.
    meaning : {"value", "judgement", "depends"}
        Whether p estimates the probability that a solution will be right, or judges the step; or depends on its training data.
    about : str
        What p means, for reports.
    chat : {"", "assistant", "turns", "user"}
        Which turns of the tokenizer's chat template the texts stand in. assistant: the question is the user's, all steps are
        one turn of the assistant; turns: every step is a turn of the user; user: everything is one turn of the user.
    system : str
        Text of the system turn; "" for none.
    question, step : str
        Templates with ``{question}``; with ``{step}``, and ``{k}`` for its number from 1.
    first, between : str
        Text at the beginning of the first step, and of every other; with chat ``turns`` ``between`` is what the assistant said.
    verdict : str
        Text that is read behind a step and then dropped from the cache.
    tag : str
        The end of ``step``, which must be one token; if ``apart`` the last one of the text is taken. "" for none.
    labels : tuple of str
        The tokens of a good and of a bad step, for head ``labels``.
    apart : bool
        Question, steps and what follows ``{step}`` are tokenised by themselves.
    bos : {"usual", "always", "written", "never"}
        Whether the token that begins a sequence stands in front: where the tokenizer puts it there; wherever it has one; as text.
    verbatim : bool
        The texts that the policy saw, as they are: prompts rendered, delimiters kept.
    root : bool
        Whether the prompt alone has a value.
    reference, beta : str, float
        For head ``ratio``: the model in the denominator, and the factor of the log ratio.
    published : tuple of str
        Names of models that are known to be read like this, in lower case.
    """

    key: str
    head: Head
    meaning: Meaning
    about: str
    chat: Chat = ""
    system: str = ""
    question: str = "{question}"
    step: str = "{step}"
    first: str = ""
    between: str = ""
    verdict: str = ""
    tag: str = ""
    labels: tuple[str, ...] = ()
    apart: bool = False
    bos: Literal["usual", "always", "written", "never"] = "usual"
    verbatim: bool = False
    root: bool = False
    reference: str = ""
    beta: float = 1.0
    published: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(
            self,
            question=("{question}" in self.question, "a template with {question}"),
            step=("{step}" in self.step, "a template with {step}"),
            tag=(self.step.endswith(self.tag), f"the end of step, {self.step!r}"),
            labels=(self.head != "labels" or len(self.labels) == 2, "two texts: of a good and of a bad step"),
            beta=(self.beta > 0, "positive"),
        )

    @property
    def causal(self) -> bool:
        """Whether the model's files are those of a causal language model: they do not say how it is read."""
        return self.head in ("labels", "ratio")


_HARD = "its labels say whether any of several continuations of the step was right"
_GIVEN = "depends on the labels that it was trained on"
CONVENTIONS = {
    c.key: c
    for c in (
        Convention(
            OWN,
            "classifier",
            "value",
            "trained here: it estimates the probability that the solution will be right",
            verbatim=True,
            root=True,
        ),
        Convention("trl", "classifier", "depends", _GIVEN, step="{step}\n", apart=True, bos="always"),
        Convention(
            "qwen-prm",
            "mlp",
            "judgement",
            "it judges whether the step is correct, as people or a judge labelled it",
            chat="assistant",
            system="Please reason step by step, and put your final answer within \\boxed{}.",
            step="{step}<extra_0>",
            tag="<extra_0>",
            published=(
                "qwen/qwen2.5-math-prm-7b",
                "qwen/qwen2.5-math-prm-72b",
                "qwen/qwen2.5-math-7b-prm800k",
            ),
        ),
        Convention(
            "math-shepherd",
            "labels",
            "value",
            _HARD,
            first=" ",
            step="{step} ки",
            between="\n",
            tag=" ки",
            labels=("+", "-"),
            published=("peiyi9979/math-shepherd-mistral-7b-prm",),
        ),
        Convention(
            "rlhflow",
            "labels",
            "value",
            _HARD,
            chat="turns",
            first=" ",
            between="+",
            labels=("+", "-"),
            published=(
                "rlhflow/llama3.1-8b-prm-mistral-data",
                "rlhflow/llama3.1-8b-prm-deepseek-data",
            ),
        ),
        Convention(
            "skywork",
            "scalar",
            "depends",
            "its publishers do not say what it was trained on",
            question="{question}\n",
            step="{step}\n",
            tag="\n",
            apart=True,
            bos="written",
            published=(
                "skywork/skywork-o1-open-prm-qwen-2.5-1.5b",
                "skywork/skywork-o1-open-prm-qwen-2.5-7b",
            ),
        ),
        Convention(
            "openrlhf",
            "labels",
            "depends",
            _GIVEN,
            first=" ",
            step="{step} ки",
            between="\n",
            tag=" ки",
            labels=("+", "-"),
            bos="never",
        ),
        Convention(
            "versaprm",
            "labels",
            "judgement",
            "it judges whether the step is correct, as a language model labelled it",
            first=" \n\n",
            step="{step} \n\n\n\n",
            tag=" \n\n\n\n",
            labels=("+", "-"),
            published=("uw-madison-lee-lab/versaprm", "uw-madison-lee-lab/versaprm-base-8b"),
        ),
        Convention(
            "implicit",
            "ratio",
            "value",
            "the log ratio of two language models, no probability",
            chat="assistant",
            step="Step {k}: {step}\n\n",
            root=True,
            beta=0.001,
            published=("prime-rl/eurusprm-stage1", "prime-rl/eurusprm-stage2"),
        ),
        Convention(
            "vgs",
            "mlp",
            "value",
            "it estimates the probability that the solution will be right",
            verbatim=True,
            root=True,
            published=("vgs-ai/deepseek-vm-1.5b",),
        ),
    )
}
"""The published formats, by key."""

JUDGED = Convention(
    JUDGE,
    "labels",
    "judgement",
    "a language model judges the solution so far",
    chat="user",
    question="Question: {question}\n\nSolution so far:\n\n",
    step="{step}\n\n",
    verdict="Is every step of this solution correct? Answer Yes or No.",
    labels=("Yes", "No"),
)
"""A language model that is asked for its verdict."""
KEYS = (*CONVENTIONS, JUDGE, RECORDED)


def convention(named: str) -> Convention:
    """Return the convention of a key, or the one in a JSON file: a ``key``, and the fields in which it differs.

    Raises ``UserError`` if there is neither, or a field is unknown or has another type.
    """
    if named in CONVENTIONS:
        return CONVENTIONS[named]
    if named == JUDGE:
        return JUDGED
    if not named.endswith(".json"):
        raise UserError(
            f"unknown `prm_format` {named!r}", f"choose one of: {', '.join(KEYS)}; or a JSON file, {FIX}"
        )
    given = read_json(Path(named), "the format of a reward model")
    if not isinstance(given, dict) or given.get("key") not in {*CONVENTIONS, JUDGE}:
        raise UserError(
            f"{named} does not say which format it is like",
            f'begin it with "key": one of {", ".join([*CONVENTIONS, JUDGE])}',
        )
    known = convention(given["key"])
    values: dict[str, Any] = {f.name: getattr(known, f.name) for f in fields(Convention)}
    return from_json(Convention, {**values, **given}, named, FIX)
