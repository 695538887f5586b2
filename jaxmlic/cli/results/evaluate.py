"""`jaxmlic evaluate`."""

from jaxmlic import metrics
from jaxmlic.cli.parser import Parser
from jaxmlic.experiments.runs import evaluate


def main(argv: list[str]) -> int:
    parser = Parser(
        hosts=True,
        prog="jaxmlic evaluate",
        description="Scores a split with a run's best checkpoint; prints and writes the metrics of a named protocol.",
        epilog="thresholds are logits: 0 is the probability 0.5; protocols: "
        + "; ".join(f"{p.name} ({p.description})" for p in metrics.PROTOCOLS.values()),
    )
    parser.add_argument("--workdir", required=True, help="folder of a `jaxmlic train`")
    parser.add_argument("--protocol", help="default: the run's config.eval.protocol")
    parser.add_argument(
        "--split", help='default: the run\'s test split; "selection" is the part that selected the checkpoint'
    )
    parser.add_argument(
        "--thresholds",
        action="store_true",
        help="decide by what `jaxmlic thresholds` fitted, not from the logit 0 (probability 0.5) up; written as "
        "SPLIT.fitted; or by the rule that it learned, under the protocol of the rule, such as top5_learned",
    )
    parser.add_argument("--data-dir", help="where the data sets are now, if not where the run found them")
    options = parser.parse_args(argv)
    evaluate(
        options.workdir,
        protocol=options.protocol,
        split=options.split,
        data_dir=options.data_dir,
        fitted=options.thresholds,
        report=print,
    )
    return 0
