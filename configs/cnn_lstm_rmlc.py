"""CNN-LSTM with the robust multi-label (ramp) loss, its baselines, and training under label noise.

Paper:      James and Lakshmi, "Improved Multi-Label Image Classification Performance using Supervised CNN-LSTM Deep
            Neural Network". Its numbers: jaxmlic/papers/cnn_lstm_rmlc.toml. Commands: docs/experiments.md.
Arguments:  dataset=cifar10 | stl10 | voc2007 | coco2014 | nus_wide | <any prepared data set>;  row=<a row, see ROWS>;
            start=random (the 14-layer network; CIFAR-10, STL-10) | ilsvrc (weights from --config.pretrained);
            head=positions | path | plain;  trunk=resnet101 | efficientnet_lite0 | ...;  mode=finetune | frozen (from
            stored features if asked);  size=<side>;  noise (Fig. 6: 0 to 50 % of wrong labels);  rate=<percent>;
            noise_kind=random | images | missing | flip;  folds=10;  batches=5;  draws=10;  part=<a fold, batch or
            draw>;  subset=10 | 20;  recipe=paper | released;  rows=tables | others;  smoke
Sweep:      without an argument every row of Tables 1 to 5; with dataset=... its table; with `noise` its curves; with
            rows=others what stands in no table: the loss as its authors released it, Algorithm 2 (CIFAR-10, STL-10),
            section 3.5's paths, and a linear scorer of hand-crafted features (--config.data.features_file=FILE).

Read into the paper: s = -0.75; the epochs are not named (30); momentum is Adam's beta 1; mean over images instead of
the sum; CIFAR-10's ten folds are of train, nine to train on and the tenth to select the checkpoint, with the accuracy
on test; STL-10's are its owners', with the accuracy on test; RML-CNN and CNN-RMLC are one model, the loss without LSTM.
The literature's rows of Table 1 are results with 4,000 labels: `draws=10` has ten draws of as many, all of them trained
on. VOC 2007 and NUS-WIDE have the paper's 6,000 and 161,789 training images (rmlc/train), and are tested on rmlc/test.
"""

from jaxmlic.configs import common, stand_ins

from jaxmlic import config as config_lib
from jaxmlic.errors import UserError

SINGLE_LABEL = ("cifar10", "stl10", "cifar10_jpeg")
SIDES = {"cifar10": 256, "stl10": 96, **stand_ins.RMLC_SIDES}  # others: 448

RMLC_SPLITS = ("voc2007", "nus_wide")  # divided anew by the paper
RAMP, ASYMMETRIC = (("s", -0.75), ("k", 5.0)), (("gamma_neg", 4.0), ("clip", 0.05))
STARTS = ("random", "ilsvrc")
# As [31] released it: a tenth of the slope remains beyond the ramp's end, ranks are WARP's sampled ones.
RELEASED = (("s", -0.8), ("k", 5.0), ("leak", 0.1), ("rank", "sampled"))
# Row of the tables -> its loss and the loss's options. Only the first has an LSTM; the last is not the paper's.
ROWS = {
    "cnn_lstm_rmlc": ("rmlc", RAMP),
    "rml_cnn": ("rmlc", RAMP),
    "warp": ("warp", ()),
    "softmax": ("softmax_cross_entropy", ()),
    "binary_relevance": ("binary_cross_entropy", ()),
    "asymmetric": ("asymmetric", ASYMMETRIC),
}
# A linear scorer of stored vectors, with eq. 1's own regulariser in place of the optimizer's decay of all kernels.
HAND_CRAFTED = {
    **{"data.source": "file", "loss.regulariser": 1e-4},
    **{"optim.weight_decay": 0.0, "model.dropout": 0.0},
}
# The rows of each table, with both starts for the single-label ones.
TABLES = {
    "cifar10": ("rml_cnn", "warp", "softmax", "cnn_lstm_rmlc"),
    "stl10": ("rml_cnn", "warp", "softmax", "cnn_lstm_rmlc"),
    "coco2014": ("rml_cnn", "warp", "binary_relevance", "cnn_lstm_rmlc"),
    "nus_wide": ("rml_cnn", "warp", "softmax", "binary_relevance", "cnn_lstm_rmlc"),
    "voc2007": ("cnn_lstm_rmlc",),
}
HEADS = {
    "positions": {  # Algorithm 1: an LSTM over the positions of the feature map
        "units": (512,),  # of each LSTM, one or several
        "activation": "tanh",  # of the LSTM's input and cell: "tanh" or "relu"
        "pool": "avg",  # over the LSTM's steps: "avg", "max" or "flatten"
        "hidden": 0,  # units of a ReLU layer before the last one; 0 = none
    },
    "path": {  # 3.5: labels in an embedded space, an LSTM over the labels so far, beam search
        "units": 512,  # of the LSTM
        "activation": "tanh",
        "pool": "avg",  # over positions: "avg", "max" or "avg_max"
        "embedding": 128,  # width of the space of labels and images
        "order": "frequent_first",  # of an image's labels in training
        "max_length": 8,  # labels of a path
        "beam_size": 3,  # paths that the search keeps
    },
    "plain": {"pool": "avg", "hidden": 0},  # no LSTM; "pool" over positions: "avg", "max", "avg_max" or "flatten"
}


