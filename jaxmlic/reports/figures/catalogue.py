"""The figures that `jaxmlic figures` draws of a run, by name."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxmlic import metrics
from jaxmlic.errors import UserError, unknown
from jaxmlic.evaluation import attribution
from jaxmlic.labels.neighbours import nearest
from jaxmlic.models.layers import rectifier
from jaxmlic.reports.figures import box_area, looks, neighbours, per_class, printed
from jaxmlic.run import Pictures, Run

NEAREST = 5
LABELS = 12  # rows of a table of neighbours, where no labels are named
FORMS = rectifier.RULES
_FORM_NAMES = {"gradient": "gradient", "deconvolution": "deconvolution", "guided": "guided backpropagation"}


@dataclasses.dataclass(frozen=True)
class Request:
    """What to draw: options of the command that not all figures read.

    Attributes:
      images: files; empty for the first `count` images of `split` with two labels or more.
      split: None for the run's test split.
      protocol: None for the run's own.
      labels: names of labels; empty for the figure's own choice.
      form: one of FORMS.
      stage: of the trunk, for feature maps and Grad-CAM; "" for the last.
      table: "PAPER/NUMBER".
    """

    images: Sequence[str] = ()
    count: int = 4
    split: str | None = None
    protocol: str | None = None
    labels: Sequence[str] = ()
    form: str = "gradient"
    stage: str = ""
    table: str = ""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of matplotlib's, and the numbers in it as rows of cells, the header first; () where it has none."""

    figure: Any
    rows: Sequence[Sequence[object]] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A figure: what it shows, the papers' figures that it makes, and what draws it; whether it needs a run."""

    summary: str
    papers: str
    draw: Callable[[Run, Request], Drawing]
    needs_run: bool = True


def find(name: str) -> Entry:
    """The entry of FIGURES; UserError for an unknown name."""
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    return FIGURES[name]


def _per_class(run: Run, request: Request) -> Drawing:
    found = run.evaluate(request.split, request.protocol, progress=True)
    numbers, names = found.numbers, run.class_names
    title = f"{run.config.data.name} {found.scores.split}, {numbers['protocol']}; dashed: mean over classes"
    rows = [("class", "P", "R"), *zip(names, numbers["P"].tolist(), numbers["R"].tolist(), strict=True)]
    return Drawing(per_class.draw(numbers["P"], numbers["R"], names, title), rows)


def _box_recall(run: Run, request: Request) -> Drawing:
    boxes = run.boxes(request.split or run.config.data.test_split)  # before the scores, which take a while
    scores = run.evaluate(request.split, request.protocol, progress=True).scores
    predicted = metrics.predicted_labels(
        scores.scores, scores.protocol, threshold=scores.threshold, chosen=scores.chosen
    )
    table = box_area.recall_by_area(boxes, scores.labels, predicted)
    rows = [("area_from", "area_to", "boxes", "found", "recall")]
    rows += zip(
        table.edges[:-1].tolist(),
        table.edges[1:].tolist(),
        table.boxes.tolist(),
        table.found.tolist(),
        ["" if np.isnan(value) else value for value in table.recall.tolist()],
        strict=True,
    )
    title = f"{run.config.data.name} {scores.split}, {scores.protocol}, {table.boxes.sum():,} boxes"
    return Drawing(box_area.draw(table, title), rows)


def _label_neighbours(run: Run, request: Request) -> Drawing:
    tables = run.label_embeddings()
    if not tables:
        raise UserError(f"the head {run.config.head!r} of {run.workdir} has no vectors of labels")
    table = "label_embedding" if "label_embedding" in tables else next(iter(tables))
    chosen = _indices(run, request.labels)
    own = np.arange(len(run.class_names)) if chosen is None else chosen
    order, cosines = nearest(tables[table][own], tables[table], NEAREST, own=own)
    names = [[run.class_names[i] for i in row] for row in order]
    labels = [run.class_names[i] for i in own]
    rows = [("label", "rank", "neighbour", "cosine")]
    for label, near, values in zip(labels, names, cosines.tolist(), strict=True):
        rows += [(label, rank, *pair) for rank, pair in enumerate(zip(near, values, strict=True), 1)]
    shown = slice(None) if request.labels else slice(LABELS)
    title = f"{run.config.head}, {run.config.data.name}: cosine of {table}"
    return Drawing(neighbours.draw_table(labels[shown], names[shown], title), rows)


