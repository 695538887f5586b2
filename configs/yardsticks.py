"""What the field compares with: CSRA, ML-Decoder, Query2Label, a linear head with ASL's recipe; all heads on one trunk.

Papers:     Zhu and Wu, "Residual Attention: A Simple but Effective Method for Multi-Label Recognition", ICCV 2021;
            Ridnik et al., "ML-Decoder: Scalable and Versatile Classification Head", 2021; Liu et al., "Query2Label: A
            Simple Transformer Way to Multi-Label Classification", 2021; Ridnik et al., "Asymmetric Loss for Multi-Label
            Classification", ICCV 2021. Numbers: jaxmlic/papers/{csra,ml_decoder,query2label}.toml. docs/heads.md.
Arguments:  head=ml_decoder | csra | query2label | linear,  dataset=coco2014 | voc2007 | scenes | <any prepared
            data set>,  trunk=<any trunk>,  size=<side>,  smoke
            rows=heads,  head=<one of EQUAL>: on equal stored features.  rows=losses,  loss=<one of LOSSES>: a linear
            head, and training labels of which some are missing.
Commands:   jaxmlic train --config=yardsticks:head=csra,dataset=scenes --workdir=runs/csra
            jaxmlic sweep --config=yardsticks:dataset=corel5k --workdir=runs/yardsticks --weights=DIR
            jaxmlic reproduce yardsticks/voc2007_subset --train --seeds=3 --weights=DIR --workdir=runs/heads
            jaxmlic sweep --config=yardsticks:rows=losses --workdir=runs/losses --weights=DIR
Sweep:      of a data set, every head and what its parts are worth; of a head without a data set, the rows of its paper;
            rows=heads and rows=losses: all of them.
Recipes:    coco2014 and voc2007: those of the authors' code with ResNet-101 and squashed images of 448 pixels; scenes:
            quickstart's network and schedule; others: a frozen EfficientNet-Lite0. There and with rows=heads each head
            has the recipe selected for it on Corel-5K or the VOC subset (stand_ins.py), elsewhere Corel-5K's.

Read into the papers: TResNet is not here. RandAugment is two of its operations of magnitude 9; cutout's squares have
the mean colour, where theirs have a random one. Adam's decay leaves biases and norms out, as theirs does, and
Query2Label's AdamW as well. Adam's decay and epsilon stand there beside a loss summed over images and labels, here
beside their mean, and are divided by as many, which gives the same steps. Of ASL's 80 epochs theirs run 41; these are
40, on a schedule of 40. The last checkpoint's averages count, not the best epoch on the test images.
"""

from jaxmlic.configs import cnn_lstm_rmlc, cnn_rnn, common, linear, mscnn_lce_mic, multi_order_rnn, stand_ins
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic.data import benchmark_facts
from jaxmlic.errors import UserError
from jaxmlic.models import trunks

HEADS = ("ml_decoder", "csra", "query2label", "linear")
PAPERS_DATASETS = ("coco2014", "voc2007")

