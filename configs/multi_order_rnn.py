"""Multi-order RNN: an LSTM that predicts all labels at each of five steps, beside the order-free RNN and fixed orders.

Paper:      Dutta, Verma, Jawahar, "Recurrent Image Annotation With Explicit Inter-Label Dependencies", ECCV 2020. Its
            numbers: jaxmlic/papers/multi_order_rnn.toml. Commands: docs/experiments.md.
Arguments:  dataset=coco2014 | nus_wide | corel5k | voc2007_subset | <any prepared data set>,
            method=<one of METHODS>,  trunk=<any trunk>,  size=<side>,  smoke
Sweep:      the rows of the data set's tables (the methods that exist here); for other data sets all METHODS, which is
            the comparison of every method of both papers; without an argument the rows of all tables.

Read into the paper: the second stage trains the RNN alone; momentum 0.9; fixed orders are the cnn_rnn head's, whose
labels are those of the best path. On stored features the CNN's scores learn by binary cross-entropy in the same run
(config.loss.cnn_weight).
"""

from jaxmlic.configs import cnn_rnn, common, stand_ins

from jaxmlic import config as config_lib

# Fields of config.model and config.loss that make a method of the multi_order_rnn head.
MULTI_ORDER = {
    "multi_order": {},
    "released": {"model.mask": "all", "model.output": "released", "loss.step_loss": "released"},
    "order_free": {"model.mask": "pool"},
}
METHODS = (*cnn_rnn.METHODS, *MULTI_ORDER)
TABLES = {
    # Table 1, then what Table 2 adds. cnn_rnn is frequent-first.
    "coco2014": (
        *("bce", "cnn_rnn", "rare_first", "lexicographic", "multi_order"),
        *("warp", "lsep", "order_free", "mla", "pla"),
    ),
    "nus_wide": ("lsep", "warp", "order_free", "pla", "multi_order"),  # Table 3
}
# How the rows of the tables decide: both papers' own ways, or three labels where a loss sets no threshold.
PROTOCOLS = {"order_free": "path", "warp": "top3_forced", "lsep": "top3_forced"}


def get_config(arg=None):
    arg = config_lib.parse_arg(arg, dataset="coco2014", method=("multi_order", *METHODS), trunk="", size=0)
    if arg.method in MULTI_ORDER:
        config = multi_order_method(cnn_rnn.data_and_trunk(arg, trunk="resnet101"), arg)
    else:
        config = cnn_rnn.build(arg, trunk="resnet101")
    if arg.dataset in TABLES:
        config.data.drop_empty = arg.dataset == "nus_wide"
        config.eval.protocol = PROTOCOLS.get(arg.method, "path" if config.head == "cnn_rnn" else "all_point")
        if config.head == "cnn_rnn":
            config.model.min_length = 0
        if arg.method == "bce":  # the first stage
            config.model.batch_norm = "train"
            config.optim.groups = (("trunk/.*", 0.1), (".*", 1.0))
    return common.smoke(config) if arg.smoke else config


def multi_order_method(config, arg):
    """The multi_order_rnn head on the data and trunk of `config`."""
    on_features = config.data.source == "features"
    config.head = "multi_order_rnn"
    config.model.dropout = 0.0  # on the pooled vector
    config.model.embedding_size = 256  # of the label that a step reads
    config.model.recurrent_size = 512
    config.model.num_steps = 5  # T
    # The labels that a step does not predict: "last" (the label it reads), "all" (every label read so far, the authors'
    # code), or "pool": the order-free RNN, whose training reads from a pool of the true labels.
    config.model.mask = "last"
    # "paper": W h + b; "released": the authors' code, with the step's input and a tanh, and s batch-normalised.
    config.model.output = "paper"
    config.loss = {
        "step_loss": "paper",  # "paper": all steps count; "released": as many as an image has labels
        "cnn_weight": 1.0 if on_features else 0.0,  # of binary cross-entropy on the CNN's own scores
    }
    cnn_rnn.rmsprop(config)
    if on_features:
        cnn_rnn.recurrent_on_features(config, arg)
        config.optim.lr = stand_ins.MULTI_ORDER_RATES.get(arg.dataset, config.optim.lr)
    else:
        config.optim.groups = (("classifier/.*", None), *config.optim.groups)
    config.update_from_flattened_dict(MULTI_ORDER[arg.method])
    if arg.method == "order_free" and config.eval.protocol == "all_point":
        config.eval.protocol = "path"
    return config


def sweep(arg=None):
    """The rows of the tables, or of the data set of the argument; see the module's text."""
    return cnn_rnn.rows(arg, TABLES, METHODS)
