"""How far the losses of a run on several hosts and devices are from those on one: in single and in double precision.

    python benchmarks/hosts.py [--systems="cnn_rnn;cnn_lstm_rmlc.path"] [--layouts=2x4] [--steps=20]

Trains the systems of tests/hosts_test.py (on its data set, with its sizes) on 1 process x 1 device and on the layouts,
once as they are and once with doubles wherever the library says float32, and prints the largest relative difference
over the steps. What is the same computation but for the order of sums should differ less in double precision by about
the ratio of the two roundings; what does not is another computation. A minute or two for each run on a free core.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import conftest
import hosts
import hosts_test

from jaxmlic.data.prepare import writer

NUMBERS = ("train/loss", "train/grad_norm")


def differences(folder: Path, data_dir: Path, system: str, before: str, layouts: list[str], steps: int) -> list[str]:
    """One text a layout: the largest relative difference of each number from the run on one device."""
    values = hosts_test.values_of(system) | {"train.duration": f"{steps} steps", "train.eval_every": f"{steps} steps"}
    rows = []
    for layout in ("1x1", *layouts):
        workdir = hosts_test.train(folder / layout, data_dir, *map(int, layout.split("x")), values, before)
        rows.append([row for row in hosts_test.rows_of(workdir) if NUMBERS[0] in row])
    found = []
    for layout, other in zip(layouts, rows[1:], strict=True):
        pairs = list(zip(rows[0], other, strict=True))
        worst = [max(abs(b[name] / a[name] - 1) for a, b in pairs) for name in NUMBERS]
        found.append(f"{layout}: " + ", ".join(f"{name} {x:.1e}" for name, x in zip(NUMBERS, worst, strict=True)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=";".join(hosts_test.SYSTEMS))
    parser.add_argument("--layouts", default="1x8,2x4,4x2")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        splits = {"train": conftest.examples("train", 72, 0), "test": conftest.examples("test", 29, 1)}
        writer.write("tiny", Path(temporary) / "data", list(conftest.COLOURS), splits, {})
        for system in options.systems.split(";"):
            for precision, before in (("single", ""), ("double", hosts.DOUBLE)):
                folder = Path(temporary) / f"{system} {precision}"
                given = (folder, Path(temporary) / "data", system, before, options.layouts.split(","), options.steps)
                for text in differences(*given):
                    print(f"{system}, {precision}, {text}", flush=True)


if __name__ == "__main__":
    main()
