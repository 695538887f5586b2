"""MSCNN-LCE-MIC: three stages of a trunk with attention, label embeddings from a graph, MFB fusion, pseudo-labels.

Paper:      James, Lakshmi, "A Novel Framework for Semi-supervised Multiple-label Image Classification using
            Multi-stage CNN and Visual Attention Mechanism". Its numbers: jaxmlic/papers/mscnn_lce_mic.toml. Commands:
            docs/experiments.md.
Arguments:  dataset=voc2007 | coco2014 | corel5k | voc2007_subset | <any prepared data set>,  trunk=<any trunk>,
            size=<side>,  rows=ablation | propagation,  labelled=<named split>,  pseudo=<file>,
            glove=<file of 300-d vectors>,  smoke
Sweep:      one entry for each different network of the tables. Table II is Table I's runs under `jaxmlic evaluate
            --protocol=top3_thresholded`; Fig. 6 shows Table V.

Read into the paper: phi 0.4 and lambda 0.25 as in ML-GCN; 30 epochs (it converges after 25); a constant learning rate;
mirrored images; without label embeddings the classifiers of the stages are averaged (step 4). Table VI's groups of 4
and more do not divide its m = 358: m is the next multiple there. "No multi-stage CNN" is the last stage alone. MFB has
the signed square root and the division by the length of its own paper; Section E names neither (entry mfb_none). Step
4's classifiers stay beside the fusion, averaged with it (entry stage_logits_off without); the rows on a frozen trunk,
whose numbers are older, are without (entry stage_logits with). The paper's word vectors are GloVe's of 300 numbers,
which `glove=glove.6B.300d.txt` reads; without it the rows take the 100-d ones of this package. Table VIII labels what
is left of all 9,963 images of VOC 2007, test images among them, and its networks are tested on rmlc/test, whose images
they saw with the labels found.
"""

from jaxmlic.configs import common, stand_ins

from jaxmlic import config as config_lib
from jaxmlic.models import trunks

DIM = 358
LABELLED = {"cifar10": (1000, 2000, 3000, 4000), "voc2007": (2000, 4000, 6000)}  # Tables VII and VIII
METHODS = ("improved", "soft", "diffusion")  # of `jaxmlic propagate`; the tables have the first and the last


def parse(arg=None):
    rows = ("ablation", "propagation")
    return config_lib.parse_arg(arg, dataset="voc2007", trunk="", size=0, rows=rows, labelled="", pseudo="", glove="")


def get_config(arg=None):
    arg = parse(arg)
    config = common.base()
    config.head = "mscnn_lce_mic"
    config.data.name = arg.dataset
    config.data.train_split = f"{arg.labelled}/labelled" if arg.labelled else "train"
    config.data.val_fraction = 0.0  # all training images, the last checkpoint
    config.data.image_size = arg.size or (64 if arg.smoke else stand_ins.MSCNN_SIDES.get(arg.dataset, 448))

    config.model.trunk = trunk_of(arg)
    config.model.stages = ()  # the trunk's stages that are read; () = its levels, of VGG16 conv3_3, conv4_3, conv5_3
    config.model.map_size = 0  # maps with more rows or columns are averaged to so many; 0 = as they are
    config.model.stage_norm = False  # bring each stage's vector to one length (ParseNet), before they are joined
    config.model.attention = True  # attended vectors of the stages (eqs 3 to 5); False: pooled ones
    config.model.global_dim = 512  # units of the global vector g that the stages are compared with (eq 2)
    config.model.graph = "gcn"  # label embeddings: "gcn" from word vectors, or "none", a free vector a label
    config.model.gcn_layers = 2  # graph convolutions (Table V)
    config.model.gcn_hidden = 1024  # outputs of all but the last
    config.model.gcn_dim = 2048  # outputs of the last; 0 = as many as the image's vector has, which "dot" needs
    config.model.adjacency = "paper"  # eqs 6 to 8; or "ml_gcn", "pmi", "identity" (no neighbours)
    config.model.threshold = 0.4  # phi: from this association on, a pair of labels is an edge
    config.model.reweight = 0.25  # lambda: weight of the neighbours
    # "glove100", "random", "one_hot", a file of GloVe's or word2vec's form, or a text encoder's (docs/zero_shot.md)
    config.model.word_vectors = arg.glove or "glove100"
    config.model.word_dim = 300 if arg.glove else 0  # numbers in a word vector, for a file or "random"; 0 = its own
    config.model.fusion = "mfb"  # "mfb", "dot" (ML-GCN) or "none" (step 4: a classifier a stage; needs graph "none")
    config.model.mfb_dim = DIM  # m, units of the product
    config.model.mfb_norm = "power_l2"  # signed root and length of MFB's own paper, or "none", Section E's letter
    config.model.mfb_groups = 2  # g, units that are summed (Table VI); it divides m
    config.model.stage_logits = "add"  # step 4's classifiers beside the fusion: "add", averaged with it, or "off"
    config.loss.name = "weighted_cross_entropy"  # eq 9

    config.optim.decay = ".*(kernel(_[0-9]+)?|embedding)"  # the GCN's kernels have numbers
    config.optim.name = "sgd"
    config.optim.lr = 1e-3
    config.optim.schedule = "constant"
    config.train.duration = "30 epochs"
    config.train.batch_size = 32
    config.train.checkpoint_every = "10%"
    common.test_rules(config)
    if arg.dataset in stand_ins.MSCNN:
        frozen_recipe(config, *stand_ins.MSCNN[arg.dataset])
    return common.smoke(config) if arg.smoke else config


