"""Kernel ridge regression on a frozen EfficientNet-Lite0, fitted at once; 2PKNN and TagProp on the same features.

Arguments:  dataset=corel5k | voc2007_subset | <any prepared data set>,  head=kernel_ridge | two_pass_knn | tagprop,
            size=<side>,  recipe=lite0 | lite0_lite2 | full (descriptor sets: docs/features.md),  smoke
Commands:   jaxmlic features --config=kernel_ridge:dataset=corel5k --config.pretrained=efficientnet_lite0_imagenet.npz
            jaxmlic train --config=kernel_ridge:dataset=corel5k --workdir=runs/corel5k_ridge \\
                --config.pretrained=efficientnet_lite0_imagenet.npz --config.data.source=features
            Without the first one and data.source the trunk reads the photographs while it trains. The features are
            those of `linear:mode=frozen` at the same size.
Weights:    as for `linear`.
Measured:   Corel-5K at 160 px, top5_forced, test read once a row (mAP, F1, N+): kernel_ridge 47.6, 34.8, 140; with
            stages="stage4" to "stage7" and "head", weights 1/4 and 1, read from photographs, 51.2, 36.5, 144; tagprop
            43.3, 29.4, 125; two_pass_knn 34.4, 12.2, 55 (selected by mAP, which is not what its authors report). The
            fit of the first takes 39 s of one CPU core, tagprop's 65 s, two_pass_knn's 27 s.
"""

from jaxmlic.configs import common, stand_ins
from ml_collections import ConfigDict

from jaxmlic import config as config_lib


def get_config(arg=None):
    arg = config_lib.parse_arg(arg, dataset="corel5k", head=tuple(OWN), size=0, recipe=("", *RECIPES))
    config = common.base()
    config.head = arg.head
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
    # Sizes of several descriptors side by side in the vector, such as those of several networks in a features file
    # (config.data.source="file"); () = one descriptor.
    config.model.parts = ()
    config.model.weights = ()  # of the descriptors in the mean of their distances; () = equal
    OWN[arg.head](config.model)
    if arg.recipe:
        config.data.source = "descriptors"
        config.features.sets = RECIPES[arg.recipe]
        config.features.stages = ("stage4", "stage5", "stage6", "stage7")
        # Selected by the mAP of held-out training images of Corel-5K: equal weights for each trunk's pooled map and
        # its stages, 3/16 of all these for colour; texture and gradient lowered it.
        trunks = sum("@" in name for name in config.features.sets)
        config.model.weights = (1.0,) * 2 * trunks + (3 / 8 * trunks,) * (len(config.features.sets) - trunks)
        if arg.head == "kernel_ridge":
            config.model.bandwidths, config.model.ridges = (0.75, 1.0, 1.5), (0.05, 0.1)

    config.loss = ConfigDict()  # squares, in closed form
    config.optim.name = "none"
    config.optim.groups = common.FROZEN_GROUPS
    config.train.duration = "1 steps"  # the fit
    config.train.eval_every = "1 steps"
    config.train.log_every = "1 steps"
    config.train.batch_size = 32  # of images on their way through the trunk
    common.test_rules(config)
    return smoke(config) if arg.smoke else config


RECIPES = {
    "lite0": ("efficientnet_lite0@224",),
    "lite0_lite2": ("efficientnet_lite0@224", "efficientnet_lite2@288"),
    "full": (
        "efficientnet_lite0@224",
        "efficientnet_lite1@288",
        "efficientnet_lite2@224",
        "efficientnet_lite2@288",
        "colour",
    ),
}


def kernel_ridge(model):
    # "mean_distance": exp(-bandwidth d), d the mean of 2 - 2 cos of the descriptors, each divided by its mean over
    # train; "rbf": the same of squared Euclidean distances; "linear": the product of centred descriptors.
    model.kernel = "mean_distance"
    model.bandwidths = (0.75, 1.5, 3.0)  # one is selected; the mean of d over train is 1
    model.ridges = (0.03, 0.1, 0.3, 1.0)  # one is selected
    model.folds = 9  # held-out parts of train; 0 = one image each
    # More training images: no matrix N x N, but the features of so many landmarks among them (Nystrom).
    model.exact_limit = 10_000
    model.landmarks = 4_000


def two_pass_knn(model):
    model.group_sizes = (2, 4, 8)  # K1, the nearest images that have a label, of each label; one is selected
    model.bandwidths = (2.0, 5.0, 10.0, 20.0)  # of the weights exp(-bandwidth d); one is selected


def tagprop(model):
    model.form = "distance"  # weights exp(-theta d), theta of each descriptor learned; or "rank", one for each rank
    model.sigmoids = True  # one for each label, which lets rare labels be predicted
    model.neighbours = 200  # K
    model.rounds = 5  # of the sigmoids and 20 steps of the weights


OWN = {"kernel_ridge": kernel_ridge, "two_pass_knn": two_pass_knn, "tagprop": tagprop}


def smoke(config):
    """Few images: seconds."""
    config = common.smoke(config)
    config.train.duration = config.train.eval_every = config.train.log_every = "1 steps"
    return config


def sweep():
    """What the kernel is worth, and the published methods of neighbours on the same features."""
    return [
        ("recipe", {}),
        ("rbf", {"model.kernel": "rbf"}),
        ("linear", {"model.kernel": "linear", "model.ridges": (1.0, 10.0, 100.0, 1000.0)}),
        config_lib.Entry("two_pass_knn", argument="head=two_pass_knn"),
        config_lib.Entry("tagprop", argument="head=tagprop"),
        config_lib.Entry("tagprop_rank", {"model.form": "rank"}, argument="head=tagprop"),
        config_lib.Entry(
            "tagprop_rank_plain", {"model.form": "rank", "model.sigmoids": False}, argument="head=tagprop"
        ),
    ]
