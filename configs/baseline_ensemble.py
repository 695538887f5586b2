"""VGG16 and ResNet-101 with flips (M1), random resized crops (M2) or mixup (M3), fused by the mean of their scores.

Paper:      Wang, Jia, Breckon, "A Baseline for Multi-Label Image Classification Using an Ensemble of Deep Convolutional
            Neural Networks", ICIP 2019. PAPER below has its numbers, Tables 2 and 3.
Arguments:  dataset=voc2007 | coco2014 | nus_wide | <any prepared data set>,  trunk=resnet101 | vgg16_fc | <any trunk>,
            mode=m1 | m2 | m3,  size=<side>,  smoke
Commands:   jaxmlic sweep --config=baseline_ensemble:dataset=voc2007,trunk=resnet101 --workdir=runs/voc \\
                --config.pretrained=resnet101.safetensors
            jaxmlic ensemble runs/voc/voc2007_resnet101_m1_{384,448,512}/seed0/scores/test.npz --out=runs/scale_en.npz
            jaxmlic ensemble runs/voc/voc2007_resnet101_m{2,3}_512/seed0/scores/test.npz --out=runs/distr_en.npz
            (`ensembles()` lists the members of every ScaleEn and DistrEn; the other scores of MS-COCO are val.npz)
Sweep:      the nine rows of Table 2 for the data set and the trunk of the argument, all 54 rows without an argument.
            `size` is the largest of its three sizes, the others are 3/4 and 7/8 of it.
CPU only:   trunk=efficientnet_lite0,size=160 and --config.train.duration='6 epochs', for instance.
Time:       not run at the paper's sizes yet.

Read into the paper: momentum 0.9; no weight decay; the loss is Eq. 1 divided by the number of classes, as in PyTorch;
M3 has no crop (with one: --config.augment.crop_area='(0.08, 1.0)'); mixup is on in the first epoch, the third, ...; the
crop's aspect ratio is relative to the squashed image, not to the photograph. VOC's difficult objects are positive in
training, as in the authors' code. "Fully connected layer(s)" at 0.1 are VGG's three; to hold the two pretrained ones to
0.01 give --config.optim.groups="(('trunk/.*', 0.1), ('.*', 1.0))".
"""

from jaxmlic.configs import common

from jaxmlic.errors import UserError

DATASETS = ("nus_wide", "coco2014", "voc2007")
TRUNKS = ("vgg16_fc", "resnet101")
MODES = ("m1", "m2", "m3")
CROP_AREA = (0.08, 1.0)  # PyTorch's RandomResizedCrop, footnote 3


def parse(arg=None):
    return common.parse_arg(arg, dataset="", trunk="", mode="", size=0)


def get_config(arg=None):
    arg = parse(arg)
    config = common.base()
    config.update_from_flattened_dict(chosen_row(arg))
    config.data.val_fraction = 0.0  # all training images, the last checkpoint (section 4.2)
    config.optim.name = "sgd"
    config.optim.lr = 0.1
    config.optim.schedule = "step"
    config.optim.milestones = ("50%",)  # after 20 of the 40 epochs
    config.optim.weight_decay = 0.0
    config.train.duration = "40 epochs"
    config.train.batch_size = 16
    config.train.checkpoint_every = "10%"
    config.eval.protocol = "top3_forced"  # L-P, L-R, L-F1 are CP, CR, CF1_mean
    return common.smoke(config) if arg.smoke else config


def row(dataset, trunk, mode, size):
    """Fields that differ between the rows of Table 2."""
    if mode not in MODES:
        raise UserError(f"config argument mode={mode!r}; it is 'm1', 'm2' or 'm3'")
    # The pretrained fully connected layers learn like the new one, the convolutions at a tenth.
    hidden = (("trunk/fc.*", 1.0),) if trunk.endswith("_fc") else ()
    return {
        "data.name": dataset,
        "data.test_split": common.test_split(dataset),
        "data.drop_empty": dataset in ("coco2014", "nus_wide"),  # Table 1: 82,081 and 40,137 of MS-COCO's images
        "data.difficult": "positive" if dataset == "voc2007" else "ignore",
        "data.image_size": size,
        "data.resize": size * 8 // 7 if mode == "m2" else 0,
        "model.trunk": trunk,
        "augment.crop_area": CROP_AREA if mode == "m2" else (1.0, 1.0),
        "augment.mixup": "every_second_epoch" if mode == "m3" else "off",
        "optim.groups": (*hidden, ("trunk/.*", 0.1), (".*", 1.0)),
        "eval.trained_classes_only": dataset == "corel5k",
        "eval.min_positives": 5 if dataset == "voc2007_subset" else 1,
    }