# {head: {row: its changes}}: the first row of each is the recipe.
ROWS = {
    "linear": {"linear": {}},
    "csra": {
        "csra_h1": {"model.temperatures": (1.0,), "model.max_head": False},
        "csra_h2": {"model.temperatures": (1.0,), "model.max_head": True},
        "csra_h4": {"model.temperatures": (1.0, 2.0, 4.0), "model.max_head": True},
        "csra_h6": {"model.temperatures": (1.0, 2.0, 3.0, 4.0, 5.0), "model.max_head": True},
        "csra_max": {"model.temperatures": (), "model.max_head": True},
        "csra_as_printed": {"model.unit_classifier": False},
    },
    "ml_decoder": {
        "ml_decoder": {},
        "ml_decoder_groups": {"model.groups": 10},
        "ml_decoder_learned": {"model.queries": "learned"},
    },
    "query2label": {
        "query2label": {},
        "query2label_later": {"model.self_attention": "later"},
        "query2label_all": {"model.self_attention": "all"},
        "query2label_no_positions": {"model.positions": "none"},
    },
}
# Rows of the papers' tables, and what they change; the numbers are in jaxmlic/papers.
TABLES = {
    "linear": {"coco2014": {"linear": {}}},
    "csra": {
        "voc2007": {"csra_h1": {**ROWS["csra"]["csra_h1"], "model.attention_weight": 0.1}},
        "coco2014": {"csra_h4": {**ROWS["csra"]["csra_h4"], "model.attention_weight": 0.5}},
    },
    "ml_decoder": {"coco2014": {"ml_decoder": {}}},
    "query2label": {"coco2014": {"query2label": {}, "query2label_576": {"data.image_size": 576}}},
}
# rows=heads: of the other heads the experiment, more of its argument, and the entry of its sweep.
OTHERS = {
    "linear": (linear, "mode=frozen", ""),
    "cnn_rnn": (cnn_rnn, "method=cnn_rnn", ""),
    "multi_order": (multi_order_rnn, "method=multi_order", ""),
    "cnn_lstm_rmlc": (cnn_lstm_rmlc, "row=cnn_lstm_rmlc,mode=frozen", ""),
    "mscnn": (mscnn_lce_mic, "", "full"),
    "ml_gcn": (mscnn_lce_mic, "", "ml_gcn"),
}
EQUAL = ("linear", "csra", "ml_decoder", "query2label", *list(OTHERS)[1:])
EQUAL_SIDES = {"scenes": 96}  # its pictures have 48 pixels
# rows=losses: the loss, its options and which labels are missing.
OVERLOOKED = {"data.noise": "missing", "data.noise_rate": 0.4}  # present ones that are recorded as absent
UNRECORDED = {"data.noise": "unknown", "data.noise_rate": 0.7}
NO_GAMMAS = (("gamma_neg", 0.0), ("gamma_unknown", 0.0))  # partial binary cross-entropy
LOSSES = {
    "bce": ("binary_cross_entropy", (), OVERLOOKED),
    "asymmetric": ("asymmetric", (), OVERLOOKED),
    "hill": ("hill", (), OVERLOOKED),
    "splc_first": ("splc", (("tau", 1.0),), {**OVERLOOKED, "train.duration": "1 epochs"}),
    "splc": ("splc", (), OVERLOOKED),
    **{
        f"partial_bce_{mode}": ("partial_asymmetric", (("mode", mode), *NO_GAMMAS), UNRECORDED)
        for mode in ("ignore", "negative", "selective")
    },
    "partial_asymmetric": ("partial_asymmetric", (("mode", "selective"),), UNRECORDED),
}


def parse(arg=None):
    heads = ("", *dict.fromkeys((*HEADS, *EQUAL)))
    choices = {"head": heads, "rows": ("", "heads", "losses"), "loss": ("", *LOSSES)}
    found = config_lib.parse_arg(arg, dataset="", trunk="", size=0, **choices)
    if found.head and found.head not in HEADS and found.rows != "heads":
        raise UserError(f"config argument head={found.head} goes with rows=heads; without, the heads are {HEADS}")
    if found.loss and found.rows != "losses":
        raise UserError(f"config argument loss={found.loss} goes with rows=losses")
    if found.head and found.rows == "losses":
        raise UserError(f"config argument head={found.head} does not go with rows=losses: its head is the linear one")
    return found


def get_config(arg=None):
    arg = parse(arg)
    if arg.rows == "heads":
        return on_equal_features(arg)
    if arg.rows == "losses":
        return with_missing_labels(arg)
    head, dataset = arg.head or HEADS[0], arg.dataset or "coco2014"
    config = common.base()
    config.head = head if head == "linear" else f"label_attention.{head}"
    config.data.name = dataset
    config.features.store = "map"  # `jaxmlic features` for these heads; the linear one reads it too
    common.test_rules(config)
    if dataset in PAPERS_DATASETS:
        trunk, size = "resnet101", 448
    elif dataset == "scenes":
        trunk, size = "small_cnn", 48
    else:
        trunk, size = "efficientnet_lite0", stand_ins.SIDES.get(dataset, stand_ins.SIDE)
    config.data.image_size = arg.size or size
    fields = config.model.to_dict()
    if head != "linear":
        del fields["pool"], fields["dropout"]
    config.model = ConfigDict({**fields, "trunk": arg.trunk or trunk})
    if head != "linear":
        OWN[head](config.model, large=dataset in PAPERS_DATASETS)
    if dataset in PAPERS_DATASETS:
        papers_recipe(config, head)
    elif dataset == "scenes":
        scenes_recipe(config)
    else:
        frozen_recipe(config, head)
    if arg.smoke:
        config.data.image_size = arg.size or min(size, 64)
        return common.smoke(config)
    return config


