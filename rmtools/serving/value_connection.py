"""Connect to a served reward model: which endpoint answers, whether it is the right model, and what its numbers are."""

from pathlib import Path
from typing import Any

import numpy as np

from rmtools.errors import UserError
from rmtools.files import read_json
from rmtools.lm.calibration_file import read_calibration, under_map, with_map
from rmtools.lm.checkpoint import CheckpointSettings, is_published
from rmtools.lm.export import MARK_FILE
from rmtools.lm.formats.load import Asked, unloaded
from rmtools.lm.formats.published import PublishedPRM
from rmtools.lm.hub import find_model
from rmtools.lm.policy import load_tokenizer
from rmtools.lm.protocol import Scorer
from rmtools.lm.steps import StepTokenizer
from rmtools.particles.tilt import Tilt
from rmtools.serving.endpoint import Endpoint, ServerSettings
from rmtools.serving.errors import RefusedError
from rmtools.serving.server import served_model
from rmtools.serving.values import WAYS, Ids, Labels, ServedSteps, ServedValueModel, ValueServer, Way

# Token ids, of any tokenizer.
PROBES: tuple[Ids, Ids] = ((5, 6, 7), (8, 9, 5, 6))
# Differences in p that the precision of a server explains: bfloat16 has 8 bits.
SAME_P = 0.03
SERVE = (
    'serve the exported model with vLLM: vllm serve FOLDER --runner pooling --pooler-config \'{"task": "classify"}\', or, of a '
    "format that reads label tokens, as a language model"
)


def connect_values(
    url: str,
    model: str | Path,
    rng: np.random.Generator,
    settings: ServerSettings | None = None,
    *,
    way: str = "auto",
    asked: Asked | None = None,
) -> Scorer:
    """Connect to the server at ``url`` that holds the weights of ``model``, and return it as a scorer.

    Parameters
    ----------
    url : str
        The server's address, with or without ``/v1``. An API key is read from ``OPENAI_API_KEY``.
    model : str or Path
        Checkpoint, export or published model, of which tokenizer and settings are read here, no weights. The map of a calibrated
        one is applied here: what is served is the model under it.
    rng : np.random.Generator
        Draws the jitter of delays.
    settings : ServerSettings, optional
        ``model`` names the one of several served ones.
    way : {"auto", "classify", "pooling", "completions", "score"}
        The endpoint that is asked; auto: the first that answers and uses the prefix cache, and for whole rollouts the one that
        gives every token's row.
    asked : Asked, optional
        Format and reading of a published model.

    Raises
    ------
    UserError
        If no endpoint answers, the model has another number of labels, its rows are those of other sequences, or its values
        differ from those that its export recorded; if the format is none that a server can read (a ratio, a recording).
    """
    if way != "auto" and way not in WAYS:
        raise UserError(f"there is no way {way!r} to ask for values", f"choose auto, {', '.join(WAYS)}")
    endpoint = Endpoint(url, rng, settings or ServerSettings())
    name = served_model(endpoint, endpoint.settings.model).id
    calibration, asked = read_calibration(model), asked or Asked()
    if calibration is None:
        return _read_from(endpoint, name, model, asked, way)
    under, asked = under_map(model, calibration, asked)
    return with_map(_read_from(endpoint, name, under, asked, way), model, calibration)


def _read_from(endpoint: Endpoint, name: str, model: str | Path, asked: Asked, way: str) -> Scorer:
    """Return the served model ``name`` as a scorer without a map, read as ``model`` is."""
    if is_published(model, asked.prm_format):
        how = unloaded(model, asked)
        label_ids = how.rendering.label_ids() if how.convention.head == "labels" else None
        server = _connected(endpoint, name, None if label_ids is None else Labels(*label_ids), way)
        inner = ServedSteps(server, how.steps, branches_only=bool(how.rendering.verdict))
        return PublishedPRM(inner, how.rendering, how.reading, server.name, how.told_by)
    source = find_model(model)
    known = CheckpointSettings.load(source.folder)
    server = _connected(endpoint, name, None, way)
    _require_recorded_values(server, source.folder)
    steps = StepTokenizer(load_tokenizer(source.folder), known.steps, known.end_ids)
    value = ServedValueModel(server, steps, Tilt(known.floor))
    value.prompt_format = known.prompt_format
    value.solution_tokens = known.training.get("solution_tokens")
    return value


