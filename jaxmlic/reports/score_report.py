"""What is written beside a score file: the metrics as JSON, the classes as CSV and as a picture."""

from pathlib import Path

import numpy as np

from jaxmlic import storage
from jaxmlic.evaluation import score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.reports import ap_table


def save(path: str | Path, scores: ScoreFile, numbers: dict, facts: dict) -> str:
    """Writes `path`, STEM.npz, and beside it STEM.<protocol>.json (numbers and `facts`), .csv and .png.

    Returns the line that names them. UserError where they cannot be written.
    """
    path = Path(path)
    score_file.save(path, scores)
    stem = path.with_suffix("").as_posix() + f".{numbers['protocol']}"
    storage.write_json(f"{stem}.json", as_json(numbers) | facts)
    ap_table.write_csv(f"{stem}.csv", numbers, scores.class_names, scores.labels)
    ap_table.plot(f"{stem}.png", numbers, scores.class_names, scores.labels)
    return f"written: {path} and {stem}.{{json,csv,png}}"


def as_json(numbers: dict) -> dict:
    """The report with plain numbers; undefined ones as None."""
    return {key: _plain(value) for key, value in numbers.items()}


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and value != value else value
