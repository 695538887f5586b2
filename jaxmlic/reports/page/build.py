"""The page itself: members to one HTML file, all text escaped, nothing fetched from anywhere."""

import html
import json
from collections.abc import Sequence
from importlib import resources
from string import Template

import numpy as np

from jaxmlic import metrics, storage
from jaxmlic.evaluation import score_facts
from jaxmlic.reports import embeddings
from jaxmlic.reports.page import gallery, numbers, pointing
from jaxmlic.reports.page.members import Member

_SUMMARY = ("mAP", "CP", "CR", "CF1", "CF1_mean", "OP", "OR", "OF1", "IP", "IR", "IF1", "MAP@10", "top1")


def build(members: Sequence[Member], images: int, title: str | None = None) -> str:
    """The HTML of a report.

    Args:
      members: of the same images and classes.
      images: photographs in the page, at most, divided over the runs.
      title: of the page; None for the data set's name and the split.
    """
    first = members[0]
    labels = first.scores.labels
    positives = (labels == 1).sum(axis=0)
    classes = numbers.graph_classes(labels, [one.predicted for one in members])
    runs = [_run(one, positives, classes, images // len(members)) for one in members]
    dataset = str(first.scores.config.get("data", {}).get("name") or "scores")
    title = title or f"{dataset}, {first.scores.split}"
    protocol = metrics.get_protocol(first.numbers["protocol"])
    data = {
        "classes": first.scores.class_names,
        "positives": positives.tolist(),
        "graph_classes": classes.tolist(),
        "communities": embeddings.communities(labels).tolist(),
        "runs": runs,
    }
    facts = (
        f"{len(labels):,} images, {len(first.scores.class_names):,} classes ({first.numbers['num_classes']:,} in the "
        f"means), protocol {protocol.name}: {protocol.description}"
    )
    from plotly.offline import get_plotlyjs  # slow to import

    values = {
        "title": html.escape(title),
        "facts": html.escape(facts),
        "summary": _summary(members),
        "notes": _notes(members, runs),
        "pointing": _pointing(members),
        "style": _asset("page.css"),
        "plotly": get_plotlyjs(),
        "data": _script_json(data),
        "script": _asset("page.js"),
    }
    return Template(_asset("page.html")).substitute(values)


def _run(member: Member, positives: np.ndarray, classes: np.ndarray, images: int) -> dict:
    scores, labels = member.scores.scores, member.scores.labels
    photographs, notes = gallery.build(member, images)
    precision, recall = member.numbers["P"], member.numbers["R"]
    found = {
        "name": member.name,
        "notes": [*member.notes, *notes],
        "unit": score_facts.unit_of(scores),
        "AP": numbers.plain(member.numbers["AP"]),
        "P": numbers.plain(precision),
        "R": numbers.plain(recall),
        "curves": numbers.curves(member.history),
        "pr": numbers.precision_recall(scores, labels),
        "confusion": numbers.confused(numbers.confusion(labels, member.predicted), positives),
        "graph": numbers.graph_of(labels, member.predicted, classes),
        "gallery": photographs,
        "embeddings": {},
    }
    if member.run is not None:
        order = [member.run.class_names.index(name) for name in member.scores.class_names]
        tables = member.run.label_embeddings()
        found["embeddings"] = {
            name: numbers.plane(table[order]) for name, table in tables.items() if len(table) == len(order) >= 3
        }
    return found


def _script_json(data: dict) -> str:
    """JSON that may stand in a script element: no "<" can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _summary(members: Sequence[Member]) -> str:
    """A table with a row for each metric, a column for each run."""
    rows = [(key, [one.numbers[key] for one in members]) for key in _SUMMARY]
    head = "".join(f'<th scope="col">{html.escape(one.name)}</th>' for one in members)
    body = "".join(
        f'<tr><th scope="row">{html.escape(key)}</th>'
        + "".join("<td>-</td>" if np.isnan(v) else f"<td>{100 * v:.2f}</td>" for v in values)
        + "</tr>"
        for key, values in rows
    )
    thresholds = "".join(f"<td>{html.escape(score_facts.threshold_text(one.scores))}</td>" for one in members)
    body += f'<tr><th scope="row">threshold</th>{thresholds}</tr>'
    caption = (
        "Metrics in percent: mAP and those with C are means over classes, with O over all labels, with I over images."
    )
    return _table(caption, f'<th scope="col">metric</th>{head}', body)


def _table(caption: str, head: str, body: str) -> str:
    return (
        f"<table><caption><span>{caption}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _notes(members: Sequence[Member], runs: Sequence[dict]) -> str:
    lines = [
        f"<li><strong>{html.escape(one.name)}</strong>: {html.escape(note)}</li>"
        for one, run in zip(members, runs, strict=True)
        for note in run["notes"]
    ]
    return f'<ul class="notes">{"".join(lines)}</ul>' if lines else ""


def _pointing(members: Sequence[Member]) -> str:
    """Tables of the pointing game of the runs that have played it."""
    tables = []
    for one in members:
        path = None if one.run is None else pointing.path_of(one.path, one.scores.split)
        if path is None or not path.is_file():
            continue
        found = storage.read_json(path)

        def cell(value: float | None) -> str:
            return "<td>-</td>" if value is None else f"<td>{100 * value:.1f}</td>"

        body = "".join(
            f'<tr><th scope="row">{html.escape(form["form"])}</th><td>{sum(form["pairs"]):,}</td>'
            + "".join(cell(form[key]) for key in ("share", "centre", "hard_share", "hard_centre"))
            + "</tr>"
            for form in found["forms"]
        )
        head = "".join(
            f'<th scope="col">{name}</th>'
            for name in ("map", "pairs", "hits (%)", "centre (%)", "hard: hits (%)", "hard: centre (%)")
        )
        caption = (
            f"{html.escape(one.name)}: does the highest point of a map lie on an object of the label? "
            f"{found['images']:,} images with boxes; the centre of the image is the baseline."
        )
        tables.append(_table(caption, head, body))
    return "".join(tables) or (
        "<p>Not played: <code>jaxmlic pointing --workdir=RUN</code> says whether the maps point at the objects, where "
        "the data set has boxes.</p>"
    )
