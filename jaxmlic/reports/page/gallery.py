"""The worst mistakes of each class: which images, their thumbnails, their maps, and the steps of the decoder."""

import base64
import dataclasses

import cv2
import numpy as np

from jaxmlic import progress
from jaxmlic.errors import UserError
from jaxmlic.evaluation import attribution, pointing
from jaxmlic.reports.page.members import Member, view_of

WORST = 4  # false positives, and false negatives, of each class
MAPS = 160  # pairs of an image and a class with a Grad-CAM and a gradient, images with attention: seconds each on a CPU
STEPS = 48  # images whose decoder's steps are mapped: a gradient for each step
_SIDE, _QUALITY = 112, 80  # of a thumbnail
_CELLS = 20  # of a map's side, at most
_TOP = 5  # labels listed with an image


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """Rows of the worst mistakes of each of C classes, the worst first.

    Attributes:
      wrong: C lists of rows that are predicted and have the label 0, the highest scores first.
      missed: C lists of rows that have the label 1 and are not predicted, the lowest scores first.
    """

    wrong: list[list[int]]
    missed: list[list[int]]


def worst(scores: np.ndarray, labels: np.ndarray, predicted: np.ndarray, count: int = WORST) -> Mistakes:
    """The mistakes of scores float [N, C], labels int8 and predicted bool [N, C]; equal scores in the images' order."""
    wrong, missed = [], []
    for c in range(scores.shape[1]):
        for rows, sign, found in (
            (np.flatnonzero(predicted[:, c] & (labels[:, c] == 0)), -1, wrong),
            (np.flatnonzero(~predicted[:, c] & (labels[:, c] == 1)), 1, missed),
        ):
            own = sign * scores[rows, c]
            if len(rows) > count:  # with all that are as bad as the last one kept
                near = own <= np.partition(own, count - 1)[count - 1]
                rows, own = rows[near], own[near]
            found.append(rows[np.argsort(own, kind="stable")[:count]].tolist())
    return Mistakes(wrong, missed)


def shown(mistakes: Mistakes, ap: np.ndarray, budget: int) -> list[int]:
    """Rows of at most `budget` images that get a thumbnail: the worst of every class first, those of low AP before."""
    classes = np.argsort(np.nan_to_num(ap, nan=2.0), kind="stable").tolist()
    rows: dict[int, None] = {}
    for rank in range(max((len(own) for own in (*mistakes.wrong, *mistakes.missed)), default=0)):
        for c in classes:
            for own in (mistakes.wrong[c], mistakes.missed[c]):
                if rank < len(own) and len(rows) < budget:
                    rows[own[rank]] = None
    return list(rows)


def build(member: Member, budget: int) -> tuple[dict, list[str]]:
    """The gallery of a member as JSON, and notes on what it lacks.

    Returns {"images": [{"id", "truth", "top": [[label, score, whether it is predicted, 1, 0 or -1]], "path"?, "src"?,
    "maps"?: {name: map}, "steps"?: [[label or -1 for END, probability, map]], "class_maps"?: {label: {name: map}}}],
    "wrong", "missed": of each class [[image, score]]}. A map is [rows, columns, base64 of uint8 row by row, [y, x] of
    its highest point in percent or None].
    """
    scores, labels = member.scores.scores, member.scores.labels
    mistakes = worst(scores, labels, member.predicted)
    rows = shown(mistakes, member.numbers["AP"], budget)
    listed = list(dict.fromkeys([*rows, *(r for own in (*mistakes.wrong, *mistakes.missed) for r in own)]))
    number = {row: i for i, row in enumerate(listed)}
    images = [_facts(member, row) for row in listed]
    lists = {
        name: [[[number[row], round(float(scores[row, c]), 3)] for row in own] for c, own in enumerate(columns)]
        for name, columns in (("wrong", mistakes.wrong), ("missed", mistakes.missed))
    }
    notes = []
    if member.run is not None and rows:
        try:
            notes = _look(member, mistakes, rows, images)
        except UserError as error:
            notes = [f"No photographs: {error}."]
        if not notes and len(listed) > len(rows):
            notes = [f"Photographs of {len(rows):,} of the {len(listed):,} images listed (--images={budget})."]
    return {"images": images, **lists}, notes


def _facts(member: Member, row: int) -> dict:
    scores, labels = member.scores.scores[row], member.scores.labels[row]
    best = np.argsort(-scores, kind="stable")[:_TOP]
    return {
        "id": str(member.scores.ids[row]),
        "truth": np.flatnonzero(labels == 1).tolist(),
        "top": [[int(c), round(float(scores[c]), 3), int(member.predicted[row, c]), int(labels[c])] for c in best],
    }


