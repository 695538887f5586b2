"""The folder of an exported run: what `jaxmlic export` writes, and how it is read again.

program.jax      the prediction as StableHLO, by `jax.export`, for any number of images and for cpu, cuda and tpu
weights.npz      the variables by name, which the program takes as arguments; no pickles
run_bundle.py    runs it with jax, flatbuffers, numpy and Pillow; photographs.py reads photographs for it, decisions.py
                 decides and calibrates
thresholds.json  or decision.json: what `jaxmlic thresholds` fitted or learned for the checkpoint, where it did
bundle.json      class names, image size, where the run came from, its metrics, and the SHA-256 of the other files;
                 written last, so that a folder without it is no bundle
"""

import contextlib
import dataclasses
import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jaxmlic import provenance, storage
from jaxmlic.errors import UserError
from jaxmlic.export.program import PLATFORMS, arrays_of, export_program
from jaxmlic.run import Run, deciding
from jaxmlic.training import run_folder

FORMAT = 1  # as in run_bundle.py; raised when an older run_bundle.py cannot read what is written
FACTS, PROGRAM, WEIGHTS = "bundle.json", "program.jax", "weights.npz"
CODE = ("run_bundle.py", "photographs.py", "decisions.py")
REQUIREMENTS = ("jax>=0.10", "flatbuffers", "numpy>=2", "pillow")
_REMEDY = "export the run again with `jaxmlic export RUN --out=DIR`"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle: its folder, what bundle.json holds, and lines for the user about how it was written."""

    folder: Path
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def check_folder(folder: str | Path) -> Path:
    """The folder as a path; UserError unless it is empty or not there yet, and on this machine."""
    if storage.is_bucket(folder):
        raise UserError(f"--out={folder}: a bundle is written to a folder of this machine; copy it to the bucket then")
    path = storage.to_path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"--out={folder} is a file: give a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"--out={folder} is not empty, and nothing in it is overwritten: give a new folder")
    return path


def write(run: Run, folder: str | Path) -> Bundle:
    """Exports the run's checkpoint into a new or empty folder, whole or not at all.

    UserError for a folder with files, and for a run whose model reads no photographs.
    """
    path = check_folder(folder)
    run.check_pixel_model()
    predict, variables = run.predict_function()
    weights, side = arrays_of(variables), run.config.data.image_size
    decides = deciding.of_run(run)
    numbers, missing = _metrics(run)
    program = export_program(predict, weights, side)
    try:
        with storage.replacing(path / PROGRAM) as file:
            file.write(program)
        storage.save_npz(path / WEIGHTS, weights, compress=False)
        for name in CODE:
            storage.write_text(path / name, resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))
        storage.write_text(path / "requirements.txt", "\n".join(REQUIREMENTS) + "\n")
        decides.save(path)
        names = sorted(one.name for one in path.iterdir())
        facts = {
            "format": FORMAT,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": provenance.command(),
            "commit": provenance.commit(),
            "versions": provenance.versions(),
            "platforms": PLATFORMS,
            "image_size": side,
            "class_names": run.class_names,
            "decision": decides.kind,
            "decided_by": decides.file,
            "calibration": decides.calibration,
            "run": _facts(run) | {"metrics": numbers},
            "files": {
                name: {"sha256": storage.sha256(path / name), "bytes": (path / name).stat().st_size} for name in names
            },
        }
        storage.write_json(path / FACTS, facts)
    except BaseException:
        _remove(path)
        raise
    return Bundle(path, facts, (*decides.notes, *missing))


def _remove(path: Path) -> None:
    """What an export that failed has written."""
    with contextlib.suppress(OSError):
        for one in path.iterdir():
            one.unlink()


def _facts(run: Run) -> dict[str, Any]:
    """Where the exported model came from."""
    record = run_folder.load(run.workdir)
    return {
        "workdir": str(run.workdir),
        "step": run.step,
        "model": run.model_digest,
        "config": run.config.to_dict(),
        "data": {"name": run.config.data.name, "fingerprint": record.fingerprint, "inputs": record.inputs},
        "protocol": run.config.eval.protocol,
    }


def _metrics(run: Run) -> tuple[dict[str, Any] | None, list[str]]:
    """The numbers that `jaxmlic evaluate` stored of this checkpoint; None, and a note, where there are none."""
    name = f"{run.config.data.test_split}.{run.config.eval.protocol}.json"
    path = run.workdir / run_folder.SCORES / name
    stored = storage.read_json(path) if path.is_file() else {}
    if stored.get("step") != run.step:
        return None, [f"bundle.json has no metrics: step {run.step} was not evaluated (jaxmlic evaluate)"]
    return {key: value for key, value in stored.items() if not isinstance(value, list | dict)}, []


def read(folder: str | Path) -> Bundle:
    """The bundle in a folder, all of its files checked. UserError for a folder without one, a newer or damaged one."""
    path = storage.to_path(folder)
    if not (path / FACTS).is_file():
        raise UserError(f"{folder} is not a bundle: it has no {FACTS}; {_REMEDY}")
    facts = storage.read_json(path / FACTS, what="bundle.json", remedy=_REMEDY)
    try:
        number = int(facts["format"])
        if number > FORMAT:
            raise UserError(
                f"{folder} is a bundle of format {number}, and this version of jaxmlic reads up to {FORMAT}: update "
                "jaxmlic, or run the bundle's own run_bundle.py"
            )
        digests = {name: facts["files"][name]["sha256"] for name in {*facts["files"], PROGRAM, WEIGHTS, *CODE}}
        needed = [facts["class_names"], facts["decision"], facts["run"]["model"], facts["run"]["workdir"]]
        if not all(needed):
            raise ValueError("an entry is empty")
        int(facts["run"]["step"])  # 0 of a run that took no step
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / FACTS} is damaged ({storage.reason(error)}); {_REMEDY}") from None
    for name, digest in digests.items():
        if storage.sha256(path / name) != digest:
            raise UserError(f"{path / name} is damaged: its SHA-256 is not the one in {FACTS}; {_REMEDY}")
    return Bundle(path, facts)
