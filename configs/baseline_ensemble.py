"""VGG16 and ResNet-101 with flips (M1), random resized crops (M2) or mixup (M3), fused by the mean of their scores.

Paper:      Wang, Jia, Breckon, "A Baseline for Multi-Label Image Classification Using an Ensemble of Deep Convolutional
            Neural Networks", ICIP 2019. Its numbers: jaxmlic/papers/baseline_ensemble.toml. Commands:
            docs/experiments.md.
Arguments:  dataset=voc2007 | coco2014 | nus_wide | <any prepared data set>,  trunk=resnet101 | vgg16_fc | <any trunk>,
            mode=m1 | m2 | m3,  size=<side>,  smoke
Sweep:      the nine rows of Table 2 for the data set and the trunk of the argument, all 54 rows without an argument.
            `size` is the largest of its three sizes, the others are 3/4 and 7/8 of it.

Read into the paper: momentum 0.9; no weight decay; the loss is Eq. 1 divided by the number of classes, as in PyTorch;
M3 has no crop (with one: --config.augment.crop_area='(0.08, 1.0)'); mixup is on in the first epoch, the third, ...; the
crop's aspect ratio is relative to the squashed image, not to the photograph. VOC's difficult objects are positive in
training, as in the authors' code. "Fully connected layer(s)" at 0.1 are VGG's three; to hold the two pretrained ones to
0.01 give --config.optim.groups="(('trunk/.*', 0.1), ('.*', 1.0))".
"""

from jaxmlic.configs import common

from jaxmlic import config as config_lib

DATASETS = ("nus_wide", "coco2014", "voc2007")
TRUNKS = ("vgg16_fc", "resnet101")
MODES = ("m1", "m2", "m3")


def parse(arg=None):
    return config_lib.parse_arg(arg, dataset="", trunk="", mode=("", *MODES), size=0)


def get_config(arg=None):
    arg = parse(arg)
    config = common.base()
    config.data.name = arg.dataset or "voc2007"
    common.test_rules(config)
    config.data.drop_empty = arg.dataset in ("coco2014", "nus_wide")  # Table 1: 82,081 and 40,137 of MS-COCO's images
    config.data.difficult = "positive" if config.data.name == "voc2007" else "ignore"
    config.data.val_fraction = 0.0  # all training images, the last checkpoint (section 4.2)
    config.model.trunk = arg.trunk or "resnet101"
    config.data.image_size = largest_size(arg, config.model.trunk)
    if arg.mode == "m2":
        config.data.resize = config.data.image_size * 8 // 7
        config.augment.crop_area = (0.08, 1.0)  # PyTorch's RandomResizedCrop, footnote 3
    if arg.mode == "m3":
        config.augment.mixup = "every_second_epoch"
    config.optim.name = "sgd"
    config.optim.lr = 0.1
    # The pretrained fully connected layers learn like the new one, the convolutions at a tenth.
    hidden = (("trunk/fc.*", 1.0),) if config.model.trunk.endswith("_fc") else ()
    config.optim.groups = (*hidden, ("trunk/.*", 0.1), (".*", 1.0))
    config.optim.schedule = "step"
    config.optim.milestones = ("50%",)  # after 20 of the 40 epochs
    config.optim.weight_decay = 0.0
    config.train.duration = "40 epochs"
    config.train.batch_size = 16
    config.train.checkpoint_every = "10%"
    # L-P, L-R, L-F1 are CP, CR, CF1_mean. Of VOC 2007 OR 96.6 goes with OP 45.6, so picks that are unknown are wrong.
    config.eval.protocol = "top3_forced" + ("+unknown_wrong" if config.data.name == "voc2007" else "")
    return common.smoke(config) if arg.smoke else config


def largest_size(arg, trunk):
    """512 for the paper's trunks, half of it for others; an eighth of that in a smoke run."""
    return arg.size or (512 if trunk in TRUNKS else 256) // (8 if arg.smoke else 1)


def series(arg):
    """(data set, trunk, its three sizes) of the argument, or all of the paper's."""
    for dataset in (arg.dataset,) if arg.dataset else DATASETS:
        for trunk in (arg.trunk,) if arg.trunk else TRUNKS:
            size = largest_size(arg, trunk)
            yield dataset, trunk, (size * 6 // 8, size * 7 // 8, size)


def sweep(arg=None):
    """Every row of Table 2 that the argument leaves open; Table 3's are the fusions of `ensembles`."""
    arg = parse(arg)
    return [
        config_lib.Entry(
            f"{dataset}_{trunk}_{mode}_{size}", argument=f"dataset={dataset},trunk={trunk},mode={mode},size={size}"
        )
        for dataset, trunk, sizes in series(arg)
        for mode in ((arg.mode,) if arg.mode else MODES)
        for size in sizes
    ]


def ensembles(arg=None):
    """{name: {entry of the sweep: its weight in the fusion}}: Table 3's ScaleEn and DistrEn."""
    found = {}
    for dataset, trunk, sizes in series(parse(arg)):
        name = f"{dataset}_{trunk}"
        scaled = "m1" if (dataset, trunk) == ("voc2007", "resnet101") else "m3"  # section 4.3
        found[f"{name}_scale_en"] = {f"{name}_{scaled}_{size}": 1.0 for size in sizes}
        found[f"{name}_distr_en"] = {f"{name}_{mode}_{sizes[-1]}": 1.0 for mode in ("m2", "m3")}
    return found
