"""Multi-order RNN: an LSTM that says all labels at each of five steps, beside the order-free RNN and fixed orders.

Paper:      Dutta, Verma, Jawahar, "Recurrent Image Annotation With Explicit Inter-Label Dependencies", ECCV 2020. PAPER
            below has its numbers, Tables 1 to 4.
Arguments:  dataset=coco2014 | nus_wide | corel5k | voc2007_subset | <any prepared data set>,
            method=<a key of METHODS>,  trunk=<any trunk>,  size=<side>,  smoke
Commands:   jaxmlic features --config=multi_order_rnn:dataset=corel5k \\
                --config.pretrained=efficientnet_lite0_imagenet.npz
            jaxmlic sweep --config=multi_order_rnn:dataset=corel5k --workdir=runs/corel5k --seeds=3 \\
                --config.pretrained=efficientnet_lite0_imagenet.npz
            jaxmlic predict --workdir=runs/corel5k/corel5k_multi_order/seed0 --trace photo.jpg
Two stages: jaxmlic train --config=multi_order_rnn:dataset=coco2014,method=bce --workdir=runs/cnn \\
                --config.pretrained=resnet101.safetensors
            jaxmlic train --config=multi_order_rnn:dataset=coco2014 --workdir=runs/rnn --config.start_from=runs/cnn
Sweep:      the rows of the data set's tables (the methods that exist here); for other data sets all METHODS, which is
            the comparison of every method of both papers; without an argument the rows of all tables.
CPU:        corel5k and voc2007_subset take features of a frozen EfficientNet-Lite0, stored by the first command; there
            the CNN's scores learn by binary cross-entropy in the same run (config.loss.cnn_weight).

Read into the paper: the second stage trains the RNN alone; momentum 0.9; fixed orders are the cnn_rnn head's, whose
labels are those of the best path.
"""

from jaxmlic.configs import cnn_rnn, common

# Fields of config.model and config.loss that make a method of the multi_order_rnn head.
MULTI_ORDER = {
    "multi_order": {},
    "released": {"model.mask": "all", "model.output": "released", "loss.step_loss": "released"},
    "order_free": {"model.mask": "pool"},
}
METHODS = (*cnn_rnn.METHODS, *MULTI_ORDER)
# Learning rates on stored features where they are not cnn_rnn's: on 20 % of Corel-5K's training images this one had
# 27.8 mAP, 3e-3 18.4. (On 30 % of the VOC subset's 1e-2 and 3e-3 had 71.2 and 71.0.)
RATES = {"corel5k": 1e-2}
TABLES = {
    # Table 1, then what Table 2 adds. cnn_rnn is frequent-first.
    "coco2014": (
        *("bce", "cnn_rnn", "rare_first", "lexicographic", "multi_order"),
        *("warp", "lsep", "order_free", "mla", "pla"),
    ),
    "nus_wide": ("lsep", "warp", "order_free", "pla", "multi_order"),  # Table 3
}


def get_config(arg=None):
    arg = common.parse_arg(arg, dataset="coco2014", method="multi_order", trunk="", size=0)
    cnn_rnn.check_method(arg.method, METHODS)
    if arg.method not in MULTI_ORDER:
        config = cnn_rnn.build(arg, trunk="resnet101")
    else:
        config = cnn_rnn.data_and_trunk(arg, trunk="resnet101")
        multi_order_method(config, arg)
        config = common.smoke(config) if arg.smoke else config
    if arg.dataset in TABLES:
        config.data.drop_empty = arg.dataset == "nus_wide"
        # Both papers' own decisions: 1/2, the path, or three labels where a loss sets no threshold.
        free = {"multi_order_rnn": "all_point", "cnn_rnn": "path", "linear": "all_point"}[config.head]
        config.eval.protocol = {"order_free": "path", "warp": "top3_forced", "lsep": "top3_forced"}.get(
            arg.method, free
        )
        if config.head == "cnn_rnn":
            config.model.min_length = 0
        if arg.method == "bce":  # the first stage
            config.model.batch_norm = "train"
            config.optim.groups = (("trunk/.*", 0.1), (".*", 1.0))
    return config


def multi_order_method(config, arg):
    """The multi_order_rnn head."""
    on_features = config.data.source == "features"
    config.head = "multi_order_rnn"
    config.model.dropout = 0.0  # on the pooled vector
    config.model.embedding_size = 256  # of the label that a step reads
    config.model.recurrent_size = 512
    config.model.num_steps = 5  # T
    # What a step is not to say: "last" (the label it reads), "all" (every label read so far, the authors' code), or
    # "pool": the order-free RNN, whose training reads from a pool of the true labels.
    config.model.mask = "last"
    # "paper": W h + b; "released": the authors' code, with the step's input and a tanh, and s batch-normalised.
    config.model.output = "paper"
    config.loss = {
        "step_loss": "paper",  # "paper": all steps count; "released": as many as an image has labels
        "cnn_weight": 1.0 if on_features else 0.0,  # of binary cross-entropy on the CNN's own scores
    }
    cnn_rnn.rmsprop(config)
    config.optim.groups = (("trunk/.*", None), (".*", 1.0))
    if on_features:
        cnn_rnn.recurrent_on_features(config, arg)
        config.optim.lr = RATES.get(arg.dataset, config.optim.lr)
    else:
        config.optim.groups = (("classifier/.*", None), *config.optim.groups)
    config.update_from_flattened_dict(MULTI_ORDER[arg.method])
    if arg.method == "order_free" and config.eval.protocol == "all_point":
        config.eval.protocol = "path"


def sweep(arg=None):
    """The rows of the tables, or of the data set of the argument; see the module's text."""
    return cnn_rnn.rows(arg, TABLES, METHODS)


COLUMNS = ("CP", "CR", "CF1", "IP", "IR", "IF1")  # per label and per image, Tables 1 to 3
# Percent. Rows of methods that do not exist here are left out.
PAPER = {
    "coco2014_bce": (59.30, 58.60, 58.90, 61.70, 65.00, 63.30),
    "coco2014_cnn_rnn": (70.27, 56.49, 62.63, 72.15, 64.53, 68.13),
    "coco2014_rare_first": (65.68, 61.32, 63.43, 70.82, 64.73, 67.64),
    "coco2014_lexicographic": (70.98, 55.86, 62.52, 74.14, 62.35, 67.74),
    "coco2014_multi_order": (77.09, 64.32, 70.13, 84.90, 75.83, 80.11),
    "coco2014_warp": (57.09, 55.31, 56.19, 57.54, 70.03, 63.18),
    "coco2014_lsep": (73.50, 56.40, 63.82, 76.30, 61.80, 68.29),
    "coco2014_order_free": (71.60, 54.80, 62.10, 74.20, 62.20, 67.70),
    "coco2014_mla": (68.37, 60.39, 64.13, 72.16, 66.71, 69.33),
    "coco2014_pla": (70.18, 61.96, 65.81, 73.75, 67.74, 70.62),
    "nus_wide_lsep": (66.70, 45.90, 54.38, 76.80, 65.70, 70.82),
    "nus_wide_warp": (44.74, 52.44, 48.28, 53.81, 75.48, 62.83),
    "nus_wide_order_free": (59.40, 50.70, 54.70, 69.00, 71.40, 70.20),
    "nus_wide_pla": (60.67, 52.40, 56.23, 71.96, 72.79, 72.37),
    "nus_wide_multi_order": (60.85, 54.43, 57.46, 76.50, 73.06, 74.74),
}
PAPER_TOP1 = {"nus_wide_multi_order": 84.05, "coco2014_multi_order": 93.49}  # Table 4
