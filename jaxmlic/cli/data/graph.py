"""`jaxmlic data graph NAME`: which labels of a data set go together, and the matrix that a GCN gets from it."""

import argparse
import json
from pathlib import Path

import numpy as np

from jaxmlic.cli.parser import add_command
from jaxmlic.data import datasets
from jaxmlic.errors import UserError, writing
from jaxmlic.labels import graph as label_graph
from jaxmlic.reports import graph_report
from jaxmlic.storage import save_npz, to_path

THRESHOLDS = {"paper": 0.4, "ml_gcn": 0.4, "pmi": 0.1}
REWEIGHT = 0.25
REMEDY = "give another folder with --out=DIR"

_EPILOG = """\
styles:
  paper     conditional probabilities from the threshold on, MSCNN-LCE-MIC's eqs 6-8
  ml_gcn    ML-GCN's released code: binary edges, the matrix transposed
  pmi       normalised pointwise mutual information, which no frequent class dominates
  identity  no edges

graph.npz holds names, counts, num_positive, association (what the threshold is compared with), matrix, and options
as JSON.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """The options of `jaxmlic data graph`."""
    parser = add_command(
        commands,
        "graph",
        run,
        "which labels go together, and the matrix that a graph network multiplies with",
        "Count which labels go together, print the strongest pairs, and write graph.npz and graph.png.",
        _EPILOG,
    )
    parser.add_argument("name", metavar="NAME", help="a prepared data set")
    parser.add_argument("--split", default="train", help="the split whose labels are counted (train)")
    parser.add_argument("--style", choices=label_graph.STYLES, default="paper", help="how edges are weighted (paper)")
    parser.add_argument(
        "--threshold",
        type=float,
        help="a pair is an edge from this P(other | label) on (0.4), for pmi from this normalised PMI on (0.1)",
    )
    parser.add_argument("--reweight", type=float, help=f"weight of the neighbours against a label's own 1 ({REWEIGHT})")
    parser.add_argument("--out", help="folder for graph.npz and graph.png (graph/ in the data set's own folder)")


def run(args: argparse.Namespace) -> int:
    """Prints the table, writes graph.npz and graph.png, and returns 0; raises UserError on a user's mistake."""
    for option in ("threshold", "reweight"):
        if args.style == "identity" and getattr(args, option) is not None:
            raise UserError(f"--{option} changes nothing for --style=identity")
    dataset = datasets.load(args.name, args.data_dir, records=False)
    graph = build(dataset, args.split, args.style, args.threshold, args.reweight)
    print(graph_report.text(graph))
    out = to_path(args.out) if args.out else dataset.home / "graph"
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        save(out / "graph.npz", graph)
        graph_report.plot(out / "graph.png", graph)
    print(f"\nall of it in {out / 'graph.npz'}, drawn in {out / 'graph.png'}")
    return 0


def build(
    dataset: datasets.Dataset,
    split: str,
    style: str = "paper",
    threshold: float | None = None,
    reweight: float | None = None,
) -> dict:
    """Count the labels of a split and make the matrix.

    Args:
      dataset: a prepared data set.
      split: a stored one, or "NAME/PART" of a named one.
      style: one of label_graph.STYLES.
      threshold: see label_graph.adjacency; None for the style's own.
      reweight: likewise.

    Returns:
      `dataset`, `split`, `num_images`, `style`, `threshold`, `reweight` (both None for "identity"), `names`, `counts`
      int64 [C, C], `num_positive` int64 [C], `association` float64 [C, C], `edges` bool [C, C] (from row to column) and
      `matrix` float32 [C, C].

    Raises:
      UserError: an unknown split, or a threshold or reweight out of its range.
    """
    labels = dataset.labels(split)
    counts, num_positive = label_graph.cooccurrence(labels)
    options = {}
    if style != "identity":
        options["threshold"] = THRESHOLDS[style] if threshold is None else threshold
        options["reweight"] = REWEIGHT if reweight is None else reweight
    try:
        matrix = label_graph.adjacency(counts, num_positive, **options, style=style)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    association = label_graph.association(counts, num_positive, style)
    edges = association >= options["threshold"] if options else np.zeros(matrix.shape, bool)
    return {
        "dataset": dataset.name,
        "split": split,
        "num_images": len(labels),
        "style": style,
        "threshold": options.get("threshold"),
        "reweight": options.get("reweight"),
        "names": dataset.class_names,
        "counts": counts,
        "num_positive": num_positive,
        "association": association,
        "edges": edges,
        "matrix": matrix,
    }


def save(path: Path, graph: dict) -> None:
    """Writes what `build` returned as an npz: arrays by their names, the rest as JSON text in `options`; UserError."""
    arrays = {key: graph[key] for key in ("counts", "num_positive", "association", "matrix")}
    fields = ("dataset", "split", "num_images", "style", "threshold", "reweight")
    options = json.dumps({key: graph[key] for key in fields})
    save_npz(path, {"names": graph["names"], "options": options} | arrays, remedy=REMEDY)
