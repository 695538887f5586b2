"""`jaxmlic propagate`."""

import argparse
from collections.abc import Sequence

from jaxmlic import config as config_lib
from jaxmlic import sharding
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError
from jaxmlic.experiments import pseudo_labels
from jaxmlic.propagation import WEIGHTS
from jaxmlic.propagation.method import ALPHA, METHODS, Method
from jaxmlic.training import run_folder


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a Method, and of what it works on."""
    parser.add_argument("--labelled", required=True, help='split whose labels are known, such as "few/labelled"')
    parser.add_argument("--split", default="train", help="split whose images get labels (train)")
    parser.add_argument("--method", default="improved", help=f"{', '.join(METHODS)} (improved)")
    own = ", ".join(f"{name} {k}" for name, k in METHODS.items())
    parser.add_argument("--k", type=int, default=0, help=f"neighbours of each image ({own})")
    parser.add_argument("--alpha", type=float, help=f"how far labels travel by diffusion, 0 to 1 ({ALPHA})")
    parser.add_argument("--neighbours", default="exact", help="exact, or approximate for large sets (exact)")
    parser.add_argument(
        "--decide",
        default="half",
        help="which of many labels an image gets: half, those with a score (a share, 0 to 1) of 0.5, or frequency, "
        "each label as often as among the labelled images (half)",
    )
    parser.add_argument(
        "--max-steps", type=int, default=0, help="limit of rounds, or of diffusion's steps (20 in Iscen et al.'s code)"
    )
    parser.add_argument(
        "--unknown-band",
        metavar="LOW,HIGH",
        help="labels with a score (a share, 0 to 1, no logit) from LOW on and below HIGH stay unknown",
    )
    parser.add_argument(
        "--weights", default="", help=f"of images, from how sure their labels are: {', '.join(WEIGHTS)} (method's own)"
    )
    parser.add_argument("--single-label", action="store_true", help="every image has exactly one label")
    parser.add_argument("--balance", action="store_true", help="diffuse equal mass for each class (one label each)")
    parser.add_argument("--class-weights", action="store_true", help="weigh images against imbalance (one label each)")


def method_of(options: argparse.Namespace) -> Method:
    """The Method of parsed options, checked."""
    method = Method(
        options.method,
        options.k,
        options.single_label,
        options.class_weights,
        options.alpha,
        options.neighbours,
        options.decide,
        options.balance,
        options.max_steps,
        _band(options.unknown_band),
        options.weights,
    )
    method.check()
    return method


def _band(text: str | None) -> tuple[float, ...]:
    """The numbers of --unknown-band, () where it is not given; UserError for text that holds none."""
    if text is None:
        return ()
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError:
        raise UserError(f"--unknown-band={text}: two numbers LOW,HIGH, such as 0.3,0.5") from None


def main(argv: Sequence[str]) -> int:
    """`jaxmlic propagate`."""
    parser = Parser(
        hosts=True,
        prog="jaxmlic propagate",
        description="Labels the unlabelled images of a training split from the labelled ones near them. Train on the "
        "file with --config.data.pseudo_labels=FILE.",
        epilog="`jaxmlic data split NAME --subset=10%% --from=train --as=few` makes few/labelled.",
    )
    parser.add_argument("--workdir", help="run whose best checkpoint gives the features; or:")
    parser.add_argument("--config", metavar="FILE[:ARG]", help="experiment whose trunk's features are stored")
    parser.add_argument("--data-dir", help="where the data sets are now, if not where the run found them")
    parser.add_argument("--out", required=True, help="the file to write, an npz; numbers go beside it, as json")
    add_options(parser)
    options, overrides = parser.parse_known_args(argv)
    if (options.workdir is None) == (options.config is None):
        raise UserError("propagate: give --workdir=RUN or --config=FILE, one of the two")
    if options.workdir is not None and overrides:
        raise UserError(f"propagate: {overrides[0]} means nothing with --workdir: the run has its config")
    method = method_of(options)
    config = config_lib.load(options.config, overrides) if options.config else run_folder.load(options.workdir).config
    if options.data_dir is not None:
        config = config_lib.override(config, {"data.dir": options.data_dir})
    sharding.use_cpu_devices(config.train.cpu_devices, config.train.batch_size)
    _, lines = pseudo_labels.propagate(
        config, method, labelled=options.labelled, out=options.out, split=options.split, workdir=options.workdir
    )
    print(*lines, sep="\n")
    return 0
