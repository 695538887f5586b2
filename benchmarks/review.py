"""Precision of the first labels that `jaxmlic data review` lists, on labels made wrong on purpose, against chance.

    python benchmarks/review.py --config=linear:dataset=voc2007_subset,mode=frozen --workdir=runs/review \\
        --config.pretrained=WEIGHTS --config.data.source=features

Five folds are trained for each kind of noise (`data.noise`, at --rate) and each of --seeds (`data.noise_seed` 0, 1,
...), by the recipe of the config; both rankings then judge the same out-of-fold scores. Means and deviations are over
seeds. A label counts as wrong where the noise changed it: errors of the data set's own annotators count as right, so
the numbers are a little low. Complete folds are not trained again.
"""

import argparse
import time

import numpy as np

from jaxmlic import config as config_lib
from jaxmlic.cli import main as cli
from jaxmlic.evaluation import review
from jaxmlic.experiments.review import fold_scores
from jaxmlic.metrics.label_errors import RANKINGS
from jaxmlic.reports.tables import spread_cell, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--kinds", default="random,flip,missing")
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", default="100,500")
    options, overrides = parser.parse_known_args()
    cli.keep_freed_memory()
    cli.quiet_libraries()
    firsts, rows = [int(first) for first in options.first.split(",")], []
    for kind in options.kinds.split(","):
        cells: dict[str, list[list[float]]] = {ranking: [] for ranking in RANKINGS}
        counts, began = [], time.perf_counter()
        for seed in range(options.seeds):
            noise = {"data.noise": kind, "data.noise_rate": options.rate, "data.noise_seed": seed}
            config = config_lib.override(config_lib.load(options.config, overrides), noise)
            found = fold_scores(config, f"{options.workdir}/{kind}{seed}", options.folds, print)
            if found is None:
                return
            given = found.scores.labels
            for ranking in RANKINGS:
                own = review.find(found.scores, ranking, max(firsts))
                precise = [review.hits(own.errors[:first], given, found.truth) for first in firsts]
                cells[ranking].append([precise[0][1], *(precision for precision, _ in precise)])
            counts.append([np.count_nonzero((given >= 0) & (given != found.truth)), sum(own.confident.values())])
        wrong, flagged = np.mean(counts, axis=0)
        seconds = f"{time.perf_counter() - began:.0f}"
        for ranking, own in cells.items():
            numbers = [spread_cell(column) for column in zip(*own, strict=True)]
            rows.append([kind, ranking, f"{wrong:,.0f}", *numbers, f"{flagged:,.0f}", seconds])
    header = [
        "noise",
        "ranking",
        "wrong labels",
        "chance",
        *(f"first {first}" for first in firsts),
        "flagged",
        "seconds",
    ]
    print(f"rate {options.rate:g}, {options.folds} folds; precision in percent\n" + table(rows, "<<>", header=header))


if __name__ == "__main__":
    main()
