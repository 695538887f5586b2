"""`jaxmlic features`."""

from jaxmlic import config as config_lib
from jaxmlic import sharding
from jaxmlic.cli.parser import Parser
from jaxmlic.experiments.runs import store_features


def main(argv: list[str]) -> int:
    """`jaxmlic features`."""
    parser = Parser(
        hosts=True,
        prog="jaxmlic features",
        description="Runs an experiment's frozen trunk once over its data set and keeps the features. Then train with "
        "the same --config and overrides and --config.data.source=features: hundreds of times faster. With "
        "--config.data.source=descriptors the descriptor sets of config.features.sets are computed, each once.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="experiment file")
    options, overrides = parser.parse_known_args(argv)
    config = config_lib.load(options.config, overrides)
    sharding.use_cpu_devices(config.train.cpu_devices, config.train.batch_size)
    folder = store_features(config, print)
    print(f"features in {folder}")
    source = "" if config.features.sets else ", with --config.data.source=features"
    print(f"train from them: the same command as for training{source}")
    return 0
