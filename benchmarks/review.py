"""Precision of the first labels that `jaxmlic data review` lists, on labels made wrong on purpose, against chance.

    python benchmarks/review.py --config=linear:dataset=voc2007_subset,mode=frozen --workdir=runs/review \\
        --config.pretrained=WEIGHTS --config.data.source=features

Five folds are trained for each kind of noise (`data.noise`, at --rate, `data.noise_seed` 0), by the recipe of the
config; both rankings then judge the same out-of-fold scores. A label counts as wrong where the noise changed it. Errors
of the data set's own annotators count as right, so the numbers are a little low. Complete folds are not trained again.
"""

import argparse
import time

import numpy as np

from jaxmlic import config as config_lib
from jaxmlic.cli import main as cli
from jaxmlic.evaluation import review
from jaxmlic.experiments.review import fold_scores
from jaxmlic.metrics.label_errors import RANKINGS
from jaxmlic.reports.tables import percent, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--kinds", default="random,flip,missing")
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--first", default="100,500")
    options, overrides = parser.parse_known_args()
    cli.keep_freed_memory()
    cli.quiet_libraries()
    firsts, rows = [int(first) for first in options.first.split(",")], []
    for kind in options.kinds.split(","):
        began = time.perf_counter()
        noise = {"data.noise": kind, "data.noise_rate": options.rate, "data.noise_seed": 0}
        config = config_lib.override(config_lib.load(options.config, overrides), noise)
        found = fold_scores(config, f"{options.workdir}/{kind}", options.folds, print)
        if found is None:
            return
        seconds = time.perf_counter() - began
        given = found.scores.labels
        wrong = (given >= 0) & (given != found.truth)
        for ranking in RANKINGS:
            own = review.find(found.scores, ranking, max(firsts))
            cells = [percent(review.hits(own.errors[:first], given, found.truth)[0]) for first in firsts]
            flagged = sum(own.confident.values()) if ranking == "confident" else 0
            rows.append(
                [kind, ranking, f"{np.count_nonzero(wrong):,}", percent(review.hits([], given, found.truth)[1])]
            )
            rows[-1] += [*cells, f"{flagged:,}" if flagged else "-", f"{seconds:.0f}"]
    header = ["noise", "ranking", "wrong labels", "chance", *(f"first {first}" for first in firsts), "flagged", "s"]
    print(f"rate {options.rate:g}, {options.folds} folds; precision in percent\n" + table(rows, "<<>", header=header))


if __name__ == "__main__":
    main()
