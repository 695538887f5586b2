"""MSCNN-LCE-MIC: three stages of a trunk with attention, label embeddings from a graph, MFB fusion, pseudo-labels.

Paper:      James, Lakshmi, "A Novel Framework for Semi-supervised Multiple-label Image Classification using
            Multi-stage CNN and Visual Attention Mechanism". PAPER below has the numbers of Tables I to VIII.
Arguments:  dataset=voc2007 | coco2014 | corel5k | voc2007_subset | <any prepared data set>,  trunk=<any trunk>,
            size=<side>,  rows=ablation | propagation,  labelled=<named split>,  pseudo=<file>,  smoke
Commands:   jaxmlic sweep --config=mscnn_lce_mic:dataset=voc2007 --workdir=runs/voc \\
                --config.pretrained=vgg16.safetensors
CPU:        jaxmlic features --config=mscnn_lce_mic:dataset=corel5k --config.pretrained=efficientnet_lite0_imagenet.npz
            jaxmlic sweep --config=mscnn_lce_mic:dataset=corel5k --workdir=runs/corel5k --seeds=3 \\
                --config.pretrained=efficientnet_lite0_imagenet.npz --config.data.source=features
            jaxmlic convergence runs/corel5k/{full,ml_gcn,plain}/seed0 --out=convergence.png (with
            --config.data.val_fraction=0.1, so that there is something to measure on)
Part labelled (Table IV's first column; corel5k and 10% stand for any):
            jaxmlic data split corel5k --subset=10% --from=train --as=few
            jaxmlic alternate --config=mscnn_lce_mic:dataset=corel5k --labelled=few/labelled --workdir=runs/few
            jaxmlic sweep --config=mscnn_lce_mic:dataset=corel5k,labelled=few,pseudo=runs/few/labels1.npz ...
Tables VII, VIII (N images with a label, METHOD improved or diffusion; rows=propagation):
            jaxmlic data split cifar10 --subset=N --from=train --as=labelledN
            jaxmlic propagate --config=mscnn_lce_mic:dataset=cifar10 --labelled=labelledN/labelled --single-label \\
                --method=METHOD --out=METHOD_N.npz --config.pretrained=...
            jaxmlic sweep --config=mscnn_lce_mic:dataset=cifar10,rows=propagation ...

Sweep:      one entry for each different network; ROWS tells which entry is which row of which table. Table II is
            Table I's runs under `jaxmlic evaluate --protocol=top3`; Fig. 6 shows Table V.
Measured:   frozen Lite0, VOC subset, 224 px, 12 epochs, mAP of three seeds: full 65.7 +- 0.7, plain trunk 64.5 +- 0.3,
            ML-GCN with average pooling 62.6 +- 0.4; Corel-5K: 39.4 +- 0.4, 42.5 +- 0.1, 36.7 +- 0.5. Which modules
            add, and where, in RESULTS.md.
Time:       about a minute a run beside other work; not run at the paper's sizes: VGG16 at 448 px needs an accelerator.

Read into the paper: phi 0.4 and lambda 0.25 as in ML-GCN; 30 epochs (it converges after 25); a constant learning rate;
mirrored images; without label embeddings the classifiers of the stages are averaged (step 4). Table VI's groups of 4
and more do not divide its m = 358: m is the next multiple there. "No multi-stage CNN" is the last stage alone. MFB has
the signed square root and the division by the length of its own paper; Section E names neither (entry mfb_none).
"""

from jaxmlic.configs import common

from jaxmlic.errors import UserError
from jaxmlic.models import trunks

SIDES = {"corel5k": 160, "voc2007_subset": 224, "cifar10": 128}  # of the CPU-sized rows; the paper has 448
# Learning rate, weight decay, epochs and the GCN's hidden units of the CPU-sized rows, from a frozen trunk: one recipe
# for all rows of a data set, selected with a quarter of train held out on the network without attention, ML-GCN and the
# plain trunk (cifar10's is not selected). The attention learns at a tenth: at the full rate half of a map's weight goes
# to one position, and the held-out mAP falls. GCN and attention are narrower than the paper's, to be affordable; at 256
# hidden units ML-GCN does not fit Corel-5K's 374 words.
FROZEN = {
    "corel5k": (3e-3, 1.0, 8, 1024),
    "voc2007_subset": (3e-3, 1.0, 12, 256),
    "cifar10": (3e-3, 1.0, 8, 256),
}
FROZEN_TRUNK, REST = ("trunk/.*", None), (".*", 1.0)
GROUPS = (1, 2, 4, 8, 16, 32, 64)  # Table VI
DIM = 358
LABELLED = {"cifar10": (1000, 2000, 3000, 4000), "voc2007": (2000, 4000, 6000)}  # Tables VII and VIII


def parse(arg=None):
    return common.parse_arg(arg, dataset="voc2007", trunk="", size=0, rows="ablation", labelled="", pseudo="")


