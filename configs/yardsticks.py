"""What the field compares with: CSRA, ML-Decoder and Query2Label on one trainer, and a linear head with ASL's recipe.

Papers:     Zhu and Wu, "Residual Attention: A Simple but Effective Method for Multi-Label Recognition", ICCV 2021;
            Ridnik et al., "ML-Decoder: Scalable and Versatile Classification Head", 2021; Liu et al., "Query2Label: A
            Simple Transformer Way to Multi-Label Classification", 2021; Ridnik et al., "Asymmetric Loss for Multi-Label
            Classification", ICCV 2021. Numbers: jaxmlic/papers/{csra,ml_decoder,query2label}.toml. docs/heads.md.
Arguments:  head=ml_decoder | csra | query2label | linear,  dataset=coco2014 | voc2007 | scenes | <any prepared
            data set>,  trunk=<any trunk>,  size=<side>,  smoke
Commands:   jaxmlic train --config=yardsticks:head=csra,dataset=scenes --workdir=runs/csra
            jaxmlic sweep --config=yardsticks:dataset=corel5k --workdir=runs/yardsticks --weights=DIR
Sweep:      of a data set, every head and what its parts are worth; of a head without a data set, the rows of its paper.
Recipes:    coco2014 and voc2007: those of the authors' code with ResNet-101 and squashed images of 448 pixels; scenes:
            quickstart's network and schedule; others: a frozen EfficientNet-Lite0, one recipe for all heads.

Read into the papers: TResNet, RandAugment and cutout are not among the authors' settings here; a flip stands for
RandAugment. Adam's decay leaves biases and norms out, as theirs does, and Query2Label's AdamW as well. Of ASL's 80
epochs theirs run 40; so do these, on the schedule of 40. The last checkpoint's averages count, not the best epoch on
the test images. The recipe on a frozen trunk is not selected on anything.
"""

from jaxmlic.configs import common, stand_ins
from ml_collections import ConfigDict

from jaxmlic import config as config_lib

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


def parse(arg=None):
    return config_lib.parse_arg(arg, dataset="", head=("", *HEADS), trunk="", size=0)


def get_config(arg=None):
    arg = parse(arg)
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
        frozen_recipe(config)
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
    model.embedding = 0 if large else 256  # 0 = as wide as the feature map
    model.num_heads = 4
    model.hidden = 8192 if large else 512  # of the feed-forward layers
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
    config.loss.name = "asymmetric"
    if head == "query2label":
        config.loss.options = (("gamma_neg", 2.0), ("clip", 0.0))
    config.optim.name = "adamw" if head == "query2label" else "adam"
    config.optim.lr = 1e-4
    config.optim.weight_decay = 1e-2 if head == "query2label" else 1e-4
    config.optim.schedule = "one_cycle"
    config.optim.warmup = "20%"
    config.optim.ema = 0.9997
    config.train.duration = "80 epochs" if head == "query2label" else "40 epochs"
    config.train.batch_size = {"ml_decoder": 56, "query2label": 64, "linear": 128}[head]


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


def frozen_recipe(config):
    """One for all heads on maps of a frozen trunk."""
    common.freeze_trunk(config)
    config.data.cache = True
    config.data.val_fraction = 0.0
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.1
    config.optim.warmup = "10%"
    config.optim.clip_norm = 1.0
    config.train.batch_size = 32
    config.train.duration = "12 epochs"


def sweep(arg=None):
    """Every head and row of the argument's data set; without one, the rows of the papers' tables."""
    arg = parse(arg)
    found = []
    for head in (arg.head,) if arg.head else HEADS:
        for dataset in (arg.dataset,) if arg.dataset else TABLES[head]:
            rows = TABLES[head].get(dataset, {})
            if arg.dataset:
                rows = {**ROWS[head], **rows}
            argument = f"head={head},dataset={dataset}"
            found += [config_lib.Entry(f"{dataset}_{row}", own, argument=argument) for row, own in rows.items()]
    return found
