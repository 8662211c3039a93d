"""A recording of branches and scores, audited: the Bellman error of a reward model at prefixes that a search visited.

A recording holds the next steps that were drawn at every visited prefix (``step_records``, by
`rmtools.lm.formats.recorded.prefix_key`) and the scores of a reward model. Every distinct prefix counts once, and next steps
that were recorded twice are one draw. There are no outcomes: what is measured is the consistency of the scores among themselves.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmtools.codec import save_json
from rmtools.errors import UserError
from rmtools.files import read_json
from rmtools.lm.formats.described import described
from rmtools.lm.formats.recorded import RecordedPRM, prefix_key
from rmtools.seeds import generator
from rmtools.stats.bellman_error import BellmanSummary, bellman_estimator
from rmtools.stats.bootstrap import Interval
from rmtools.stats.prefix_errors import PrefixErrors, prefix_errors
from rmtools.summary import counted

SCHEMA_VERSION = 1
FILE = "recording.json"
WIDTH = 80
# Below this many children the log error is corrected by a first-order formula of a few numbers.
FEW_CHILDREN = 4


def is_recording(file: str | Path) -> bool:
    """Return whether a file is a recording of branches: a JSON object with ``step_records``."""
    path = Path(file)
    if path.suffix != ".json" or not path.is_file():
        return False
    found = read_json(path, "the recorded branches")
    return isinstance(found, dict) and "step_records" in found


@dataclass(frozen=True)
class Branches:
    """The next steps drawn at the prefixes of some problems: ``prompts`` by ID, ``children`` by `prefix_key`."""

    prompts: Mapping[str, str]
    children: Mapping[str, Sequence[str]]

    @classmethod
    def load(cls, file: str | Path) -> "Branches":
        """Read a file; raise ``UserError`` if it holds no recorded branches."""
        found = read_json(Path(file), "the recorded branches")
        if not isinstance(found, dict) or not {"problems", "step_records"} <= found.keys():
            raise UserError(
                f"{file} holds no recorded branches: it has no problems and step_records",
                'pass one JSON object: "problems": [{"id", "prompt"}], "step_records": [{"key", "batches": [[{"text"}]]}]',
            )
        children: dict[str, Sequence[str]] = {}
        for record in found["step_records"]:
            batches = [tuple(str(step["text"]) for step in batch) for batch in record["batches"]]
            children[str(record["key"])] = [text for batch in dict.fromkeys(batches) for text in batch]
        return cls({str(p["id"]): str(p["prompt"]).strip() for p in found["problems"]}, children)

    def prefixes(self) -> list[tuple[str, tuple[str, ...], Sequence[str]]]:
        """Return every distinct prefix with next steps: ID, steps, next steps; from the roots on, in order."""
        out: list[tuple[str, tuple[str, ...], Sequence[str]]] = []
        for problem in self.prompts:
            level: list[tuple[str, ...]] = [()]
            while level:
                there = [(s, self.children.get(prefix_key(problem, s), ())) for s in level]
                out += [(problem, steps, after) for steps, after in there if after]
                level = list(dict.fromkeys((*steps, c) for steps, after in there for c in after))
        return out


@dataclass(frozen=True)
class RecordedDepth:
    """The prefixes of one depth.

    Attributes
    ----------
    depth, n : int
        Steps so far; distinct prefixes.
    plug_in : float
        Mean log of the mean child over the prefix, at floor 0, nats.
    signed, signed_floor : Interval
        Mean b with its first-order bias removed, nats: at floor 0, and at the floor.
    """

    depth: int
    n: int
    plug_in: float
    signed: Interval
    signed_floor: Interval


@dataclass(frozen=True)
class RecordingAudit:
    """The Bellman error of recorded scores.

    Attributes
    ----------
    scores, branches : str
        The files.
    about : dict
        How the scores are read (`rmtools.lm.formats.described`).
    prompts, prefixes, repeated, most_children : int
        Problems; distinct prefixes with a score; those whose next steps are all the same text; most next steps at one.
    floor : float
    depths : tuple of RecordedDepth
    at_zero, at_floor : BellmanSummary
        At floor 0 (the scores as they are), and at the floor.
    cautions : tuple of str
        What such a recording can and cannot tell.
    """

    scores: str
    branches: str
    about: dict[str, str]
    prompts: int
    prefixes: int
    repeated: int
    most_children: int
    floor: float
    depths: tuple[RecordedDepth, ...]
    at_zero: BellmanSummary
    at_floor: BellmanSummary
    cautions: tuple[str, ...]

    def __str__(self) -> str:
        squared, floored = self.at_zero.ratio_error.mean_square, self.at_floor.ratio_error.mean_square
        head = (
            f"Audit of {self.scores}: {self.prefixes} distinct prefixes of "
            f"{counted(self.prompts, 'problem')}, no outcomes"
        )
        rows = [
            "depth   n   mean log x̄        mean b̂               mean b̂",
            f"            floor 0           floor 0              floor {self.floor:g}",
            *(
                f"{d.depth:>5} {d.n:>3}   {d.plug_in:>+7.3f}   {_short(d.signed):>24}   {_short(d.signed_floor):>24}"
                for d in self.depths
            ),
            f"(ρ − 1)², unbiased: {squared.estimate:.4f} {_ends(squared)} at floor 0, "
            f"{floored.estimate:.4f} {_ends(floored)} at floor {self.floor:g}",
            f"b, noise-corrected RMS: {_short(self.at_zero.corrected.rms)} at floor 0, "
            f"{_short(self.at_floor.corrected.rms)} at floor {self.floor:g}",
        ]
        wrapped = [
            line for text in (self.about["sentence"], *self.cautions) for line in textwrap.wrap(text, WIDTH)
        ]
        n = len(textwrap.wrap(self.about["sentence"], WIDTH))
        return "\n".join([*textwrap.wrap(head, WIDTH), *wrapped[:n], *rows, *wrapped[n:]])

    def save(self, folder: Path) -> Path:
        """Write ``recording.json`` into ``folder`` and return its path."""
        save_json(folder / FILE, self, SCHEMA_VERSION)
        return folder / FILE


def audit_recording(scorer: RecordedPRM, branches: str | Path, seed: int = 0) -> RecordingAudit:
    """Audit recorded scores at every prefix of a recording that has a score and next steps.

    Parameters
    ----------
    scorer : RecordedPRM
        Its aggregate makes the value of a prefix of the scores of its steps.
    branches : path
        The file of the next steps.
    seed : int
        Of the bootstrap over problems.

    Raises
    ------
    UserError
        If the file holds no branches, or a prefix or next step has no score (it is named).

    Notes
    -----
    Source: docs/equations.md section 6.
    """
    found = Branches.load(branches)
    prefixes = [p for p in found.prefixes() if p[1]]
    if not prefixes:
        raise UserError(
            f"{branches} has no prefix with a step and next steps",
            "record what a search draws at each prefix",
        )
    zero, floored = (
        _errors(scorer, found, prefixes, tilted=False),
        _errors(scorer, found, prefixes, tilted=True),
    )
    problem = np.unique([p for p, _, _ in prefixes], return_inverse=True)[1]
    depth = np.asarray([len(steps) for _, steps, _ in prefixes])
    at_zero, at_floor = (
        bellman_estimator(errors, problem, depth, float(depth.max())).bootstrap(generator("recording", seed))
        for errors in (zero, floored)
    )
    depths = tuple(
        RecordedDepth(
            a.depth,
            int((depth == a.depth).sum()),
            float(np.nanmean(zero.plug_in[depth == a.depth])),
            a.signed_mean,
            b.signed_mean,
        )
        for a, b in zip(at_zero.by_depth, at_floor.by_depth, strict=True)
    )
    most = max(len(after) for _, _, after in prefixes)
    same = sum(len(set(after)) == 1 for _, _, after in prefixes)
    n, about = len(found.prompts), described(scorer)
    return RecordingAudit(
        scorer.name,
        str(branches),
        about
        | {
            "sentence": f"{about['sentence'].partition('; the value of a prompt')[0]}; prompts alone are left out."
        },
        n,
        len(prefixes),
        same,
        most,
        scorer.tilt.floor,
        depths,
        at_zero,
        at_floor,
        _cautions(n, most, same),
    )


def _errors(
    scorer: RecordedPRM,
    found: Branches,
    prefixes: Sequence[tuple[str, tuple[str, ...], Sequence[str]]],
    *,
    tilted: bool,
) -> PrefixErrors:
    """Return the errors at prefixes, with the floor or, untilted, at floor 0."""
    width = max(len(after) for _, _, after in prefixes)
    own = np.zeros(len(prefixes))
    children, present = np.zeros((len(prefixes), width)), np.zeros((len(prefixes), width), dtype=bool)
    for i, (problem, steps, after) in enumerate(prefixes):
        question = found.prompts[problem]
        values = [
            scorer.log_value(question, s, tilted=tilted) for s in (steps, *((*steps, c) for c in after))
        ]
        own[i] = values[0]
        children[i, : len(after)], present[i, : len(after)] = values[1:], True
    return prefix_errors(own, children, present)


def _cautions(prompts: int, children: int, same: int) -> tuple[str, ...]:
    """Return what a recording of a search can and cannot tell."""
    out = [
        f"What this can tell: whether the scores of this model rise or fall by a step at the prefixes that were visited, within "
        f"the intervals, which are over the {counted(prompts, 'problem')}.",
        "What it cannot: the search kept prefixes because these same scores were high. A consistent model has b = 0 wherever one "
        "looks; one that errs is looked at where it overrates, so a negative b here is larger than at the policy's own prefixes. "
        f"{prompts} chosen problems do not speak for others. Without outcomes neither calibration nor particles are known.",
    ]
    if children < FEW_CHILDREN:
        few = f"{children} next steps a prefix: b̂ and its noise come from a first-order formula with one degree of freedom, and "
        out.append(few + "nothing can be compared with half of them; (ρ − 1)² is unbiased nevertheless.")
    if same:
        out.append(f"At {same} of the prefixes all next steps are the same text: no noise is seen there.")
    return tuple(out)


def _short(found: Interval) -> str:
    return f"{found.estimate:+.3f} {_ends(found)}"


def _ends(found: Interval) -> str:
    return "[" + ", ".join("?" if end is None else f"{end:.3g}" for end in (found.low, found.high)) + "]"