def _image_neighbours(run: Run, request: Request) -> Drawing:
    pictures = _pictures(run, request)
    images, labels = run.joint_embedding(pictures.pixels)
    order, cosines = nearest(images, labels, NEAREST)
    names = [[run.class_names[i] for i in row] for row in order]
    best = metrics.top_k(np.asarray(run.predict_pixels(pictures.pixels).scores), NEAREST)
    scored = [[run.class_names[i] for i in row] for row in best]
    rows = [("image", "rank", "neighbour", "cosine", "highest_logit")]
    for image, *columns in zip(pictures.names, names, cosines.tolist(), scored, strict=True):
        rows += [(image, rank, *cells) for rank, cells in enumerate(zip(*columns, strict=True), 1)]
    what = "labels nearest to the image's vector (blue), highest logits (black)"
    title = f"{run.config.head}, {run.config.data.name}: {what}"
    return Drawing(neighbours.draw_images(pictures.pixels, names, scored, title), rows)


def _step_attention(run: Run, request: Request) -> Drawing:
    pictures = _pictures(run, request)
    steps = run.step_attention(pictures.pixels, request.form)
    tokens, end = [*run.class_names, "END"], len(run.class_names)
    maps, titles, rows = [], [], [("image", "step", "token", "probability")]
    for name, own, taken, values in zip(pictures.names, steps.maps, steps.taken, steps.probabilities, strict=True):
        ends = np.flatnonzero(taken == end)
        length = ends[0] + 1 if len(ends) else len(taken)
        maps.append(own[:length])
        titles.append([f"{t + 1}: {tokens[taken[t]]} ({values[t]:.2f})" for t in range(length)])
        rows += [(name, t + 1, tokens[taken[t]], float(values[t])) for t in range(length)]
    title = f"{run.config.head}: {_FORM_NAMES[request.form]} at each step of its path, each map on its own scale"
    return Drawing(looks.draw_heat(pictures.pixels, maps, titles, title), rows)


