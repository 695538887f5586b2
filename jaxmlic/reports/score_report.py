"""A score file with its report beside it: all numbers as JSON, the classes as CSV and as a picture."""

from pathlib import Path

from jaxmlic import storage
from jaxmlic.evaluation import score_file, scoring
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.reports import ap_table


def write(path: str | Path, scores: ScoreFile, report: dict, facts: dict) -> str:
    """Writes STEM.npz, and STEM.<protocol>.json, .csv and .png beside it; returns a line that names them.

    Args:
      path: STEM.npz, or STEM.<protocol>.npz.
      scores: the score file.
      report: what `jaxmlic.metrics.evaluate` returned for it.
      facts: more fields for the JSON file, such as split and step.

    Raises:
      UserError: a file cannot be written.
    """
    path = storage.to_path(path)
    score_file.save(path, scores)
    stem = path.with_suffix("").as_posix().removesuffix(f".{report['protocol']}") + f".{report['protocol']}"
    storage.write_json(f"{stem}.json", scoring.as_json(report) | facts)
    ap_table.write_csv(f"{stem}.csv", report, scores.class_names, scores.labels)
    ap_table.plot(f"{stem}.png", report, scores.class_names, scores.labels)
    return f"written: {path} and {stem}.{{json,csv,png}}"