def parse(arg=None):
    choices = {"row": ("", *ROWS), "head": ("", *HEADS), "start": ("", "random", "ilsvrc")}
    choices |= {"mode": ("", "finetune", "frozen"), "noise_kind": ("random", "images", "missing", "flip")}
    choices |= {"recipe": ("paper", "released"), "rows": ("tables", "others")}
    numbers = dict.fromkeys(("size", "rate", "folds", "batches", "draws", "part", "subset"), 0)
    return config_lib.parse_arg(arg, dataset="", trunk="", noise=False, **choices, **numbers)


def get_config(arg=None):
    arg = parse(arg)
    dataset, row = arg.dataset or "cifar10", arg.row or "cnn_lstm_rmlc"
    head = arg.head or ("positions" if row == "cnn_lstm_rmlc" else "plain")
    config = common.base()
    config.head = f"cnn_lstm_rmlc.{head}"
    config.model = {
        "trunk": arg.trunk or ("efficientnet_lite0" if dataset in stand_ins.RMLC else "resnet101"),
        **HEADS[head],
        "dropout": 0.3,  # before every layer of the head
        "grey": False,  # Algorithm 2: the image made grey, on three channels
        "edges": 0.0,  # Algorithm 2: amount of unsharp masking with a Laplacian; 0 = none
        "batch_norm": "train",  # "train" or "frozen"
        "dtype": "float32",  # of the trunk
    }
    config.loss = {
        "name": ROWS[row][0],  # function in jaxmlic.losses
        "options": ROWS[row][1],  # (name, value) pairs for it: where the ramp ends, and the weight of the margin term
        "regulariser": 0.0,  # lambda of eq. 1 over the number of images, on the last layer; for hand-crafted features
    }
    config.data.name = dataset
    common.test_rules(config)
    config.data.image_size = arg.size or SIDES.get(dataset, 448) // (8 if arg.smoke else 1)  # CIFAR-10: section 4.2
    config.data.cache = dataset in SIDES
    config.data.noise_rate = arg.rate / 100
    config.data.noise = arg.noise_kind
    config.features.store = "map" if head == "positions" else "pooled"
    config.optim.name = "adam"
    config.optim.lr = 0.005
    config.optim.weight_decay = 1e-4
    config.optim.schedule = "constant"
    config.train.batch_size = 64
    config.train.duration = "30 epochs"
    if dataset in SINGLE_LABEL:
        config.eval.metric = "accuracy"
    elif dataset in ("coco2014", "nus_wide"):
        config.eval.protocol = "top3_forced"
    if arg.start == "random" or (not arg.start and dataset in ("cifar10", "stl10")):
        small_network(config)
    if arg.mode == "frozen" or (not arg.mode and dataset in stand_ins.RMLC):
        epochs, recipes = stand_ins.RMLC.get(dataset, (20, len(ROWS) * [(3e-3, 0.1)]))
        frozen_recipe(config, epochs, *recipes[list(ROWS).index(row)])
    if arg.recipe == "released":
        released_recipe(config)
    choose_part(config, arg)
    return common.smoke(config) if arg.smoke else config


def small_network(config):
    """The 14-layer network for CIFAR-10's 32 x 32 pixels (3.2.4, Figs 3 and 4)."""
    config.model.trunk = "cifar14"
    config.data.image_size = 32
    if config.head == "cnn_lstm_rmlc.positions":
        config.model.units = (64, 32, 16)
    if config.head != "cnn_lstm_rmlc.path":
        config.model.update(pool="flatten", hidden=20)


def frozen_recipe(config, epochs, lr, decay):
    """AdamW on a trunk that stays as it is."""
    common.freeze_trunk(config)
    config.optim.name = "adamw"
    config.optim.lr = lr
    config.optim.weight_decay = decay
    config.optim.schedule = "cosine"
    config.train.duration = f"{epochs} epochs"
    config.train.batch_size = 32
    config.data.val_fraction = 0.0


def released_recipe(config):
    """The loss with the options of its authors' code [31], by Nesterov SGD 0.01 on a loss divided by 20.

    As SGD is linear in the gradient, that is a twentieth of the rate, and twenty times the decay, on the loss itself.
    """
    if config.loss.name != "rmlc":
        raise UserError(f"config argument recipe=released is the rmlc loss's, and this row has {config.loss.name!r}")
    config.loss.options = RELEASED
    config.optim.name = "sgd_nesterov"
    config.optim.lr = 0.01 / 20
    config.optim.weight_decay = 20 * 1e-4