def _saliency(run: Run, request: Request) -> Drawing:
    def maps_of(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return run.saliency(pixels, labels, request.form, attribution.strength)

    return _label_maps(run, request, maps_of, _FORM_NAMES[request.form], looks.BLUR)


def _grad_cam(run: Run, request: Request) -> Drawing:
    def maps_of(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return run.grad_cam(pixels, labels, request.stage)

    return _label_maps(run, request, maps_of, "Grad-CAM", 0.0)


def _label_maps(
    run: Run, request: Request, maps_of: Callable[[np.ndarray, np.ndarray], np.ndarray], what: str, blur: float
) -> Drawing:
    """Maps [N, h, w] of labels int [N] over pictures: of the labels that are named, else the three highest of each."""
    pictures, chosen = _pictures(run, request), _indices(run, request.labels)
    scores = np.asarray(run.predict_pixels(pictures.pixels).scores)
    columns = metrics.top_k(scores, 3) if chosen is None else np.tile(chosen, (len(scores), 1))  # [N, n]
    maps = [maps_of(pictures.pixels, column) for column in columns.T]  # a list over labels of [N, h, w]
    titles = [
        [f"{run.class_names[i]} ({score:.2f})" for i, score in zip(row, own[row], strict=True)]
        for row, own in zip(columns, scores, strict=True)
    ]
    title = f"{run.config.head}: {what} of a label's logit (in brackets), each map on its own scale"
    return Drawing(looks.draw_heat(pictures.pixels, list(zip(*maps, strict=True)), titles, title, blur))


def _stage_attention(run: Run, request: Request) -> Drawing:
    pictures = _pictures(run, request)
    maps = run.attention_maps(pictures.pixels)
    stages = list(maps)
    # In units of the mean weight, 1 / (h w): 1 is attention to nothing in particular.
    own = list(zip(*maps.values(), strict=True))  # of each image, its maps
    titles = [[f"{stages[i]} (most: {one.max() * one.size:.1f}x mean)" for i, one in enumerate(row)] for row in own]
    title = f"{run.config.head}: attention weights of its stages, each map on its own scale"
    return Drawing(looks.draw_heat(pictures.pixels, own, titles, title, blur=0.0))


def _feature_maps(run: Run, request: Request) -> Drawing:
    pictures = _pictures(run, request)
    stage, maps = run.trunk_maps(pictures.pixels, request.stage)
    size = " x ".join(map(str, maps.shape[1:]))
    title = f"{run.config.model.trunk}, {stage} ({size}): the channels that vary most over the image"
    return Drawing(looks.draw_feature_maps(pictures.pixels, maps, title))


def _annotations(run: Run, request: Request) -> Drawing:
    pictures = _pictures(run, request)
    found = run.predict_pixels(pictures.pixels)
    scores, chosen = np.asarray(found.scores), found.chosen
    predicted = scores >= 0 if chosen is None else np.asarray(chosen)
    order = np.argsort(-scores, axis=1, kind="stable")
    names = [[run.class_names[i] for i in row if own[i]] for row, own in zip(order, predicted, strict=True)]
    truth = None
    if pictures.labels is not None:
        truth = [[run.class_names[i] for i in np.flatnonzero(row == 1)] for row in pictures.labels]
    rows = [("image", "truth", "predicted")]
    for i, name in enumerate(pictures.names):
        rows.append((name, "" if truth is None else ";".join(truth[i]), ";".join(names[i])))
    legend = "" if truth is None else "; grey: truth, blue: predicted and true, red: predicted and not in the truth"
    return Drawing(looks.draw_annotations(pictures.pixels, names, truth, f"{run.config.head}{legend}"), rows)


def _printed_table(run: Run | None, request: Request) -> Drawing:
    del run
    tables = printed.find(request.table)
    rows = [("dataset", "row", "column", "percent")]
    for table in tables:
        rows += [(table.dataset, row.label, *pair) for row in table.rows for pair in row.numbers.items()]
    return Drawing(printed.draw(tables, f"{request.table}, as printed"), rows)


def _pictures(run: Run, request: Request) -> Pictures:
    return run.pictures(request.images, split=request.split, count=request.count)


def _indices(run: Run, labels: Sequence[str]) -> np.ndarray | None:
    """Columns int [n] of the labels, None for no labels; UserError for one that the run does not know."""
    for label in labels:
        if label not in run.class_names:
            raise unknown("label", label, run.class_names)
    return np.array([run.class_names.index(label) for label in labels]) if labels else None


FIGURES = {
    "per-class": Entry("precision and recall of each class on a split", "CNN-RNN Fig. 7", _per_class),
    "box-recall": Entry("recall against the area of the objects' boxes", "CNN-RNN Fig. 8", _box_recall),
    "label-neighbours": Entry("nearest labels of labels", "CNN-RNN Table 5", _label_neighbours),
    "image-neighbours": Entry("nearest labels of images in the joint space", "CNN-RNN Fig. 9", _image_neighbours),
    "step-attention": Entry("where each step of a recurrent head looks", "CNN-RNN Fig. 10", _step_attention),
    "feature-maps": Entry("maps of a stage of the trunk", "CNN-LSTM-RMLC Fig. 2", _feature_maps),
    "saliency": Entry("pixels that a label's logit depends on", "CNN-LSTM-RMLC Fig. 7 (d-f)", _saliency),
    "grad-cam": Entry("regions that raise a label's logit", "none of them", _grad_cam),
    "annotations": Entry(
        "images with true and predicted labels",
        "Multi-order RNN Fig. 4, CNN-RNN Fig. 6, CNN-LSTM-RMLC Fig. 7 (a-c)",
        _annotations,
    ),
    "stage-attention": Entry("attention weights of the stages", "MSCNN-LCE-MIC section C", _stage_attention),
    "printed-table": Entry(
        "bars of a table as printed", "MSCNN-LCE-MIC Fig. 5 (I, II), Fig. 6 (V)", _printed_table, needs_run=False
    ),
}
