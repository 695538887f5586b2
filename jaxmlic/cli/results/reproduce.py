"""`jaxmlic reproduce`."""

from jaxmlic import papers, storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError, check_least
from jaxmlic.experiments import reproduce
from jaxmlic.reports import paper_page
from jaxmlic.reports.figures import canvas, printed


def main(argv: list[str]) -> int:
    parser = Parser(
        hosts=True,
        prog="jaxmlic reproduce",
        description="A paper's tables: for each row the command, the files it needs, the printed number with protocol "
        "and source, and ours from the finished runs.",
        epilog="Config fields that the runs have: --config.train.duration='5 epochs'.",
    )
    parser.add_argument("target", nargs="?", metavar="PAPER[/TABLE]", help="such as cnn_rnn or cnn_rnn/3")
    parser.add_argument("--list", action="store_true", help="all tables and figures there are")
    parser.add_argument("--workdir", metavar="DIR", help="of the runs, each data set in a folder (runs/PAPER)")
    parser.add_argument("--dataset", default="", metavar="NAME", help="a stand-in for the tables' own data set")
    parser.add_argument("--argument", default="", help="more of the experiments' argument, such as trunk=resnet50")
    parser.add_argument("--train", action="store_true", help="run what is missing")
    parser.add_argument("--seeds", type=int, default=1, help="with --train: runs of each entry")
    parser.add_argument("--weights", metavar="DIR", help="folder with a weight file for each trunk")
    parser.add_argument(
        "--out", metavar="DIR", help="also write PAPER.csv, the page PAPER.md and, of one table, its bars as png there"
    )
    options, overrides = parser.parse_known_args(argv)
    check_least("--seeds", options.seeds, 1)
    if options.list:
        names = [options.target.partition("/")[0]] if options.target else papers.names()
        print(paper_page.overview([papers.load(name) for name in names]))
        return 0
    if not options.target:
        raise UserError("reproduce: name a paper, or give --list")
    paper, tables = reproduce.tables_of(options.target)
    workdir = options.workdir or f"runs/{paper.name}"
    given = {
        "dataset": options.dataset,
        "argument": options.argument,
        "overrides": overrides,
        "weights": options.weights,
    }
    lines = reproduce.lines_of(tables, workdir, **given)
    failures = []
    if options.train:
        failures = reproduce.train(
            lines,
            workdir,
            seeds=options.seeds,
            overrides=overrides,
            weights=options.weights,
            report=lambda text: print(text, flush=True),
        )
        lines = reproduce.lines_of(tables, workdir, **given)
    needed = reproduce.needs(lines)
    print(paper_page.text(paper, lines, workdir, needed))
    if options.out:
        stem = storage.to_path(options.out) / options.target.replace("/", "_table_")
        reproduce.write_csv(f"{stem}.csv", lines)
        storage.write_text(f"{stem}.md", paper_page.markdown(paper, lines, workdir, needed))
        written = [f"{stem}.csv", f"{stem}.md"]
        if "/" in options.target:
            found = {(id(line.table), id(line.row)): line for line in lines}
            figure = printed.draw(
                list(tables),
                f"{options.target}, printed, and ours on {', '.join(sorted({line.dataset for line in lines} - {''}))}",
                lambda table, row, name: found[id(table), id(row)].our_number(name)[0],
            )
            canvas.save(figure, f"{stem}.png")
            written.append(f"{stem}.png")
        print(f"\nwritten: {', '.join(written)}")
    if failures:
        raise UserError(f"{len(failures)} runs failed: {'; '.join(failures)}")
    return 0
