"""`jaxmlic compare`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError, check_least
from jaxmlic.evaluation import compare
from jaxmlic.progress import Progress
from jaxmlic.reports.convergence import names_of
from jaxmlic.reports.decisions import compare_table
from jaxmlic.training import run_folder

MOST_PAIRS = 200


def main(argv: Sequence[str]) -> int:
    """Prints the files side by side under each protocol, why they differ, intervals and paired tests."""
    parser = Parser(
        prog="jaxmlic compare",
        description="Puts score files side by side on the images that all of them have: why two numbers differ, how "
        "far chance of the images could go, and what should not be trusted.",
        epilog="jaxmlic compare runs/a runs/b/scores/test.npz --protocol=all --out=comparison.json",
    )
    parser.add_argument(
        "files", nargs="*", metavar="SCORES", help="score files of `jaxmlic evaluate`, or run folders with them"
    )
    parser.add_argument("--split", help="whose scores are taken from run folders (default: the run's test split)")
    parser.add_argument("--protocol", help='names with commas between them, or "all" (default: those of the files)')
    parser.add_argument("--numbers", default="mAP,CF1,OF1", help="with intervals and tests (default: %(default)s)")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="PROBABILITY",
        help="one for all files, such as 0.5, which is logit 0 (default: each file's own)",
    )
    parser.add_argument("--pairs", choices=("first", "all"), default="first", help="what is tested (the first file)")
    parser.add_argument(
        "--test", choices=compare.TESTS, default="bootstrap", help="where p values are from (default: %(default)s)"
    )
    parser.add_argument("--draws", type=int, default=1000, help="resamples of the images; 0 = none (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    parser.add_argument("--out", help="also write all numbers there, a .json or .csv file")
    options = parser.parse_args(argv)
    if not options.files:
        raise UserError("compare: no score files given; name files that `jaxmlic evaluate` wrote, or run folders")
    check_least("--draws", options.draws, 0)
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise UserError(f"--threshold={options.threshold:g}: a probability between 0 and 1; 0.5 is logit 0")
    if options.out and storage.to_path(options.out).suffix not in (".json", ".csv"):
        raise UserError(f"--out={options.out}: its name ends in .json or .csv")
    paths = [find_scores(file, options.split) for file in options.files]
    for number, path in enumerate(paths):
        if storage.resolve(path) in [storage.resolve(other) for other in paths[:number]]:
            raise UserError(f"compare: {path} is given twice")
    numbers = options.numbers.split(",")
    found = compare.compare(
        [str(path) for path in paths],
        names_of([path.with_suffix("") for path in paths]),
        protocol=options.protocol,
        numbers=numbers,
        probability=options.threshold,
        all_pairs=options.pairs == "all",
        test=options.test,
        draws=options.draws,
        seed=options.seed,
        start=show_progress,
    )
    print(compare_table.text(found, numbers))
    if options.out:
        out = storage.to_path(options.out)
        if out.suffix == ".json":
            storage.write_json(out, compare_table.as_json(found))
        else:
            compare_table.write_csv(out, found)
        print(f"\nwritten: {out}")
    return 0


def find_scores(file: str, split: str | None) -> Path:
    """A score file, or that of a run folder. UserError for a folder without a run, or without scores."""
    path = storage.to_path(file)
    if not path.is_dir():
        return path
    if not (path / run_folder.CONFIG_FILE).is_file():
        raise UserError(f"{path}: neither a score file nor a run folder (it has no {run_folder.CONFIG_FILE})")
    split = split or run_folder.load(path).config.data.test_split
    found = run_folder.scores_file(path, split)
    if not found.is_file():
        raise UserError(
            f"{path}: has no scores of {split!r}; make them: jaxmlic evaluate --workdir={path} --split={split}"
        )
    return found


def show_progress(total: int) -> Callable[[int], None]:
    """A bar of draws, which goes away at the end."""
    progress = Progress("resampling", total, "draws", transient=True)

    def advance(done: int) -> None:
        progress.advance(done)
        if progress.done >= total:
            progress.close()

    return advance
