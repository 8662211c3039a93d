"""``calibration.json``: the map of a value model's p, and which model it belongs to.

In a folder with the checkpoint's own files ``model`` is "."; a published model stays where it is, and ``model`` names it.
"""

import hashlib
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rmtools.codec import check_ranges, load_json
from rmtools.errors import UserError
from rmtools.lm.calibrated import CalibratedValue, without_floor
from rmtools.lm.formats.load import Asked
from rmtools.lm.formats.reading import Reading
from rmtools.lm.hub import find_model
from rmtools.particles.tilt import Tilt
from rmtools.stats.map_fit import FittedMap
from rmtools.stats.monotone_map import MonotoneMap

CALIBRATION_FILE = "calibration.json"
CALIBRATION_VERSION = 1
HERE = "."
AGAIN = "run `rmtools calibrate` again"


@dataclass(frozen=True)
class PublishedReading:
    """How a published model is read, as of `rmtools.lm.checkpoint.load_value_model`; ``prm_format`` "" is recognised."""

    prm_format: str
    root_value: str | float
    aggregate: str


@dataclass(frozen=True)
class Calibration:
    """What ``calibration.json`` holds.

    Attributes
    ----------
    model : str
        "." for the checkpoint in the same folder; else the folder (relative) or hub name with commit of a published model.
    model_fingerprint : str
        Of its weights: a map belongs to one model.
    floor : float
        Of the tilt.
    reading : PublishedReading or None
        Of a published model; None for a checkpoint.
    fitted : FittedMap
        The map, and the forms that were tried.
    prompts : tuple of str
        `prompt_key` of the prompts it was fitted on.
    provenance : dict
        Rollouts, policy, seed, version.
    """

    model: str
    model_fingerprint: str
    floor: float
    reading: PublishedReading | None
    fitted: FittedMap
    prompts: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self, model=(bool(self.model), "the name of a model"))
        if not math.isfinite(self.floor):
            raise UserError(f"floor is {self.floor}", AGAIN)
        Tilt(self.floor)

    @property
    def map(self) -> MonotoneMap:
        """The map."""
        return self.fitted.map


def prompt_key(prompt: str) -> str:
    """Return what tells a prompt from others: a hash of its text."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def read_calibration(model: str | Path) -> Calibration | None:
    """Return the calibration in a model's folder (or of its hub name); None if there is none.

    Raises
    ------
    UserError
        If the file cannot be read, has another schema version, lacks a field, or its map is not monotone.
    """
    if isinstance(model, str | Path) and Path(model).is_file():
        return None
    file = find_model(model).folder / CALIBRATION_FILE
    if not file.exists():
        return None
    return load_json(Calibration, file, "the calibration", CALIBRATION_VERSION, AGAIN)


def under_map(folder: str | Path, calibration: Calibration, asked: Asked) -> tuple[str, Asked]:
    """Return the name of the model under the map in ``folder``, and how it is read.

    Raises
    ------
    UserError
        If the model cannot be found, or another reading of it is ``asked`` for than the one that the map was fitted to.
    """
    where, known = find_model(folder).folder, calibration.reading
    model = str(folder) if calibration.model == HERE else _named(where, calibration.model)
    if known is None:
        return model, asked
    recorded = Reading(calibration.floor, known.root_value, known.aggregate)
    if asked.prm_format not in (None, known.prm_format) or asked.reading not in (Reading(), recorded):
        raise UserError(
            f"{folder} is calibrated as it was read: format {known.prm_format or 'recognised'}, floor {recorded.floor:g}, root "
            f"value {recorded.root_value}, aggregate {recorded.aggregate}; read otherwise the map would give wrong values",
            "leave `prm_format`, `floor`, `root_value` and `aggregate` out, or calibrate the model read that way",
        )
    return model, replace(asked, prm_format=known.prm_format or None, reading=recorded)


def with_map(value: Any, folder: str | Path, calibration: Calibration) -> CalibratedValue:
    """Return a loaded model, which is changed, with its map; ``folder`` is that of the calibration."""
    inner, _ = without_floor(value)
    source, prompts = find_model(folder), frozenset(calibration.prompts)
    found = CalibratedValue(inner, calibration.map, Tilt(calibration.floor), str(source), prompts)
    found.source = source.pinned
    return found


def _named(folder: Path, model: str) -> str:
    local = folder / model
    name = os.path.relpath(local.resolve()) if local.is_dir() else model
    try:
        return find_model(name).pinned
    except UserError as error:
        raise UserError(
            f"{folder}/{CALIBRATION_FILE} holds the map of {model}, and that is not there: {error.fact}",
            "put the model back there, or calibrate it where it is now",
        ) from error


def require_weights(folder: str | Path, found: str, calibration: Calibration) -> None:
    """Raise ``UserError`` if the weights ``found`` are not those that the map was fitted to."""
    if calibration.model_fingerprint and found != calibration.model_fingerprint:
        raise UserError(
            f"the weights of the model are not those that the map in {folder}/{CALIBRATION_FILE} was fitted to: it would give "
            "wrong values",
            f"{AGAIN} on the model as it is now, or put the old weights back",
        )
