"""Members and fusion of `jaxmlic ensemble` side by side."""

import numpy as np

from jaxmlic import metrics
from jaxmlic.evaluation.ensemble import Ensemble
from jaxmlic.reports.tables import table

SHOWN = ("mAP", "CP", "CR", "CF1", "CF1_mean", "OP", "OR", "OF1", "IF1", "MAP@10", "top1")


def text(ensemble: Ensemble) -> str:
    """A line a member and one of the ensemble, in percent; a star where the ensemble is above every member."""
    report, members = ensemble.report, ensemble.members
    rows = [
        [path, f"{weight:.3f}", *(f"{100 * member[key]:.2f}" for key in SHOWN)]
        for path, weight, member in zip(ensemble.paths, ensemble.weights, members, strict=True)
    ]
    above = {key: all(report[key] > member[key] for member in members) for key in SHOWN}
    cells = [f"{'*' if above[key] else ''}{100 * report[key]:.2f}" for key in SHOWN]
    rows.append([f"ensemble ({ensemble.space})", "", *cells])
    best = max(range(len(members)), key=lambda i: np.nan_to_num(members[i]["mAP"], nan=-1.0))
    gain = 100 * (report["mAP"] - members[best]["mAP"])
    return "\n".join(
        [
            f"protocol {report['protocol']}: {metrics.get_protocol(report['protocol']).description}",
            f"{report['num_examples']:,} images, {report['num_classes']} classes; percent; * above every member",
            "",
            table(rows, "<>", header=["", "weight", *SHOWN]),
            "",
            f"the ensemble {'beats' if above['mAP'] else 'does not beat'} its best member, {ensemble.paths[best]}: "
            f"{gain:+.2f} mAP",
        ]
    )
