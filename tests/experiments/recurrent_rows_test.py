"""The rows of CNN-RNN's and Multi-order RNN's tables: what each of them is trained with and judged by."""

import pytest

from jaxmlic import config as config_lib
from jaxmlic.experiments import sweep

FROZEN = (("trunk/.*", None), (".*", 1.0))
SECOND_STAGE = (("classifier/.*", None), *FROZEN)
FINE_TUNED = (("trunk/.*", 0.1), (".*", 1.0))

# entry: (head, order, min_length, protocol, groups)
CNN_RNN = {
    "nus_wide_softmax": ("linear", None, None, "top3_forced", FROZEN),
    "nus_wide_warp": ("linear", None, None, "top3_forced", FROZEN),
    "nus_wide_cnn_rnn": ("cnn_rnn", "frequent_first", 3, "top3_forced", FROZEN),
    "nus_wide_tags_softmax": ("linear", None, None, "top10_forced", FROZEN),
    "nus_wide_tags_warp": ("linear", None, None, "top10_forced", FROZEN),
    "nus_wide_tags_cnn_rnn": ("cnn_rnn", "frequent_first", 10, "top10_forced", FROZEN),
    "coco2014_softmax": ("linear", None, None, "top3_forced", FROZEN),
    "coco2014_warp": ("linear", None, None, "top3_forced", FROZEN),
    "coco2014_bce": ("linear", None, None, "top3_forced", FROZEN),
    "coco2014_no_rnn": ("cnn_rnn", "frequent_first", 0, "path", FROZEN),
    "coco2014_cnn_rnn": ("cnn_rnn", "frequent_first", 0, "path", FROZEN),
    "voc2007_cnn_rnn": ("cnn_rnn", "frequent_first", 0, "all_point", FROZEN),
}
ONE_DATASET = {
    "bce": ("linear", None, None, "all_point", FINE_TUNED),
    "warp": ("linear", None, None, "top3_forced", FINE_TUNED),
    "lsep": ("linear", None, None, "all_point", FINE_TUNED),
    "multi_order": ("multi_order_rnn", None, None, "all_point", SECOND_STAGE),
    "order_free": ("multi_order_rnn", None, None, "path", SECOND_STAGE),
    "sr_cnn_rnn": ("multi_order_rnn", "rare_first", None, "path", FINE_TUNED),
    "pla": ("cnn_rnn", "pla", 0, "path", FROZEN),
}
COCO = ONE_DATASET | {
    "mo_frequent_first": ("multi_order_rnn", "frequent_first", None, "path", SECOND_STAGE),
    "mo_rare_first": ("multi_order_rnn", "rare_first", None, "path", SECOND_STAGE),
    "mo_lexicographic": ("multi_order_rnn", "lexicographic", None, "path", SECOND_STAGE),
    "cnn_rnn": ("cnn_rnn", "frequent_first", 0, "path", FROZEN),
    "rare_first": ("cnn_rnn", "rare_first", 0, "path", FROZEN),
    "lexicographic": ("cnn_rnn", "lexicographic", 0, "path", FROZEN),
    "mla": ("cnn_rnn", "mla", 0, "path", FROZEN),
}
MULTI_ORDER = {f"nus_wide_{method}": row for method, row in ONE_DATASET.items()}
MULTI_ORDER |= {f"coco2014_{method}": row for method, row in COCO.items()}


def configs(spec):
    base = config_lib.load(spec)
    return {entry.name: (entry, sweep.config_of(spec, base, entry, ())) for entry in sweep.entries(spec)}


def described(config):
    model = config.model
    groups = tuple(tuple(group) for group in config.optim.groups)
    return config.head, model.get("order"), model.get("min_length"), config.eval.protocol, groups


@pytest.mark.parametrize(
    ("spec", "rows", "trunk"), [("cnn_rnn", CNN_RNN, "vgg16_fc"), ("multi_order_rnn", MULTI_ORDER, "resnet101")]
)
def test_rows_of_the_tables(spec, rows, trunk):
    found = configs(spec)
    assert {name: described(config) for name, (_, config) in found.items()} == rows
    for name, (_, config) in found.items():
        optim = config.optim
        used = (optim.name, optim.lr, optim.momentum, optim.beta2, optim.eps, optim.weight_decay, optim.schedule)
        assert used == ("rmsprop", 1e-4, 0.9, 0.9, 1e-8, 1e-4, "constant"), name
        assert (config.train.batch_size, config.train.duration, config.data.image_size) == (32, "50 epochs", 224), name
        assert config.model.trunk == trunk, name
        assert config.data.test_split == ("val" if name.startswith("coco") else "test"), name
        # CNN-RNN's numbers imply images with labels only, in three tables; Multi-order counts all of COCO's.
        assert config.data.drop_empty == (name.startswith("nus") or (spec == "cnn_rnn" and name.startswith("coco")))


@pytest.mark.parametrize("spec", ["multi_order_rnn", "multi_order_rnn:dataset=scenes,trunk=resnet50"])
def test_recurrent_rows_on_images_start_from_the_row_that_trains_their_cnn(spec):
    found = configs(spec)
    for name, (entry, config) in found.items():
        dataset = config.data.name
        assert entry.start_from == ("" if config.head == "linear" else f"{dataset}_bce"), name
        assert config.model.trunk == found[f"{dataset}_bce"][1].model.trunk
    entries = [entry for entry, _ in found.values()]
    assert sweep.in_order(entries, entries)[0].name.endswith("_bce")


def test_rows_on_stored_features_have_one_stage():
    for name, (entry, config) in configs("multi_order_rnn:dataset=corel5k").items():
        assert entry.start_from == "" and config.data.source == "features", name
        assert config.loss.get("cnn_weight", 1.0) == 1.0 and config.optim.eps == 1e-8, name


def test_the_released_recipe():
    config = config_lib.load("multi_order_rnn:method=released")
    assert (config.model.mask, config.model.output, config.loss.step_loss) == ("all", "released", "released")
    assert (config.optim.name, config.optim.eps) == ("rmsprop", 1.0)


def test_a_fixed_order_has_no_fields_of_the_other_methods():
    fixed = config_lib.load("multi_order_rnn:method=mo_rare_first")
    assert {"num_steps", "mask"}.isdisjoint(fixed.model) and "step_loss" not in fixed.loss
    assert {"order", "max_length", "beam_size"}.isdisjoint(config_lib.load("multi_order_rnn").model)
    joint = config_lib.load("multi_order_rnn:method=sr_cnn_rnn")
    assert (joint.loss.cnn_weight, fixed.loss.cnn_weight, joint.model.batch_norm) == (1.0, 0.0, "train")
