"""CNN-RNN: label paths by an LSTM over a joint embedding of images and labels, and what its paper compares it with.

Paper:      Wang, Yang, Mao, Huang, Huang, Xu, "CNN-RNN: A Unified Framework for Multi-label Image Classification", CVPR
            2016. Its numbers: jaxmlic/papers/cnn_rnn.toml. Commands: docs/experiments.md.
Arguments:  dataset=coco2014 | nus_wide | nus_wide_tags | voc2007 | corel5k | voc2007_subset | <any prepared data set>,
            method=<a key of LINEAR or PATHS>,  trunk=<any trunk>,  size=<side>,  smoke
Sweep:      the rows of the data set's table (the methods that the paper trained itself); for other data sets all
            methods; without an argument the rows of all four tables.

Read into the paper: learning rate 1e-4, batch 32 and 50 epochs as in the Multi-order paper; N = 5; labels are ranked by
their marginal over the paths found. k labels an image are forced in Tables 1 and 2, where a path has at least k labels;
in Table 3 the labels of the recurrent rows are those of the path, as their O-R / O-P shows. Images without a label are
left out in Tables 1 to 3, as the labels an image that O-P and O-R imply show. The trunk is frozen, VGG16 with its two
fully connected layers; end to end: --config.optim.groups="(('.*', 1.0),)". Labels may be on a path more than once with
--config.model.repeats=True; `repeats` of every evaluation is the share that are.
"""

from jaxmlic.configs import common, stand_ins

from jaxmlic import config as config_lib

# The linear head and a loss.
LINEAR = {"bce": "binary_cross_entropy", "softmax": "softmax_cross_entropy", "warp": "warp", "lsep": "lsep"}
# The cnn_rnn head and fields of config.model.
PATHS = {
    "cnn_rnn": {},
    "no_rnn": {"cell": "none"},
    "paper_cell": {"cell": "paper"},
    **{order: {"order": order} for order in ("rare_first", "lexicographic", "fixed_random", "random_per_batch")},
    **{order: {"order": order} for order in ("pla", "mla")},
}
METHODS = (*LINEAR, *PATHS)
# Labels of every image in the paper's tables, and the rows that it trained itself.
FORCED = {"nus_wide": 3, "nus_wide_tags": 10, "coco2014": 3}
EMPTY_LEFT_OUT = tuple(FORCED)  # data sets whose images without a label are no part of the tables
TABLES = {
    "nus_wide": ("softmax", "warp", "cnn_rnn"),
    "nus_wide_tags": ("softmax", "warp", "cnn_rnn"),
    "coco2014": ("softmax", "warp", "bce", "no_rnn", "cnn_rnn"),
    "voc2007": ("cnn_rnn",),
}
# Longest path: no training image of Corel-5K has more than 5 labels, of the VOC subset more than 6.
LONGEST = {"corel5k": 5, "voc2007_subset": 6, "voc2007": 8, "nus_wide_tags": 20}


def get_config(arg=None):
    arg = config_lib.parse_arg(arg, dataset="coco2014", method=("cnn_rnn", *METHODS), trunk="", size=0)
    config = build(arg, trunk="vgg16_fc")
    return common.smoke(config) if arg.smoke else config


def build(arg, trunk):
    """The config of a method of METHODS; `trunk` is the paper's."""
    config = data_and_trunk(arg, trunk)
    rmsprop(config)
    if arg.method in LINEAR:
        linear_method(config, arg)
    else:
        path_method(config, arg)
    return config


def data_and_trunk(arg, trunk):
    """What the methods of one data set share: images or stored features of a frozen trunk, the batch, the protocol."""
    config = common.base()
    on_features = reads_features(arg.dataset, arg.trunk)
    config.data.name = arg.dataset
    config.data.val_fraction = 0.0  # the last checkpoint is the result, as in the papers
    config.data.image_size = arg.size or (stand_ins.SIDES.get(arg.dataset, 224) if on_features else 224)
    config.data.cache = on_features
    config.data.source = "features" if on_features else "images"
    config.model.trunk = arg.trunk or ("efficientnet_lite0" if on_features else trunk)
    common.freeze_trunk(config)
    config.train.batch_size = 32
    config.train.checkpoint_every = "10%"
    common.test_rules(config)
    config.data.drop_empty = arg.dataset in EMPTY_LEFT_OUT
    if arg.dataset in FORCED:
        config.eval.protocol = f"top{FORCED[arg.dataset]}_forced"
    return config