def trunk_of(arg):
    return arg.trunk or ("efficientnet_lite0" if arg.dataset in stand_ins.MSCNN else "vgg16")


def frozen_recipe(config, lr, decay, epochs, hidden):
    """A trunk that stays as it is, whose stages can be stored, and a head that trains from them in minutes."""
    common.freeze_trunk(config)
    config.model.map_size = 14
    config.model.stage_logits = "off"
    config.model.stage_norm = True  # the first two stages' vectors are five times as large as the last one's
    config.model.global_dim = 128
    config.model.gcn_hidden = hidden
    config.model.gcn_dim = 256
    config.data.cache = True
    config.features.store = "stages"
    frozen, rest = common.FROZEN_GROUPS
    config.optim.groups = (frozen, ("(global|attention_.*)/.*", 0.1), rest)
    config.optim.name = "adamw"
    config.optim.schedule = "cosine"
    config.optim.lr = lr
    config.optim.weight_decay = decay
    config.train.duration = f"{epochs} epochs"
    config.train.checkpoint_every = "100%"


def sweep(arg=None):
    """Every different network of Tables I to VI; with rows=propagation, the runs of Tables VII and VIII."""
    arg = parse(arg)
    if arg.rows == "propagation":
        return propagation_rows(arg)
    last = {"model.stages": trunks.levels(trunk_of(arg))[-1:]}
    no_fusion = {"model.graph": "none", "model.fusion": "none", "model.stage_logits": "off"}
    no_attention = {"model.attention": False}
    on_features = arg.dataset in stand_ins.MSCNN
    if on_features:  # a group without a parameter is an error
        no_attention["optim.groups"] = common.FROZEN_GROUPS
    plain = {**no_attention, **no_fusion, **last}
    if arg.labelled:  # Table IV: what is learned from the labelled part alone, and with pseudo-labels
        pseudo = {"data.train_split": "train", "data.pseudo_labels": arg.pseudo or "labels1.npz"}
        return [
            ("full_lp", pseudo),
            ("no_fusion_lp", {**no_fusion, **pseudo}),
            ("plain_lp", {**plain, **pseudo}),
            ("no_multi_stage", last),
            ("no_attention", no_attention),
            ("no_fusion", no_fusion),
        ]
    ml_gcn = {**no_attention, "model.fusion": "dot", "model.gcn_dim": 0, "model.adjacency": "ml_gcn"}
    ml_gcn["model.stage_logits"] = "off"
    other_step_4 = ("stage_logits", "add") if on_features else ("stage_logits_off", "off")
    entries = [
        ("full", {}),
        ("no_fusion", no_fusion),
        ("plain", plain),
        ("plain_max", {**plain, "model.pool": "max"}),
        ("no_multi_stage", last),
        ("no_attention", no_attention),
        ("dot", {"model.fusion": "dot", "model.gcn_dim": 0}),
        ("mfb_none", {"model.mfb_norm": "none"}),
        (other_step_4[0], {"model.stage_logits": other_step_4[1]}),
        ("no_edges", {"model.adjacency": "identity"}),
        ("free_labels", {"model.graph": "none"}),
        ("ml_gcn", {**ml_gcn, **last, "model.pool": "max"}),  # max against average is ML-GCN's known confound
        ("ml_gcn_avg", {**ml_gcn, **last}),
        *((f"gcn_{layers}", {"model.gcn_layers": layers}) for layers in (3, 4)),
        *((f"g_{g}", {"model.mfb_groups": g, "model.mfb_dim": -(-DIM // g) * g}) for g in (1, 4, 8, 16, 32, 64)),
    ]
    if not on_features and not arg.trunk:  # the tables' other methods that exist here
        resnet = {"model.trunk": "resnet101", "model.stages": trunks.levels("resnet101")[-1:]}
        entries += [
            ("resnet101", {**plain, **resnet}),
            ("ml_gcn_resnet101", {**ml_gcn, **resnet, "model.pool": "max"}),
        ]
    return entries


def propagation_rows(arg):
    """For each number of labelled images: those alone, and all images with each method's labels."""
    numbers = LABELLED.get(arg.dataset, (100, 200, 400))
    alone = {n: f"labelled{n}/labelled" for n in numbers}
    everything, tested = {}, {}
    if arg.dataset == "voc2007":
        alone[6000] = "rmlc/train"
        everything, tested = {"data.train_split": "all/images"}, {"data.test_split": "rmlc/test"}
    files = [
        (f"{method}_{n}", {"data.pseudo_labels": f"{method}_{n}.npz", **everything, **tested})
        for n in numbers
        for method in METHODS
    ]
    return [(f"alone_{n}", {"data.train_split": alone[n], **tested}) for n in numbers] + files