def choose_part(config, arg):
    """The split that a run of a protocol is trained on, and the one that its checkpoint is selected on."""
    divisions = [name for name in ("folds", "batches", "draws", "subset") if arg[name]]
    if len(divisions) > 1:
        raise UserError(f"config arguments {' and '.join(divisions)} exclude one another")
    # Parts are of the stored train: of VOC 2007's, rmlc/test holds some; NUS-WIDE's is rmlc/train.
    if config.data.name == "nus_wide" or (config.data.name in RMLC_SPLITS and not divisions):
        config.data.train_split, config.data.test_split = "rmlc/train", "rmlc/test"
    if arg.folds and config.data.name == "stl10":
        config.data.train_split = f"folds/train{arg.part}"
    elif arg.folds:
        config.data.train_split = f"folds{arg.folds}_seed0/train{arg.part}"
        config.data.val_split = f"folds{arg.folds}_seed0/test{arg.part}"
    elif arg.batches:
        config.data.train_split = f"batches_seed0/batch{arg.part}"
    elif arg.draws:
        config.data.train_split = f"draws{arg.draws}_seed0/draw{arg.part}"
        config.data.val_fraction = 0.0
    elif arg.subset:
        config.data.train_split = f"subset{arg.subset}_seed0/labelled"


def sweep(arg=None):
    """The rows that the argument leaves open; without a data set in the argument its name comes first in an entry's."""
    arg = parse(arg)
    if arg.rows == "others":
        return other_rows(arg)
    entries = []
    for dataset in (arg.dataset,) if arg.dataset else TABLES:
        rows = TABLES.get(dataset, tuple(ROWS))
        if arg.noise and dataset in TABLES:  # Fig. 6; for other data sets all losses of ROWS
            rows = ("cnn_lstm_rmlc", "rml_cnn", "warp")
        both = dataset in ("cifar10", "stl10") and not arg.noise  # noise is for pretrained weights alone
        starts = (arg.start,) if arg.start else STARTS if both else ("ilsvrc",)
        for row in (arg.row,) if arg.row else rows:
            for start in starts:
                series = ("" if arg.dataset else f"{dataset}_") + row + (f"_{start}" if both else "")
                entries += runs_of(arg, series, f"dataset={dataset},row={row},start={start}", start)
    return entries


def other_rows(arg):
    """What the text describes and no table has, for the data sets that it fits."""
    if arg.row:
        raise UserError("config argument row=... goes with rows=tables; choose of rows=others with --only")
    entries = []
    for dataset in (arg.dataset,) if arg.dataset else TABLES:
        prefix, of_data = "" if arg.dataset else f"{dataset}_", f"dataset={dataset}"
        single_label = dataset in SINGLE_LABEL
        starts = (arg.start,) if arg.start else ("ilsvrc",)
        rows = {"rmlc_released": ("row=rml_cnn,recipe=released", {}, starts)}
        if dataset in ("cifar10", "stl10"):  # what the 14-layer network is for
            algorithm2 = {"model.trunk": "cifar14_algorithm2", "model.grey": True, "model.edges": 1.0}
            rows["rmlc_released"] = ("row=rml_cnn,recipe=released", {}, (arg.start,) if arg.start else STARTS)
            rows["algorithm2"] = ("row=cnn_lstm_rmlc", algorithm2, ("random",))
        if not single_label:
            rows["path"] = ("row=cnn_lstm_rmlc,head=path", {}, starts)
        rows["hand_crafted"] = ("row=rml_cnn,mode=finetune", HAND_CRAFTED, ("ilsvrc",))
        for name, (argument, overrides, row_starts) in rows.items():
            for start in row_starts:
                series = f"{prefix}{name}" + (f"_{start}" if len(row_starts) > 1 else "")
                entries += runs_of(arg, series, f"{of_data},{argument},start={start}", start, overrides)
    return entries


def runs_of(arg, series, argument, start, overrides=None):
    """An entry for each noise rate, and for each fold, batch or draw."""
    overrides, kind = overrides or {}, "fold" if arg.folds else "draw" if arg.draws else "batch"
    # The command line's weights are not for the network that starts at random, nor for stored features.
    own = {"from_scratch": start == "random" or "data.source" in overrides}
    for rate in (0, 10, 20, 30, 40, 50) if arg.noise else (None,):
        name = series if rate is None else f"{series}_noise{rate}"
        more = argument if rate is None else f"{argument},rate={rate}"
        noise_rate = None if rate is None else rate / 100
        if not arg.folds and not arg.batches and not arg.draws:
            yield config_lib.Entry(name, overrides, series, noise_rate, argument=more, **own)
        for part in range(arg.folds or arg.batches or arg.draws):
            one = f"{kind}{part}"
            yield config_lib.Entry(f"{name}_{one}", overrides, series, noise_rate, one, f"{more},part={part}", **own)
