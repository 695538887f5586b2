"""A small CNN with a linear head on `scenes`, the embedded data set of composed pictures.

Command:  jaxmlic train --config=configs/quickstart.py --workdir=runs/quickstart   (`make quickstart` does all of it)
Measured: 90.0 mAP (all_point) on the test split; 163 s on 2 CPU cores.
"""

from jaxmlic.configs import common

from jaxmlic import config as config_lib


def get_config(arg=None):
    arg = config_lib.parse_arg(arg)
    config = common.base()
    config.data.name = "scenes"
    config.data.image_size = 48
    config.data.cache = True
    config.data.val_fraction = 0.05
    config.augment.crop_area = (0.85, 1.0)
    config.augment.crop_aspect = (0.9, 1.1)
    config.model.pool = "avg_max"
    config.optim.lr = 4e-3
    config.optim.schedule = "one_cycle"
    config.optim.warmup = "25%"
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 1.0
    config.train.batch_size = 64
    config.train.duration = "13 epochs"
    config.train.cpu_devices = 0
    return common.smoke(config) if arg.smoke else config


def sweep():
    """Named entries of overrides: what each part of the recipe is worth."""
    return [
        ("recipe", {}),
        ("no_flip", {"augment.flip": False}),
        ("no_crop", {"augment.crop_area": (1.0, 1.0)}),
        ("avg_pool", {"model.pool": "avg"}),
        ("ema", {"optim.ema": 0.99}),
    ]