def chosen_row(arg):
    """The row of one argument."""
    trunk = arg.trunk or "resnet101"
    return row(arg.dataset or "voc2007", trunk, arg.mode or "m1", largest_size(arg, trunk))


def largest_size(arg, trunk):
    """512 for the paper's trunks, half of it for others; an eighth of that in a smoke run."""
    return arg.size or (512 if trunk in TRUNKS else 256) // (8 if arg.smoke else 1)


def parts(arg):
    """(data set, trunk, its three sizes) of the argument, or all of the paper's."""
    for dataset in (arg.dataset,) if arg.dataset else DATASETS:
        for trunk in (arg.trunk,) if arg.trunk else TRUNKS:
            size = largest_size(arg, trunk)
            yield dataset, trunk, (size * 6 // 8, size * 7 // 8, size)


def sweep(arg=None):
    """Every row of Table 2 that the argument leaves open; Table 3's are the fusions of `ensembles`."""
    arg = parse(arg)
    base = chosen_row(arg)
    entries = []
    for dataset, trunk, sizes in parts(arg):
        for mode in (arg.mode,) if arg.mode else MODES:
            for size in sizes:
                fields = row(dataset, trunk, mode, size)
                values = {key: value for key, value in fields.items() if value != base[key]}
                entries.append((f"{dataset}_{trunk}_{mode}_{size}", values))
    return entries


def ensembles(arg=None):
    """{name: names of the sweep's entries that are fused}: Table 3's ScaleEn and DistrEn."""
    found = {}
    for dataset, trunk, sizes in parts(parse(arg)):
        name = f"{dataset}_{trunk}"
        scaled = "m1" if (dataset, trunk) == ("voc2007", "resnet101") else "m3"  # section 4.3
        found[f"{name}_scale_en"] = [f"{name}_{scaled}_{size}" for size in sizes]
        found[f"{name}_distr_en"] = [f"{name}_{mode}_{sizes[-1]}" for mode in ("m2", "m3")]
    return found


# Table 3's "Single Best". For VGG16 on MS-COCO the M2 row at 512 has the higher mAP, 76.0 to 75.9.
SINGLE_BEST = {
    "nus_wide_vgg16_fc": "nus_wide_vgg16_fc_m2_448",
    "nus_wide_resnet101": "nus_wide_resnet101_m2_448",
    "coco2014_vgg16_fc": "coco2014_vgg16_fc_m3_448",
    "coco2014_resnet101": "coco2014_resnet101_m3_512",
    "voc2007_vgg16_fc": "voc2007_vgg16_fc_m3_512",
    "voc2007_resnet101": "voc2007_resnet101_m1_512",
}
METRICS = ("mAP", "CP", "CR", "CF1_mean", "OP", "OR", "OF1")  # the columns of both tables
# Percent. The rows of other papers in Table 3 are left out. A mean of per-class F1 cannot exceed the harmonic mean of
# CP and CR, yet does in coco2014_resnet101_m2_512 (68.4 to 68.2) and in the DistrEn made of it (69.4 to 69.2).
PAPER = {
    "nus_wide_vgg16_fc_m1_384": (55.8, 37.7, 57.3, 42.2, 54.0, 66.5, 59.6),
    "nus_wide_vgg16_fc_m1_448": (55.5, 37.1, 57.0, 41.6, 53.9, 66.3, 59.5),
    "nus_wide_vgg16_fc_m1_512": (56.5, 39.4, 57.0, 43.1, 54.3, 66.9, 59.9),
    "nus_wide_vgg16_fc_m2_384": (58.9, 46.6, 55.0, 46.1, 55.9, 68.9, 61.7),
    "nus_wide_vgg16_fc_m2_448": (59.0, 45.7, 55.1, 46.6, 55.9, 68.9, 61.7),
    "nus_wide_vgg16_fc_m2_512": (58.8, 45.9, 55.0, 46.5, 55.9, 68.8, 61.7),
    "nus_wide_vgg16_fc_m3_384": (58.8, 46.5, 54.9, 47.0, 55.9, 68.8, 61.7),
    "nus_wide_vgg16_fc_m3_448": (58.5, 46.5, 54.4, 46.7, 55.9, 68.8, 61.7),
    "nus_wide_vgg16_fc_m3_512": (58.3, 46.4, 54.3, 46.6, 55.9, 68.8, 61.6),
    "nus_wide_resnet101_m1_384": (59.0, 44.6, 56.8, 45.0, 56.3, 69.3, 62.1),
    "nus_wide_resnet101_m1_448": (59.2, 44.1, 57.0, 45.9, 56.4, 69.4, 62.2),
    "nus_wide_resnet101_m1_512": (59.2, 44.1, 57.0, 45.9, 56.4, 69.4, 62.2),
    "nus_wide_resnet101_m2_384": (60.8, 46.1, 60.6, 48.4, 56.1, 69.0, 61.9),
    "nus_wide_resnet101_m2_448": (60.8, 45.8, 60.6, 49.2, 56.2, 69.2, 62.0),
    "nus_wide_resnet101_m2_512": (60.6, 45.4, 60.9, 49.0, 56.1, 69.0, 61.9),
    "nus_wide_resnet101_m3_384": (60.3, 45.2, 60.1, 48.8, 56.2, 69.2, 62.0),
    "nus_wide_resnet101_m3_448": (60.5, 45.1, 60.2, 48.8, 56.2, 69.2, 62.0),
    "nus_wide_resnet101_m3_512": (60.1, 46.1, 59.5, 49.0, 56.2, 69.2, 62.0),
    "coco2014_vgg16_fc_m1_384": (71.6, 55.2, 61.6, 56.5, 62.6, 64.7, 63.6),
    "coco2014_vgg16_fc_m1_448": (71.4, 54.7, 61.6, 56.2, 62.5, 64.6, 63.5),
    "coco2014_vgg16_fc_m1_512": (72.3, 55.3, 62.0, 56.8, 63.0, 65.1, 64.0),
    "coco2014_vgg16_fc_m2_384": (75.2, 63.2, 62.5, 62.7, 64.6, 66.7, 65.7),
    "coco2014_vgg16_fc_m2_448": (75.8, 63.1, 63.3, 61.7, 65.0, 67.1, 66.0),
    "coco2014_vgg16_fc_m2_512": (76.0, 63.3, 63.4, 62.5, 65.0, 67.2, 66.1),
    "coco2014_vgg16_fc_m3_384": (75.1, 64.2, 62.3, 63.1, 64.7, 66.9, 65.8),
    "coco2014_vgg16_fc_m3_448": (75.9, 64.3, 62.6, 63.4, 65.0, 67.1, 66.1),
    "coco2014_vgg16_fc_m3_512": (75.8, 64.3, 62.6, 63.4, 65.0, 67.1, 66.1),
    "coco2014_resnet101_m1_384": (78.4, 65.3, 65.1, 64.6, 66.7, 68.9, 67.8),
    "coco2014_resnet101_m1_448": (79.3, 63.0, 66.2, 64.1, 66.9, 69.1, 68.0),
    "coco2014_resnet101_m1_512": (79.0, 65.9, 65.5, 65.1, 67.1, 69.3, 68.1),
    "coco2014_resnet101_m2_384": (79.8, 68.9, 66.2, 65.7, 67.2, 69.4, 68.2),
    "coco2014_resnet101_m2_448": (80.7, 69.4, 67.0, 66.4, 67.7, 69.9, 68.8),
    "coco2014_resnet101_m2_512": (80.9, 69.6, 66.9, 68.4, 67.9, 70.2, 69.0),
    "coco2014_resnet101_m3_384": (79.9, 66.3, 67.1, 65.5, 67.2, 69.4, 68.3),
    "coco2014_resnet101_m3_448": (81.1, 66.9, 67.7, 66.0, 67.8, 70.0, 68.9),
    "coco2014_resnet101_m3_512": (81.3, 68.1, 67.7, 66.5, 67.9, 70.1, 69.0),
    "voc2007_vgg16_fc_m1_384": (89.1, 40.0, 92.1, 54.9, 44.1, 93.5, 59.9),
    "voc2007_vgg16_fc_m1_448": (89.3, 39.3, 92.1, 54.2, 44.1, 93.4, 59.9),
    "voc2007_vgg16_fc_m1_512": (89.2, 39.9, 91.9, 54.7, 44.1, 93.4, 59.9),
    "voc2007_vgg16_fc_m2_384": (89.3, 45.4, 91.8, 59.5, 44.2, 93.7, 60.1),
    "voc2007_vgg16_fc_m2_448": (89.6, 45.3, 92.3, 59.5, 44.3, 93.9, 60.2),
    "voc2007_vgg16_fc_m2_512": (89.3, 44.8, 92.1, 59.1, 44.3, 93.8, 60.2),
    "voc2007_vgg16_fc_m3_384": (89.9, 41.0, 92.9, 56.2, 44.5, 94.2, 60.4),
    "voc2007_vgg16_fc_m3_448": (90.0, 40.5, 92.8, 55.7, 44.5, 94.3, 60.5),
    "voc2007_vgg16_fc_m3_512": (90.2, 42.0, 92.8, 57.0, 44.4, 94.2, 60.4),
    "voc2007_resnet101_m1_384": (93.4, 40.5, 94.8, 55.9, 45.1, 95.6, 61.3),
    "voc2007_resnet101_m1_448": (94.1, 40.8, 95.5, 56.3, 45.5, 96.3, 61.8),
    "voc2007_resnet101_m1_512": (94.2, 41.4, 95.4, 56.7, 45.5, 96.3, 61.8),
    "voc2007_resnet101_m2_384": (92.4, 44.9, 94.1, 60.1, 45.1, 95.5, 61.2),
    "voc2007_resnet101_m2_448": (92.7, 44.9, 94.0, 60.0, 45.1, 95.5, 61.2),
    "voc2007_resnet101_m2_512": (92.9, 45.6, 94.7, 60.7, 45.3, 96.0, 61.6),
    "voc2007_resnet101_m3_384": (93.2, 42.0, 94.8, 57.5, 45.2, 95.8, 61.5),
    "voc2007_resnet101_m3_448": (93.6, 42.0, 95.1, 57.4, 45.3, 96.1, 61.6),
    "voc2007_resnet101_m3_512": (93.8, 42.3, 95.6, 57.7, 45.5, 96.4, 61.8),
    "nus_wide_vgg16_fc_scale_en": (59.1, 47.2, 54.9, 47.2, 56.1, 69.0, 61.9),
    "nus_wide_resnet101_scale_en": (61.7, 46.9, 60.5, 49.9, 56.7, 69.7, 62.5),
    "coco2014_vgg16_fc_scale_en": (76.5, 65.2, 63.0, 64.0, 65.4, 67.5, 66.4),
    "coco2014_resnet101_scale_en": (82.2, 68.7, 68.3, 67.3, 68.4, 70.6, 69.5),
    "voc2007_vgg16_fc_scale_en": (90.5, 41.4, 93.1, 56.6, 44.6, 94.5, 60.6),
    "voc2007_resnet101_scale_en": (94.5, 41.2, 95.7, 56.7, 45.5, 96.5, 61.9),
    "nus_wide_vgg16_fc_distr_en": (59.3, 47.0, 55.0, 47.0, 56.2, 69.1, 62.0),
    "nus_wide_resnet101_distr_en": (62.0, 46.8, 61.1, 49.9, 56.7, 69.8, 62.6),
    "coco2014_vgg16_fc_distr_en": (76.8, 64.8, 63.6, 63.2, 65.5, 67.7, 66.6),
    "coco2014_resnet101_distr_en": (82.4, 70.4, 68.0, 69.4, 68.6, 70.8, 69.7),
    "voc2007_vgg16_fc_distr_en": (90.6, 43.0, 93.3, 58.1, 44.7, 94.6, 60.7),
    "voc2007_resnet101_distr_en": (94.7, 42.0, 95.8, 57.5, 45.6, 96.6, 62.0),
}