def get_config(arg=None):
    arg = parse(arg)
    if arg.rows not in ("ablation", "propagation"):
        raise UserError(f"config argument rows={arg.rows!r}; it is 'ablation' or 'propagation'")
    config = common.base()
    config.head = "mscnn_lce_mic"
    config.data.name = arg.dataset
    config.data.train_split = f"{arg.labelled}/labelled" if arg.labelled else "train"
    config.data.val_fraction = 0.0  # all training images, the last checkpoint
    config.data.image_size = arg.size or (64 if arg.smoke else SIDES.get(arg.dataset, 448))

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
    config.model.word_vectors = "glove100"  # "glove100", "random", "one_hot" or a file of GloVe's or word2vec's form
    config.model.word_dim = 0  # numbers in a word vector, for a file or "random"; 0 = the source's own
    config.model.fusion = "mfb"  # "mfb", "dot" (ML-GCN) or "none" (step 4: a classifier a stage; needs graph "none")
    config.model.mfb_dim = DIM  # m, units of the product
    config.model.mfb_norm = "power_l2"  # signed root and length of MFB's own paper, or "none", Section E's letter
    config.model.mfb_groups = 2  # g, units that are summed (Table VI); it divides m
    config.loss.name = "weighted_cross_entropy"  # eq 9

    config.optim.decay = ".*(kernel(_[0-9]+)?|embedding)"  # the GCN's kernels have numbers
    config.optim.name = "sgd"
    config.optim.lr = 1e-3
    config.optim.schedule = "constant"
    config.train.duration = "30 epochs"
    config.train.batch_size = 32
    config.train.checkpoint_every = "10%"
    common.test_rules(config)
    if arg.dataset in FROZEN:
        _freeze(config, *FROZEN[arg.dataset])
    return common.smoke(config) if arg.smoke else config


def trunk_of(arg):
    return arg.trunk or ("efficientnet_lite0" if arg.dataset in FROZEN else "vgg16")