def csra(model, large):
    model.temperatures = (1.0,)  # of the heads
    model.max_head = False  # one head more, with an infinite temperature: the maximum over positions
    model.attention_weight = 0.1  # lambda
    model.unit_classifier = True  # the authors' code; False: the equations as printed


def ml_decoder(model, large):
    model.groups = 100  # queries at most; 0 = one a label
    model.queries = "fixed"  # random ones, or "learned"
    model.embedding = 768 if large else 256
    model.num_heads = 8
    model.hidden = 2048 if large else 512  # of the feed-forward layer
    model.layers = 1
    model.dropout = 0.1


def query2label(model, large):
    model.embedding = 0 if large else 128  # 0 = as wide as the feature map
    model.num_heads = 4
    model.hidden = 8192 if large else 256  # of the feed-forward layers
    model.encoder_layers = 1
    model.decoder_layers = 2
    model.self_attention = "none"  # of the labels: "none", "later" (not in the first layer) or "all"
    model.positions = "sine"  # encodings of the map's positions, or "none"
    model.dropout = 0.1


OWN = {"csra": csra, "ml_decoder": ml_decoder, "query2label": query2label}


def papers_recipe(config, head):
    """The optimizer, schedule, loss and averages of the authors' code; all training images, no selection."""
    config.data.val_fraction = 0.0
    # The lists of images are those with an object, but for Query2Label's.
    config.data.drop_empty = config.data.name == "coco2014" and head != "query2label"
    config.train.checkpoint_every = "10%"
    if head == "csra":
        config.loss.name = "binary_cross_entropy"
        config.augment.crop_area = (0.7, 1.0)
        config.optim.name = "sgd"
        config.optim.lr = 0.1
        config.optim.groups = (("trunk/.*", 0.1), (".*", 1.0))
        config.optim.decay = ".*"
        config.optim.schedule = "step"
        config.optim.warmup = "2 epochs"
        every = 5 if config.data.name == "coco2014" else 4
        config.optim.milestones = tuple(f"{epoch} epochs" for epoch in range(every, 30, every))
        config.train.duration = "30 epochs"
        config.train.batch_size = 16
        return
    config.augment.flip = False
    config.augment.cutout = 0.5
    config.augment.ops = 2
    config.loss.name = "asymmetric"
    if head == "query2label":
        config.loss.options = (("gamma_neg", 2.0), ("clip", 0.0))
    config.optim.name = "adamw" if head == "query2label" else "adam"
    config.optim.lr = 1e-4
    config.optim.schedule = "one_cycle"
    config.optim.warmup = "20%"
    config.optim.ema = 0.9997
    config.train.duration = "80 epochs" if head == "query2label" else "40 epochs"
    config.train.batch_size = {"ml_decoder": 56, "query2label": 64, "linear": 128}[head]
    summed = config.train.batch_size * benchmark_facts.FACTS[config.data.name].labels  # terms of their loss
    config.optim.eps = 1e-8 / summed
    config.optim.weight_decay = 1e-2 if head == "query2label" else 1e-4 / summed


def scenes_recipe(config):
    """Quickstart's, with a rate that transformers bear from the start."""
    config.data.cache = True
    config.data.val_fraction = 0.05
    config.augment.crop_area = (0.85, 1.0)
    config.augment.crop_aspect = (0.9, 1.1)
    config.optim.lr = 2e-3
    config.optim.schedule = "one_cycle"
    config.optim.warmup = "25%"
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 1.0
    config.train.duration = "13 epochs"
    config.train.cpu_devices = 0


