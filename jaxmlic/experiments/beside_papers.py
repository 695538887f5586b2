"""The papers' printed numbers beside those of a sweep."""

from collections.abc import Mapping, Sequence

from jaxmlic import papers
from jaxmlic.experiments.sweeps.results import SHOWN
from jaxmlic.reports import tables

COMPARED = (*SHOWN, "CF1_mean", "top1_step")


def compare(experiment: str, rows: Sequence[dict], datasets: Mapping[str, str]) -> str:
    """A line for each entry and printed row that stand for the same method: metrics, protocol and who measured it.

    Args:
      experiment: the config's name, such as "cnn_rnn".
      rows: of the sweep. Folds of a series are averaged; runs with wrong labels have no number in the papers.
      datasets: the data set of each entry.

    Returns:
      The text, "" where the papers have none of the entries.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for one in rows:
        if one["noise_rate"] is None:
            groups.setdefault((datasets[one["entry"]], one["series"]), []).append(one)
    lines = []
    for (dataset, series), runs in groups.items():
        for paper, table, printed in papers.rows_of(experiment, dataset, series):
            numbers = [
                f"{name} {100 * tables.spread([one.get(name) for one in runs])[0]:.2f}, paper {value:g}"
                for name, value in printed.numbers.items()
                if name in COMPARED
            ]
            protocols = sorted({one["protocol"] for one in runs} - {printed.protocol})
            ours = f", ours {', '.join(protocols)}" if protocols else ""
            source = f"{paper.name} Table {table.number}, {table.split}, {printed.protocol}{ours}"
            note = f"; {printed.note}" if printed.note else ""
            if numbers:
                lines.append(f"{series}: {'; '.join(numbers)} ({source}, measured by: {printed.measured_by}{note})")
    return "\n".join(["beside the papers' numbers, percent:", *lines]) if lines else ""
