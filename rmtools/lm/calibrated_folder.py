"""Write a calibrated model: a checkpoint is copied beside its map, a published model is named by it.

The folder is read wherever a model is named: `rmtools.lm.checkpoint.load_value_model` finds ``calibration.json`` in it.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from rmtools.codec import save_json
from rmtools.errors import UserError
from rmtools.files import claim_folder, replacing_files
from rmtools.lm.calibration_file import (
    CALIBRATION_FILE,
    CALIBRATION_VERSION,
    HERE,
    Calibration,
    PublishedReading,
    read_calibration,
)
from rmtools.lm.checkpoint import MODEL_FILES, SETTINGS_FILE, CheckpointSettings, weights_fingerprint
from rmtools.lm.formats.conventions import RECORDED
from rmtools.lm.formats.load import Asked
from rmtools.lm.hub import FILES, find_model
from rmtools.stats.map_fit import FittedMap


def claim_calibrated(model: str | Path, out: str | Path, prm_format: str | None = None) -> Path:
    """Return the folder to write; raise ``UserError`` if the model cannot be calibrated, or the folder not be written."""
    if prm_format == RECORDED:
        raise UserError(
            "recorded scores are a file and no model: there is nothing that a map could stand beside",
            "calibrate the model that gave the scores, or evaluate them with `rmtools evaluate calibration`",
        )
    source, out = find_model(model), Path(out)
    if out.resolve() == source.folder.resolve():
        raise UserError(
            f"the output folder {out} is the model itself",
            "choose another folder: the model is copied or named",
        )
    known = read_calibration(model)
    if known is not None:
        under = "the checkpoint it was made from" if known.model == HERE else known.model
        raise UserError(
            f"{model} is calibrated already: its values are those of a map", f"name the model itself: {under}"
        )
    return claim_folder(out, CALIBRATION_FILE)


def save_calibrated(
    model: str | Path,
    out: Path,
    fitted: FittedMap,
    prompts: tuple[str, ...],
    provenance: dict[str, Any],
    published: Asked | None = None,
) -> Path:
    """Write a model with its map into ``out``, and return the folder.

    Parameters
    ----------
    model : str or Path
        A checkpoint or a published model: folder or hub name.
    out : Path
        What `claim_calibrated` returned.
    fitted : FittedMap
    prompts : tuple of str
        `prompt_key` of the prompts of the fit.
    provenance : dict
    published : Asked, optional
        How a published model was read; None for a checkpoint, whose files are copied.

    Raises
    ------
    UserError
        If the folder cannot be written; what stood there before is kept.
    """
    source = find_model(model)
    weights = weights_fingerprint(source.pinned)
    if published is None:
        settings = CheckpointSettings.load(source.pinned)
        found = Calibration(HERE, weights, settings.floor, None, fitted, prompts, provenance)
    else:
        how = published.reading
        reading = PublishedReading(published.prm_format or "", how.root_value, how.aggregate)
        name = (
            source.pinned if source.commit else os.path.relpath(source.folder.resolve(), Path(out).resolve())
        )
        found = Calibration(name, weights, how.floor, reading, fitted, prompts, provenance)
    with replacing_files(out, last=CALIBRATION_FILE, instead_of=(*MODEL_FILES, SETTINGS_FILE)) as temporary:
        if published is None:
            for file in sorted({f for pattern in FILES for f in source.folder.glob(pattern) if f.is_file()}):
                shutil.copyfile(file, temporary / file.name)
            settings.save(temporary, seen_from=out)
        save_json(temporary / CALIBRATION_FILE, found, CALIBRATION_VERSION)
    return out
