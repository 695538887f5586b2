"""Kernel ridge regression on a frozen EfficientNet-Lite0: fitted at once, ridge and bandwidth by held-out images.

Arguments:  dataset=corel5k | voc2007_subset | <any prepared data set>,  size=<side>,  smoke
Commands:   jaxmlic features --config=kernel_ridge:dataset=corel5k --config.pretrained=efficientnet_lite0_imagenet.npz
            jaxmlic train --config=kernel_ridge:dataset=corel5k --workdir=runs/corel5k_ridge \\
                --config.pretrained=efficientnet_lite0_imagenet.npz --config.data.source=features
            Without the first one and data.source the trunk reads the photographs while it trains. The features are
            those of `linear:mode=frozen` at the same size.
Weights:    as for `linear`.
"""

from jaxmlic.configs import common, stand_ins
from ml_collections import ConfigDict

from jaxmlic import config as config_lib


def get_config(arg=None):
    arg = config_lib.parse_arg(arg, dataset="corel5k", size=0)
    config = common.base()
    config.head = "kernel_ridge"
    config.data.name = arg.dataset
    config.data.image_size = arg.size or stand_ins.SIDES.get(arg.dataset, stand_ins.SIDE)
    config.data.val_fraction = 0.0  # every training image; held-out scores select

    config.model = ConfigDict()
    config.model.trunk = "efficientnet_lite0"  # frozen
    config.model.batch_norm = "frozen"
    config.model.dtype = "float32"  # of the trunk
    config.model.pool = "avg"  # feature map -> descriptor: "avg" or "max"
    # Stages of the trunk in place of its feature map, one descriptor each: the last one pooled, of each other one the
    # mean and deviation of its channels, standardised: ("stage4", "stage5", "stage6", "stage7", "head").
    config.model.stages = ()
    config.model.weights = ()  # of the descriptors in the mean of their distances; () = equal
    # "mean_distance": exp(-bandwidth d), d the mean of 2 - 2 cos of the descriptors, each divided by its mean over
    # train; "rbf": the same of squared Euclidean distances; "linear": the product of centred descriptors.
    config.model.kernel = "mean_distance"
    config.model.bandwidths = (0.75, 1.5, 3.0)  # one is selected; the mean of d over train is 1
    config.model.ridges = (0.03, 0.1, 0.3, 1.0)  # one is selected
    config.model.folds = 9  # held-out parts of train; 0 = one image each
    # More training images: selected on so many of them, solved by conjugate gradients without the matrix N x N.
    config.model.exact_limit = 10_000

    config.loss = ConfigDict()  # squares, in closed form
    config.optim.name = "none"
    config.optim.groups = common.FROZEN_GROUPS
    config.train.duration = "1 steps"  # the fit
    config.train.eval_every = "1 steps"
    config.train.log_every = "1 steps"
    config.train.batch_size = 32  # of images on their way through the trunk
    common.test_rules(config)
    return smoke(config) if arg.smoke else config


def smoke(config):
    """Few images and one setting: seconds."""
    config = common.smoke(config)
    config.train.duration = config.train.eval_every = config.train.log_every = "1 steps"
    config.model.bandwidths, config.model.ridges = (1.5,), (0.1,)
    return config


def sweep():
    """What the kernel is worth."""
    return [
        ("recipe", {}),
        ("rbf", {"model.kernel": "rbf"}),
        ("linear", {"model.kernel": "linear", "model.ridges": (1.0, 10.0, 100.0, 1000.0)}),
    ]
