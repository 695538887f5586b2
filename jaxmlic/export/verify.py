"""Whether a bundle predicts what its run predicts: a split is scored by both, the bundle in a process of its own."""

import contextlib
import dataclasses
import subprocess
import sys
import tempfile
import zlib
from importlib import resources
from pathlib import Path

import numpy as np

from jaxmlic import metrics, storage
from jaxmlic.data import loader
from jaxmlic.data.image import decode_image
from jaxmlic.errors import UserError
from jaxmlic.export.bundle import Bundle
from jaxmlic.labels.names import check_same_classes
from jaxmlic.models.heads.contract import Prediction
from jaxmlic.progress import Progress
from jaxmlic.run import Run, deciding

TOLERANCE = 1e-3  # of a score, as a part of it where it is above 1; floats are summed in another order
METRIC_TOLERANCE = 1e-4  # also of the share of images with another path
BATCH = 32
_SHOWN = ("CP", "CR", "CF1", "OF1")


@dataclasses.dataclass(frozen=True)
class Verification:
    """How alike a run and its bundle are.

    Attributes:
      split: that was scored.
      images: N.
      other_pixels: images that the bundle reads in other pixels than the library.
      score_difference: the largest of a score, as a part of the score where that is above 1.
      other_decisions: labels decided otherwise.
      other_paths: images whose labels are emitted in another order, or others; None where the head gives no paths.
      run, bundle: metrics under the run's protocol, and CP, CR, CF1 and OF1 of the decisions.
    """

    split: str
    images: int
    other_pixels: int
    score_difference: float
    other_decisions: int
    other_paths: int | None
    run: dict[str, float]
    bundle: dict[str, float]

    @property
    def metric_difference(self) -> float:
        """The largest."""
        return max((_difference(self.run[name], value) for name, value in self.bundle.items()), default=0.0)

    def check(self, folder: str | Path) -> None:
        """UserError where the bundle in `folder` does not predict what the run predicts."""
        found = []
        if not self.score_difference <= TOLERANCE:
            found.append(f"scores differ by up to {self.score_difference:.3g} (at most {TOLERANCE:g} may be rounding)")
        for name, value in self.bundle.items():
            if not _difference(self.run[name], value) <= METRIC_TOLERANCE:
                found.append(f"{name} is {value:.6f}, and {self.run[name]:.6f} of the run")
        if self.other_paths and self.other_paths > METRIC_TOLERANCE * self.images:
            found.insert(0, f"{self.other_paths:,} images have another path")
        if found:
            pixels = f"; {self.other_pixels} images are read in other pixels" if self.other_pixels else ""
            raise UserError(
                f"{folder} does not predict what its run predicts on {self.images:,} images of {self.split!r}: "
                f"{'; '.join(found[:4])}{pixels}"
            )


def verify(run: Run, bundle: Bundle, split: str | None = None, *, progress: bool = False) -> Verification:
    """Scores a split, by default the test split, from its photographs with the run and with its bundle.

    progress: show it on stderr.

    Raises UserError for a bundle of another checkpoint or of other classes, and where the bundle cannot be run.
    """
    run.check_pixel_model()
    check_same_classes(run.class_names, bundle.facts["class_names"], str(run.workdir), str(bundle.folder))
    if bundle.facts["run"]["model"] != run.model_digest:
        raise UserError(
            f"{bundle.folder} holds the checkpoint of step {bundle.facts['run']['step']} of "
            f"{bundle.facts['run']['workdir']}, and {run.workdir} has another model at step {run.step}: export it again"
        )
    decides = deciding.of_run(run)
    if bundle.facts["decision"] != decides.kind:
        raise UserError(
            f"{bundle.folder} decides by {bundle.facts['decision']}, and {run.workdir} now by {decides.kind}: export "
            "it again"
        )
    name = split or run.config.data.test_split
    view = loader.find_view(run.config.data, run.dataset, run.config.seed, name)
    source, side = view.dataset.source(view.split), run.config.data.image_size
    parts, crcs = [], []
    with (
        tempfile.TemporaryDirectory() as scratch,
        _Process(bundle, scratch) as process,
        Progress(f"verifying {view.dataset.name}/{name}", len(view), transient=True, shown=progress) as bar,
    ):
        for start in range(0, len(view), BATCH):
            encoded = [source[int(row)]["image"] for row in view.indices[start : start + BATCH]]
            process.send(encoded)
            pixels = np.stack([decode_image(data, side) for data in encoded])
            crcs += [zlib.crc32(image) for image in pixels]
            parts.append(run.predict_pixels(pixels))
            bar.advance(len(pixels))
        found = process.result()
    expected = Prediction(*(_joined(parts, field) for field in ("scores", "chosen", "path")))
    path = found.get("path")
    if np.shape(path) != np.shape(expected.path):
        raise UserError(
            f"{bundle.folder} does not predict what its run predicts: its paths have the shape {np.shape(path)}, and "
            f"{np.shape(expected.path)} of the run (none: ())"
        )
    given = Prediction(found["scores"], None if expected.chosen is None else found["chosen"], path)
    decided = decides.choose(expected)
    return Verification(
        split=name,
        images=len(view),
        other_pixels=int((np.array(crcs, np.uint32) != found["crc"]).sum()),
        score_difference=float(_apart(expected.scores, given.scores).max(initial=0.0)),
        other_decisions=int((decided != found["chosen"]).sum()),
        other_paths=None if path is None else int((path != expected.path).any(axis=1).sum()),
        run=_numbers(run, expected, decided, view.labels),
        bundle=_numbers(run, given, found["chosen"], view.labels),
    )


def _joined(parts: list[Prediction], field: str) -> np.ndarray | None:
    values = [getattr(part, field) for part in parts]
    return None if values[0] is None else np.concatenate(values)


def _numbers(run: Run, prediction: Prediction, decided: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Under the run's protocol, without a rule, and those of the decisions bool [N, C]."""
    report = run.report(prediction, labels, metrics.get_protocol(run.config.eval.protocol).plain)
    found = {key: float(value) for key, value in report.items() if isinstance(value, float | np.floating)}
    decisions = run.report(dataclasses.replace(prediction, chosen=decided, path=None), labels, "path")
    return found | {f"{name} of the decisions": float(decisions[name]) for name in _SHOWN}


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(a)))


def _difference(a: float, b: float) -> float:
    """0 where neither is defined."""
    return 0.0 if a == b or (np.isnan(a) and np.isnan(b)) else abs(a - b)


class _Process:
    """The process that runs the bundle (see `isolated`)."""

    def __init__(self, bundle: Bundle, scratch: str):
        self._folder, self._out = bundle.folder, storage.to_path(scratch) / "found.npz"
        self._errors = storage.to_path(scratch) / "errors.txt"
        program = resources.files(__package__).joinpath("isolated.py")
        arguments = ["-I", "-B", str(program), str(bundle.folder.resolve()), str(self._out), str(BATCH)]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(OSError):  # what it did not read
                self._process.stdin.close()

    def send(self, images: list[bytes]) -> None:
        """Encoded images, to be predicted."""
        assert self._process.stdin is not None
        try:
            for data in images:
                self._process.stdin.write(len(data).to_bytes(8) + data)
            self._process.stdin.flush()
        except OSError:
            self._fail()

    def result(self) -> dict[str, np.ndarray]:
        """What it predicted for all of them."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            self._fail()
        if self._process.wait() != 0:
            self._fail()
        return storage.load_npz(self._out)

    def _fail(self) -> None:
        self._process.wait()
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(f"{self._folder} cannot be run: {lines[-1] if lines else 'no reason given'}")
