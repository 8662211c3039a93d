"""Tracing beside a sampler: what it makes its particles with, is told of every run, and takes the traces from.

The sampler calls `Tracer.start` where it would call ``LMParticles.start``, and `Tracer.watch` with every result; when the
sample record of a prompt is written, `Tracer.take` gives the traces of its runs. Nothing that is drawn changes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rmtools.particles.protocol import SMCResult
from rmtools.sampling.trace import Traced, trace_records

Record = dict[str, Any]


class Tracer:
    """Collects the traces of runs until their prompts' sample records are written.

    Parameters
    ----------
    start : callable
        Makes the root, as ``LMParticles.start`` does: (policy, value, prompts, **settings).
    settings : mapping, optional
        Of the sampler, as JSON values.
    """

    def __init__(self, start: Callable[..., Any], settings: Mapping[str, Any] | None = None) -> None:
        self._start = start
        self._settings = settings
        self._waiting: dict[str, list[Record]] = {}

    def start(self, policy: Any, value: Any, prompts: Sequence[str], **settings: Any) -> Traced:
        """Return the root, traced."""
        return Traced.start(self._start(policy, value, prompts, **settings), prompts)

    def watch(self, prompts: Sequence[str], result: SMCResult[Any]) -> None:
        """Keep the traces of a result whose particles came from `start`; the samples are not judged here."""
        records = trace_records(result.particles, result, self._settings, judge=False)
        for prompt, record in zip(prompts, records, strict=True):
            self._waiting.setdefault(prompt, []).append(record)

    def take(self, sampled: Mapping[str, Any]) -> list[Record]:
        """Return the traces of the runs of a sample record, in order, with its draw and rewards; they are then forgotten.

        Raises
        ------
        ValueError
            If a run of the record was never watched.
        """
        samples, n, waiting = sampled["samples"], 0, self._waiting.get(sampled["prompt"], [])
        found: list[Record] = []
        while n < len(samples):
            # Replicates of a prompt are told apart by what came out: those of one batch are watched across, not along.
            at = next(
                (
                    i
                    for i, r in enumerate(waiting)
                    if solutions(r) == [s["steps"] for s in samples[n : n + size(r)]]
                ),
                None,
            )
            if at is None:
                raise ValueError(
                    f"no run was watched that gave samples {n} and following of {sampled['prompt'][:40]!r}"
                )
            record = waiting.pop(at)
            own = samples[n : n + size(record)]
            draw = sampled.get("draw")
            record["run"] = len(found)
            record["draw"] = draw - n if draw is not None and n <= draw < n + len(own) else None
            record["rewards"] = [s["reward"] for s in own] if all("reward" in s for s in own) else None
            found.append(record)
            n += len(own)
        if not waiting:
            self._waiting.pop(sampled["prompt"], None)
        return found


def size(record: Mapping[str, Any]) -> int:
    """Return N of a trace."""
    return int(record["n_particles"])


def solutions(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the steps of the N final particles of a trace."""
    nodes = {node["id"]: node for step in record["steps"] for node in step["nodes"]}
    found = []
    for number in record["steps"][-1]["particles"] if record["steps"] else [0] * size(record):
        steps = []
        while number:
            steps.append(nodes[number]["text"])
            number = nodes[number]["parent"]
        found.append(steps[::-1])
    return found
