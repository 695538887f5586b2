"""A small CNN with a linear head on `scenes`, the embedded data set of composed pictures.

Command:  jaxmlic train --config=configs/quickstart.py --workdir=runs/quickstart   (`make quickstart` does all of it)
"""

from jaxmlic.configs import common


def get_config(arg=None):
    arg = common.parse_arg(arg)
    config = common.base()
    config.data.name = "scenes"
    config.data.image_size = 48
    config.data.cache = True
    config.augment.crop_area = (0.6, 1.0)
    config.optim.lr = 4e-3
    config.optim.schedule = "one_cycle"
    config.optim.warmup = "25%"
    config.optim.weight_decay = 0.05
    config.train.batch_size = 128
    config.train.duration = "10 epochs"
    return common.smoke(config) if arg.smoke else config


def sweep():
    """Named entries of overrides: what each part of the recipe is worth."""
    return [
        ("recipe", {}),
        ("no_flip", {"augment.flip": False}),
        ("no_crop", {"augment.crop_area": (1.0, 1.0)}),
        ("max_pool", {"model.pool": "max"}),
        ("ema", {"optim.ema": 0.99}),
    ]
