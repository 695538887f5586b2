"""Multi-order RNN: an LSTM that predicts all labels at each of five steps, beside the order-free RNN and fixed orders.

Paper:      Dutta, Verma, Jawahar, "Recurrent Image Annotation With Explicit Inter-Label Dependencies", ECCV 2020. Its
            numbers: jaxmlic/papers/multi_order_rnn.toml. Commands: docs/experiments.md.
Arguments:  dataset=coco2014 | nus_wide | corel5k | voc2007_subset | <any prepared data set>,
            method=<one of METHODS>,  trunk=<any trunk>,  size=<side>,  smoke
Sweep:      the rows of the data set's tables (the methods that exist here), the first stage and the cnn_rnn head's
            orders; for other data sets all METHODS; without an argument the rows of all tables.

Read into the paper: the first stage is the BCE row, whose trunk learns; on images every recurrent row starts from it
and trains the RNN alone, so that all are compared on one trunk; WARP and LSEP train theirs, as BCE does. Momentum 0.9.
Fixed orders, Table 1's baselines, are "mo_...": this network with one order, decoded greedily, with a beam by
--config.model.beam_size=5. "sr_cnn_rnn" is SR-CNN-RNN in form: the rare-first order, and the CNN's scores, which are
all that the LSTM sees, learn by binary cross-entropy along with it. On stored features the CNN's scores learn in the
same run in every row (config.loss.cnn_weight), and sr_cnn_rnn would be mo_rare_first. LSEP's own paper learns a
threshold, which nothing here fits: its labels are those with a logit of 0 or more, a bound that a loss of differences
does not set.
"""

import dataclasses

from jaxmlic.configs import cnn_rnn, common, stand_ins

from jaxmlic import config as config_lib

# Fields of the config that make a method of the multi_order_rnn head with all labels at every step.
MULTI_ORDER = {
    "multi_order": {},
    "released": {"model.mask": "all", "model.output": "released", "loss.step_loss": "released"},
    "order_free": {"model.mask": "pool"},
}
RELEASED_EPS = 1.0  # of the authors' RMSProp
# Methods of the head with paths, and their orders.
FIXED_ORDERS = {
    "mo_frequent_first": "frequent_first",
    "mo_rare_first": "rare_first",
    "mo_lexicographic": "lexicographic",
    "sr_cnn_rnn": "rare_first",
}
METHODS = (*cnn_rnn.METHODS, *MULTI_ORDER, *FIXED_ORDERS)
TABLES = {
    "coco2014": (
        *("bce", "mo_frequent_first", "mo_rare_first", "mo_lexicographic", "multi_order"),  # Table 1
        *("warp", "lsep", "sr_cnn_rnn", "order_free", "mla", "pla"),  # what Table 2 adds
        *("cnn_rnn", "rare_first", "lexicographic"),  # the same orders in the cnn_rnn head, which is frequent-first
    ),
    "nus_wide": ("bce", "lsep", "warp", "sr_cnn_rnn", "order_free", "pla", "multi_order"),  # the first stage, Table 3
}
# How the rows of the tables decide: both papers' own ways, or three labels for WARP, which sets no threshold.
PROTOCOLS = {"order_free": "path", "warp": "top3_forced", **dict.fromkeys(FIXED_ORDERS, "path")}
FINE_TUNED = (("trunk/.*", 0.1), (".*", 1.0))


def get_config(arg=None):
    arg = config_lib.parse_arg(arg, dataset="coco2014", method=("multi_order", *METHODS), trunk="", size=0)
    if arg.method in cnn_rnn.METHODS:
        config = cnn_rnn.build(arg, trunk="resnet101")
    else:
        config = multi_order_method(cnn_rnn.data_and_trunk(arg, trunk="resnet101"), arg)
    if arg.dataset in TABLES:
        config.data.drop_empty = arg.dataset == "nus_wide"
        config.eval.protocol = PROTOCOLS.get(arg.method, "path" if config.head == "cnn_rnn" else "all_point")
        if config.head == "cnn_rnn":
            config.model.min_length = 0
        if arg.method in cnn_rnn.LINEAR:
            fine_tune(config)
    return common.smoke(config) if arg.smoke else config


def multi_order_method(config, arg):
    """The multi_order_rnn head on the data and trunk of `config`."""
    on_features = config.data.source == "features"
    config.head = "multi_order_rnn"
    config.model.dropout = 0.0  # on the pooled vector
    config.model.embedding_size = 256  # of the label that a step reads
    config.model.recurrent_size = 512
    # "paper": W h + b; "released": the authors' code, with a projection and a tanh, and s batch-normalised;
    # "released_prev2out": its option that adds the step's input to the projection.
    config.model.output = "paper"
    # Of binary cross-entropy on the CNN's own scores: 0 where a first stage has trained them.
    config.loss = {"cnn_weight": 1.0 if on_features or arg.method == "sr_cnn_rnn" else 0.0}
    cnn_rnn.rmsprop(config)
    if on_features:
        cnn_rnn.recurrent_on_features(config, arg)
        config.optim.lr = stand_ins.MULTI_ORDER_RATES.get(arg.dataset, config.optim.lr)
    elif arg.method == "sr_cnn_rnn":
        fine_tune(config)
    else:
        config.optim.groups = (("classifier/.*", None), *config.optim.groups)
        if arg.method == "released":
            config.optim.eps = RELEASED_EPS
    if arg.method in FIXED_ORDERS:
        fixed_order(config, arg)
    else:
        all_labels_at_every_step(config, arg)
    return config


def all_labels_at_every_step(config, arg):
    """Section 3.2, the authors' code and the order-free RNN."""
    config.model.num_steps = 5  # T
    # The labels that a step does not predict: "last" (the label it reads), "all" (every label read so far, the authors'
    # code), or "pool": the order-free RNN, whose training reads from a pool of the true labels.
    config.model.mask = "last"
    config.loss.step_loss = "paper"  # "paper": all steps count; "released": as many as an image has labels
    config.update_from_flattened_dict(MULTI_ORDER[arg.method])
    if arg.method == "order_free" and config.eval.protocol == "all_point":
        config.eval.protocol = "path"


def fixed_order(config, arg):
    """Section 3.1: the next label of one order, or END, by a softmax."""
    config.model.order = FIXED_ORDERS[arg.method]  # "none", or one of jaxmlic.labels.order.ORDERS
    config.model.max_length = cnn_rnn.LONGEST.get(arg.dataset, 10)  # labels of a path, in training and decoding
    config.model.beam_size = 1  # paths that decoding keeps; 1 is greedy
    if config.eval.protocol == "all_point":
        config.eval.protocol = "path"


def fine_tune(config):
    """The trunk learns at a tenth of the learning rate."""
    config.model.batch_norm = "train"
    config.optim.groups = FINE_TUNED


def sweep(arg=None):
    """The rows of the tables, or of the data set of the argument; see the module's text."""
    given = config_lib.parse_arg(arg, dataset="", method="", trunk="", size=0)
    on_features = cnn_rnn.reads_features(given.dataset, given.trunk)
    methods = [method for method in METHODS if not (on_features and method == "sr_cnn_rnn")]
    return [with_first_stage(entry, on_features) for entry in cnn_rnn.rows(arg, TABLES, methods)]


def with_first_stage(entry, on_features):
    """On images, a recurrent row starts from the BCE row."""
    own = config_lib.parse_arg(entry.argument, dataset="", method="")
    starts = not on_features and own.method not in cnn_rnn.LINEAR
    return dataclasses.replace(entry, start_from=f"{own.dataset}_bce" if starts else "")