def _freeze(config, lr, decay, epochs, hidden):
    """A trunk that stays as it is, whose stages can be stored, and a head that trains from them in minutes."""
    if trunks.has_batch_norm(config.model.trunk):
        config.model.batch_norm = "frozen"
    config.model.map_size = 14
    config.model.stage_norm = True  # the first two stages' vectors are five times as large as the last one's
    config.model.global_dim = 128
    config.model.gcn_hidden = hidden
    config.model.gcn_dim = 256
    config.data.cache = True
    config.features.store = "stages"
    config.optim.groups = (FROZEN_TRUNK, ("(global|attention_.*)/.*", 0.1), REST)
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
    no_fusion = {"model.graph": "none", "model.fusion": "none"}
    no_attention = {"model.attention": False}
    if arg.dataset in FROZEN:  # a group without a parameter is an error
        no_attention["optim.groups"] = (FROZEN_TRUNK, REST)
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
    ml_gcn = {
        **no_attention,
        "model.fusion": "dot",
        "model.gcn_dim": 0,
        "model.adjacency": "ml_gcn",
    }
    entries = [
        ("full", {}),
        ("no_fusion", no_fusion),
        ("plain", plain),
        ("plain_max", {**plain, "model.pool": "max"}),
        ("no_multi_stage", last),
        ("no_attention", no_attention),
        ("dot", {"model.fusion": "dot", "model.gcn_dim": 0}),
        ("mfb_none", {"model.mfb_norm": "none"}),
        ("no_edges", {"model.adjacency": "identity"}),
        ("free_labels", {"model.graph": "none"}),
        ("ml_gcn", {**ml_gcn, **last, "model.pool": "max"}),  # max against average is ML-GCN's known confound
        ("ml_gcn_avg", {**ml_gcn, **last}),
        *((f"gcn_{layers}", {"model.gcn_layers": layers}) for layers in (3, 4)),
        *((f"g_{g}", {"model.mfb_groups": g, "model.mfb_dim": -(-DIM // g) * g}) for g in GROUPS if g != 2),
    ]
    if arg.dataset not in FROZEN and not arg.trunk:  # the tables' other methods that exist here
        resnet = {"model.trunk": "resnet101", "model.stages": trunks.levels("resnet101")[-1:]}
        entries += [
            ("resnet101", {**plain, **resnet}),
            ("ml_gcn_resnet101", {**ml_gcn, **resnet, "model.pool": "max"}),
        ]
    return entries


def propagation_rows(arg):
    """For each number of labelled images: those alone, and all images with either method's labels."""
    numbers = LABELLED.get(arg.dataset, (100, 200, 400))
    files = [
        (f"{method}_{n}", {"data.pseudo_labels": f"{method}_{n}.npz"})
        for n in numbers
        for method in ("improved", "diffusion")
    ]
    return [(f"alone_{n}", {"data.train_split": f"labelled{n}/labelled"}) for n in numbers] + files


def _numbers(text):
    return tuple(float(number) for number in text.split())


# Row of a table -> entry of the sweep. Rows with pseudo-labels (lp) need the argument `labelled`.
ROWS = {
    "table1_2/mscnn_lce_mic": "full",
    "table1_2/ml_gcn": "ml_gcn_resnet101",
    "table1_2/resnet101": "resnet101",
    "table3/mscnn_lce_mic": "full",
    "table3/ml_gcn": "ml_gcn_resnet101",
    "table3/resnet101": "resnet101",
    "table4/lp_stages_attention_gcn_mfb": "full_lp",
    "table4/lp_stages_attention": "no_fusion_lp",
    "table4/lp": "plain_lp",
    "table4/attention_gcn_mfb": "no_multi_stage",
    "table4/stages_gcn_mfb": "no_attention",
    "table4/stages_attention": "no_fusion",
    "table5_fig6/2": "full",
    "table5_fig6/3": "gcn_3",
    "table5_fig6/4": "gcn_4",
    **{f"table6/{g}": "full" if g == 2 else f"g_{g}" for g in GROUPS},
    **{
        f"table{table}/{row}_{n}": f"{entry}_{n}"
        for table, dataset in ((7, "cifar10"), (8, "voc2007"))
        for row, entry in (("lpa", "diffusion"), ("improved", "improved"))
        for n in LABELLED[dataset]
    },
}
# Percent, as printed. Tables I and II: CP, CR, CF1, OP, OR, OF1, mAP; Table III: AP of the twenty classes, then mAP;
# Table IV: mAP of MS-COCO and VOC 2007; Table V: CF1, OF1, CF1 and OF1 of the top 3 and mAP of MS-COCO, mAP of VOC;
# Table VI: mAP of both; Tables VII and VIII: error and its spread. Rows of systems that are not here are left out.
# Table VII has no LPA at 3000, Table II's ML-GCN no mAP. The mean of the paper's own APs in Table III is 94.8, not
# 95.8.
PAPER = {
    "table1/mscnn_lce_mic": (86.3, 73.0, 79.1, 86.8, 76.9, 81.5, 84.3),
    "table1/ml_gcn": (85.1, 72.0, 78.0, 85.8, 75.4, 80.3, 83.0),
    "table1/resnet101": (80.2, 66.7, 72.8, 83.9, 70.8, 76.8, 77.3),
    "table2/mscnn_lce_mic": (89.9, 65.0, 75.4, 91.0, 67.7, 77.6, 77.8),
    "table2/ml_gcn": (89.2, 64.1, 74.6, 90.5, 66.5, 76.7, None),
    "table2/resnet101": (84.1, 59.4, 69.7, 89.1, 62.8, 73.6, 75.2),
    "table3/mscnn_lce_mic": _numbers(
        "99.7 98.5 98.8 98.3 84.7 96.6 97.6 98.8 83.9 96.5 87.5 98.6 98.9 97.4 99.1 85.7 97.1 85.1 99.2 94.6 95.8"
    ),
    "table3/ml_gcn": _numbers(
        "99.5 98.5 96.8 98.1 80.8 94.6 97.2 98.2 82.3 95.7 86.4 98.2 98.4 96.7 99.0 84.7 96.7 84.3 98.9 93.7 94.0"
    ),
    "table3/resnet101": _numbers(
        "99.5 97.7 97.8 96.4 65.7 91.8 96.1 97.6 74.2 80.9 85.0 98.4 96.5 95.9 98.4 70.1 88.3 80.2 98.9 89.2 89.9"
    ),
    "table4/lp_stages_attention_gcn_mfb": (84.3, 95.8),
    "table4/lp_stages_attention": (83.5, 94.4),
    "table4/lp": (77.4, 90.6),
    "table4/attention_gcn_mfb": (83.7, 94.6),
    "table4/stages_gcn_mfb": (84.0, 94.6),
    "table4/stages_attention": (77.2, 90.2),
    "table5_fig6/2": (79.1, 81.5, 75.4, 77.6, 84.3, 95.8),
    "table5_fig6/3": (78.5, 80.6, 74.5, 77.1, 81.8, 94.6),
    "table5_fig6/4": (77.8, 80.1, 73.9, 76.8, 81.4, 94.1),
    "table6/1": (83.8, 95.6),
    "table6/2": (84.3, 95.8),
    "table6/4": (84.1, 95.6),
    "table6/8": (84.0, 95.4),
    "table6/16": (83.7, 95.2),
    "table6/32": (83.5, 95.1),
    "table6/64": (83.4, 94.9),
    "table7/lpa_1000": (22.02, 0.88),
    "table7/lpa_2000": (15.66, 0.35),
    "table7/lpa_4000": (12.69, 0.29),
    "table7/improved_1000": (18.24, 0.50),
    "table7/improved_2000": (11.78, 0.65),
    "table7/improved_3000": (10.80, 0.30),
    "table7/improved_4000": (9.40, 0.50),
    "table8/lpa_2000": (36.72, 0.45),
    "table8/lpa_4000": (27.64, 0.55),
    "table8/lpa_6000": (20.46, 0.75),  # printed "20.46±75"
    "table8/improved_2000": (30.33, 0.25),
    "table8/improved_4000": (20.25, 0.56),
    "table8/improved_6000": (17.70, 0.44),
}