def _connected(endpoint: Endpoint, name: str, labels: Labels | None, way: str) -> ValueServer:
    """Find the endpoints that answer, by requests of a few tokens."""
    wanted = [w for w in WAYS.values() if w.classifier == (labels is None) and way in ("auto", w.name)]
    if not wanted:
        kind = "label tokens" if labels else "a head of labels"
        fit = [w.name for w in WAYS.values() if w.classifier == (labels is None)]
        raise UserError(
            f"the model is read from {kind}, which {way} does not give", f"choose auto, {', '.join(fit)}"
        )
    answered: list[Way] = []
    refusals = []
    for one in wanted:
        try:
            ValueServer(endpoint, name, labels, one, one).ask(one, [PROBES[0]], first=True)
        except RefusedError as error:
            refusals.append(f"{one.path}: {error.fact}")
        else:
            answered.append(one)
    if not answered:
        raise UserError(
            f"the server at {endpoint.url} gives no values of {name} ({'; '.join(refusals)})", SERVE
        )
    last = next((w for w in answered if w.cached), answered[0])
    whole = next((w for w in answered if w.every_token), last)
    if not last.cached:
        endpoint.warn(
            "re-encoding",
            f"{last.path} reads every prefix from its beginning: sampling costs the square of a solution's length; {SERVE}",
        )
    server = ValueServer(endpoint, name, labels, last, whole)
    _check(server)
    return server


def _check(server: ValueServer) -> None:
    """See that rows belong to their sequences, and whether a classifier's numbers are logits."""
    way = server.last
    alone = [server.ask(way, [ids], first=True)[0][-1] for ids in PROBES]
    if server.labels is None and alone[0].shape[-1] not in (1, 2, 3):
        raise UserError(
            f"{server.name} gives {alone[0].shape[-1]} numbers, one for each of its labels: a reward model has 1, 2 or 3",
            "name the reward model that is served (--value-server-model), or serve it",
        )
    if way.most > 1:
        together = [rows[-1] for rows in server.ask(way, list(PROBES), first=True)]
        if max(float(np.abs(a - b).max()) for a, b in zip(alone, together, strict=True)) > 0.5:
            raise UserError(
                f"{server.name} answers several sequences with values of others: its rows have lost their order",
                "use a server that numbers its rows",
            )
    if server.labels is None:
        active = [server.ask(way, [ids], first=True, use_activation=True)[0][-1] for ids in PROBES]
        ignored = all(np.allclose(a, b, atol=1e-6) for a, b in zip(alone, active, strict=True))
        server.probabilities = ignored and all(
            bool((a >= 0).all()) and abs(float(a.sum()) - 1) < 1e-3 for a in alone
        )


def _require_recorded_values(server: ValueServer, folder: Path) -> None:
    """Raise ``UserError`` if the served model gives other values than the export recorded, where it did."""
    found: Any = read_json(folder / MARK_FILE, "the export's mark") if (folder / MARK_FILE).exists() else {}
    recorded = found.get("probe") if isinstance(found, dict) else None
    if not recorded:
        return
    ids = tuple(recorded["ids"])
    logits = server.logits(server.at_last([ids])[ids])
    if logits.shape[-1] != 2:
        raise UserError(f"{server.name} has another number of labels than {folder}", SERVE)
    p = float(logits.softmax(-1)[1])
    if abs(p - recorded["p"]) > SAME_P:
        raise UserError(
            f"{server.name} is not the model of {folder}: of {len(ids)} tokens it gives p = {p:.3f}, and the export recorded "
            f"{recorded['p']:.3f}",
            "serve this export, or name the checkpoint that is served",
        )