def reads_features(dataset, trunk):
    """Whether the rows of a data set read stored features: those with a recipe, unless a trunk is asked for."""
    return dataset in stand_ins.RECURRENT and not trunk


def linear_method(config, arg):
    """One linear unit a label; where features are stored, with the recipe of linear.py."""
    config.loss.name = LINEAR[arg.method]
    if arg.dataset in stand_ins.RECURRENT:
        lr, decay, epochs = stand_ins.LINEAR[arg.dataset]
        adamw(config, lr, decay, epochs)
    if config.eval.protocol == "all_point" and arg.method != "bce":
        config.eval.protocol = "top3_forced"  # these losses set no threshold


def path_method(config, arg):
    """The cnn_rnn head."""
    config.head = "cnn_rnn"
    config.model.dropout = 0.5  # on x_t of eq. 4
    config.model.embedding_size = 64  # E, of labels and images
    config.model.recurrent_size = 512  # H
    config.model.cell = "lstm"  # "lstm", "paper" (eq. 1) or "none" (a linear layer: "No RNN")
    # Of the labels in training: "frequent_first", "rare_first", "lexicographic", "fixed_random" (drawn from the seed),
    # "random_per_batch", or "pla" / "mla": the model's own predictions, with which the labels are aligned.
    config.model.order = "frequent_first"
    # Whether a path may have a label twice, and "pla" and "mla" read whatever is most probable, END too (their code).
    config.model.repeats = False
    config.model.max_length = LONGEST.get(arg.dataset, 10)  # labels of a path, in training and decoding
    config.model.min_length = 0  # labels before END is allowed in decoding
    config.model.beam_size = 5  # N
    config.model.length_penalty = 0.0  # alpha of decode.beam_search; 0 = none
    config.model.scores = "marginals"  # rank by "marginals" over the paths, or by "max_over_steps" of the best path
    config.model.update(PATHS[arg.method])
    config.loss = {}  # the path's cross-entropy has no fields
    if arg.dataset in stand_ins.RECURRENT:
        config.model.dropout = recurrent_on_features(config, arg)
    if arg.dataset in ("nus_wide", "nus_wide_tags"):
        config.model.min_length = FORCED[arg.dataset]  # footnote 1
    elif arg.dataset == "coco2014" or (config.eval.protocol == "all_point" and arg.dataset != "voc2007"):
        config.eval.protocol = "path"


def rmsprop(config):
    """Section 3.4 and section 4 of CNN-RNN, section 4.3 of Multi-order RNN."""
    config.optim.name = "rmsprop"
    config.optim.lr = 1e-4
    config.optim.momentum = 0.9
    config.optim.beta2 = 0.9
    config.optim.schedule = "constant"
    config.optim.weight_decay = 1e-4
    config.train.duration = "50 epochs"


def adamw(config, lr, decay, epochs):
    """What stored features are trained with."""
    config.optim.name = "adamw"
    config.optim.lr = lr
    config.optim.beta2 = 0.999
    config.optim.schedule = "cosine"
    config.optim.weight_decay = decay
    config.train.duration = f"{epochs} epochs"


def recurrent_on_features(config, arg):
    """The recipe of both recurrent heads on stored features; returns the dropout of cnn_rnn."""
    epochs, config.train.batch_size, lr, dropout = stand_ins.RECURRENT[arg.dataset]
    adamw(config, lr, 0.1, epochs)
    return dropout


def sweep(arg=None):
    """The rows of the tables, or of the data set of the argument; see the module's text."""
    return rows(arg, TABLES, METHODS)


def rows(arg, tables, methods):
    """Entries "dataset_method": the data set's table, or all methods; without a data set all tables."""
    dataset = config_lib.parse_arg(arg, dataset="", method="", trunk="", size=0).dataset
    return [
        config_lib.Entry(f"{name}_{method}", argument=f"dataset={name},method={method}")
        for name in ((dataset,) if dataset else tables)
        for method in tables.get(name, methods)
    ]