def _look(member: Member, mistakes: Mistakes, rows: list[int], images: list[dict]) -> list[str]:
    """Adds thumbnails, paths, steps and maps to the first len(rows) images; notes on what is missing."""
    run, split = member.run, member.scores.split
    view = view_of(run, split)
    places = {str(name): i for i, name in enumerate(view.ids)}
    own = [places.get(images[i]["id"]) for i in range(len(rows))]
    if None in own:
        raise UserError(f"split {split!r} of data set {run.config.data.name!r} no longer has the images of the scores")
    pixels = run.pictures(split=split, rows=np.array(own)).pixels
    for image, one in zip(images, pixels, strict=False):
        image["src"] = thumbnail(one)
    path = run.predict_pixels(pixels).path
    if path is not None:
        for image, one in zip(images, np.asarray(path).tolist(), strict=False):
            image["path"] = [label for label in one if label < len(run.class_names)]
    number = {row: i for i, row in enumerate(rows)}
    pairs = _pairs(mistakes, number)
    with progress.Progress(f"maps of {member.name}", 2 * len(pairs), unit="maps") as bar:
        found = _class_maps(run, pixels, pairs, bar)
    for (i, label), maps in zip(pairs, found, strict=True):
        images[i].setdefault("class_maps", {})[str(label)] = maps
    if "weights" in run.attention_forms:
        for name, maps in run.attention_maps(pixels[:MAPS]).items():
            for image, one in zip(images, maps, strict=False):
                image.setdefault("maps", {})[f"attention {name}"] = packed(one)
    if "steps" in run.attention_forms:
        _add_steps(run, pixels[:STEPS], images)
    total = sum(1 for c in (*mistakes.wrong, *mistakes.missed) for row in c if row in number)
    return [f"Maps of {len(pairs)} of the {total} mistakes with a photograph."] if len(pairs) < total else []


def _pairs(mistakes: Mistakes, number: dict[int, int]) -> list[tuple[int, int]]:
    """(image, class) of the mistakes with a photograph, the worst of every class first, MAPS at most."""
    found = []
    for rank in range(WORST):
        for c, columns in enumerate(zip(mistakes.wrong, mistakes.missed, strict=True)):
            found += [(number[own[rank]], c) for own in columns if rank < len(own) and own[rank] in number]
    return found[:MAPS]


def _class_maps(run, pixels: np.ndarray, pairs: list[tuple[int, int]], bar: progress.Progress) -> list[dict]:
    if not pairs:
        return []
    images, labels = (np.array(one) for one in zip(*pairs, strict=True))

    def counted(values: np.ndarray) -> np.ndarray:
        bar.advance()
        return gathered(attribution.strength(values)) if values.ndim == 3 else values

    cams = run.grad_cam(pixels[images], labels, reduce=counted)
    slopes = run.saliency(pixels[images], labels, "gradient", counted)
    return [{"Grad-CAM": packed(a), "gradient": packed(b)} for a, b in zip(cams, slopes, strict=True)]


def _add_steps(run, pixels: np.ndarray, images: list[dict]) -> None:
    steps = run.step_attention(pixels, "gradient", gathered)
    end = len(run.class_names)
    for image, maps, taken, values in zip(images, steps.maps, steps.taken, steps.probabilities, strict=False):
        ends = np.flatnonzero(taken == end)
        length = ends[0] + 1 if len(ends) else len(taken)
        image["steps"] = [
            [int(taken[t]) if taken[t] < end else -1, round(float(values[t]), 3), packed(maps[t])]
            for t in range(length)
        ]


def gathered(values: np.ndarray) -> np.ndarray:
    """A map of pixels [S, S] blurred, as `pointing.peak` sees it, and averaged to at most 20 x 20 cells."""
    from scipy.ndimage import gaussian_filter  # slow to import

    blurred = gaussian_filter(np.asarray(values, np.float32), pointing.BLUR * len(values))
    side = min(_CELLS, len(blurred))
    return cv2.resize(blurred, (side, side), interpolation=cv2.INTER_AREA)


def packed(values: np.ndarray) -> list:
    """A map float [h, w] from its least to its greatest value in 255 steps: [h, w, base64, [y, x] percent or None]."""
    values = np.asarray(values, np.float32)
    if max(values.shape) > _CELLS:
        values = cv2.resize(values, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
    at = pointing.peak(values)
    span = float(np.ptp(values))
    levels = np.rint(255 * (values - values.min()) / span) if span > 0 else np.zeros_like(values)
    place = None if np.isnan(at).any() else np.rint(100 * at).astype(int).tolist()
    return [*values.shape, base64.b64encode(levels.astype(np.uint8).tobytes()).decode(), place]


def thumbnail(pixels: np.ndarray) -> str:
    """A JPEG of an image uint8 [S, S, 3] as a data: address, 112 pixels wide or as large as it is."""
    side = min(_SIDE, len(pixels))
    small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise UserError("a thumbnail could not be written as JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
