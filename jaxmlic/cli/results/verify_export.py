"""`jaxmlic verify-export`."""

from jaxmlic import export
from jaxmlic import run as run_lib
from jaxmlic.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Prints the metrics of both; UserError where they differ."""
    parser = Parser(
        prog="jaxmlic verify-export",
        description="Scores the photographs of a split with a run, and with its bundle in a process that can import "
        "jax, numpy and Pillow alone; ends with status 2 where scores, paths or metrics differ. Runs the bundle's own "
        "run_bundle.py: verify bundles that you trust.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a `jaxmlic train`")
    parser.add_argument("bundle", metavar="DIR", help="folder of a `jaxmlic export`")
    parser.add_argument("--split", help="default: the run's test split")
    parser.add_argument("--data-dir", help="where the data sets are now, if not where the run found them")
    options = parser.parse_args(argv)
    bundle = export.read(options.bundle)
    run = run_lib.load(options.run, options.data_dir, bundle.facts["run"]["step"])
    found = export.verify(run, bundle, options.split, progress=True)
    width = max(map(len, found.run))
    print(f"{'':{width}}  {'run':>10}  {'bundle':>10}  {found.images:,} images of {found.split!r}")
    for name, value in found.run.items():
        print(f"{name:{width}}  {value:10.6f}  {found.bundle[name]:10.6f}")
    paths = "" if found.other_paths is None else f"; {found.other_paths} images with another path"
    print(
        f"largest differences: {found.score_difference:.3g} of a score, {found.metric_difference:.3g} of a metric; "
        f"{found.other_decisions} labels decided otherwise; {found.other_pixels} images read in other pixels{paths}"
    )
    found.check(options.bundle)
    return 0