def frozen_recipe(config, head):
    """A head on maps of a frozen trunk, with what was selected for it; on other data sets with Corel-5K's."""
    common.freeze_trunk(config)
    config.data.cache = True
    config.data.val_fraction = 0.0
    recipes = stand_ins.LABEL_ATTENTION.get(config.data.name, stand_ins.LABEL_ATTENTION["corel5k"])
    config.optim.lr, config.optim.weight_decay, epochs = recipes[head]
    if head in ("ml_decoder", "query2label"):  # transformers
        config.optim.warmup = "10%"
        config.optim.clip_norm = 1.0
    config.train.batch_size = 32
    config.train.duration = f"{epochs} epochs"


def on_equal_features(arg):
    """A head on stored maps of one frozen trunk at one size; MSCNN and ML-GCN on stages of the same trunk."""
    name, dataset = arg.head or EQUAL[0], arg.dataset or "voc2007_subset"
    known = dataset if dataset in stand_ins.RECURRENT else "corel5k"
    if name in OTHERS:
        module, own, entry = OTHERS[name]
        argument = ",".join(filter(None, [f"dataset={known}", own]))
        config = module.get_config(argument)
        overrides = dict(module.sweep(argument))[entry] if entry else {}
    else:
        config, overrides = get_config(f"head={name},dataset={known}"), {}
    if "model.stages" in overrides and arg.trunk:
        overrides["model.stages"] = trunks.levels(arg.trunk)[-1:]
    config = config_lib.override(config, overrides)
    plain = common.base()
    plain.data.name = config.data.name = dataset
    common.test_rules(plain)
    config.eval, config.data.test_split = plain.eval, plain.data.test_split
    config.data.image_size = arg.size or EQUAL_SIDES.get(dataset, stand_ins.SIDES.get(dataset, stand_ins.SIDE))
    config.data.source, config.data.cache = "features", True
    config.data.val_fraction = 0.0
    config.features.store = "stages" if "stages" in config.model else "map"
    config.train.checkpoint_every = "100%"
    if arg.trunk:
        config.model.trunk = arg.trunk
        config.model.batch_norm = "frozen" if trunks.has_batch_norm(arg.trunk) else "train"
    if "max_length" in config.model:
        config.model.max_length = cnn_rnn.LONGEST.get(dataset, 10)
    if arg.smoke:
        config.data.image_size = arg.size or min(config.data.image_size, 64)
        return common.smoke(config)
    return config


def with_missing_labels(arg):
    """The linear head on pooled stored features, a loss of LOSSES, and the labels that are missing for it."""
    dataset = arg.dataset or "voc2007_subset"
    size = f",size={arg.size}" if arg.size else ""
    config = linear.get_config(f"dataset={dataset},mode=frozen{size}")
    name, options, changes = LOSSES[arg.loss or "bce"]
    config.data.source = "features"
    if arg.trunk:
        config.model.trunk = arg.trunk
        common.freeze_trunk(config)
    config.loss.name, config.loss.options = name, options
    config = config_lib.override(config, changes)
    return common.smoke(config) if arg.smoke else config


def sweep(arg=None):
    """Every head and row of the argument's data set; without one, the rows of the papers' tables."""
    arg = parse(arg)
    if arg.rows == "heads":
        return [config_lib.Entry(name, argument=f"head={name}") for name in ((arg.head,) if arg.head else EQUAL)]
    if arg.rows == "losses":
        starts = {"splc": "splc_first"}
        chosen = (arg.loss,) if arg.loss else LOSSES
        return [
            config_lib.Entry(name, argument=f"loss={name}", start_from="" if arg.loss else starts.get(name, ""))
            for name in chosen
        ]
    found = []
    for head in (arg.head,) if arg.head else HEADS:
        for dataset in (arg.dataset,) if arg.dataset else TABLES[head]:
            rows = TABLES[head].get(dataset, {})
            if arg.dataset:
                rows = {**ROWS[head], **rows}
            argument = f"head={head},dataset={dataset}"
            found += [config_lib.Entry(f"{dataset}_{row}", own, argument=argument) for row, own in rows.items()]
    return found
