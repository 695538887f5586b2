"""The experiment file of MSCNN-LCE-MIC against its paper: recipes, data, step 4 and word vectors of each row."""

import numpy as np
import pytest
from conftest import tiny_config
from jaxmlic.configs import mscnn_lce_mic as experiment

from jaxmlic import config as config_lib
from jaxmlic.errors import UserError
from jaxmlic.experiments import sweep
from jaxmlic.models.heads import mscnn_lce_mic as head
from jaxmlic.models.heads.contract import LabelStatistics


def configs(spec):
    """{name: config}, as `jaxmlic sweep` makes them."""
    base = config_lib.load(spec)
    return {entry.name: sweep.config_of(spec, base, entry, ()) for entry in sweep.entries(spec)}


def row_of(config):
    """What a row is trained by, tested on and decided by."""
    optim, data = config.optim, config.data
    rates = (optim.name, optim.lr, optim.momentum, optim.weight_decay, optim.schedule)
    splits = (data.train_split, data.test_split)
    size = (config.train.batch_size, data.image_size, config.train.duration)
    return rates, tuple(optim.groups), splits, size, config.eval.protocol


SGD = ("sgd", 1e-3, 0.9, 1e-4, "constant")
ALL = ((".*", 1.0),)
FROZEN = (("trunk/.*", None), (".*", 1.0))
SLOW_ATTENTION = (("trunk/.*", None), ("(global|attention_.*)/.*", 0.1), (".*", 1.0))
TABLES = [
    *("full", "no_fusion", "plain", "plain_max", "no_multi_stage", "no_attention", "dot", "mfb_none"),
    *("no_edges", "free_labels", "ml_gcn", "ml_gcn_avg", "gcn_3", "gcn_4"),
    *(f"g_{g}" for g in (1, 4, 8, 16, 32, 64)),
]


@pytest.mark.parametrize(("dataset", "tested"), [("voc2007", "test"), ("coco2014", "val")])
def test_rows_of_the_papers_tables_are_pinned(dataset, tested):
    found = configs(f"mscnn_lce_mic:dataset={dataset}")
    assert sorted(found) == sorted([*TABLES, "stage_logits_off", "resnet101", "ml_gcn_resnet101"])
    for name, config in found.items():
        assert row_of(config) == (SGD, ALL, ("train", tested), (32, 448, "30 epochs"), "all_point"), name
        assert config.data.val_fraction == 0.0
        one_classifier = name in ("stage_logits_off", "no_fusion", "plain", "plain_max", "resnet101")
        without = one_classifier or name.startswith("ml_gcn")
        assert config.model.stage_logits == ("off" if without else "add"), name


def test_rows_on_a_frozen_trunk_are_pinned():
    rates = ("adamw", 3e-3, 0.9, 1.0, "cosine")
    found = configs("mscnn_lce_mic:dataset=corel5k")
    assert sorted(found) == sorted([*TABLES, "stage_logits"])
    for name, config in found.items():
        groups = SLOW_ATTENTION if config.model.attention else FROZEN
        assert row_of(config) == (rates, groups, ("train", "test"), (32, 160, "8 epochs"), "top5_forced"), name
        # What docs/results/mscnn.md has was measured without step 4.
        assert config.model.stage_logits == ("add" if name == "stage_logits" else "off")


def test_rows_of_table_8_label_all_images_of_voc_2007():
    found = configs("mscnn_lce_mic:rows=propagation")
    alone = {2000: "labelled2000/labelled", 4000: "labelled4000/labelled", 6000: "rmlc/train"}
    assert len(found) == 3 + 9
    for count, labelled in alone.items():
        expected = SGD, ALL, (labelled, "rmlc/test"), (32, 448, "30 epochs"), "all_point"
        assert row_of(found[f"alone_{count}"]) == expected
        for method in ("improved", "soft", "diffusion"):
            config = found[f"{method}_{count}"]
            assert row_of(config)[2] == ("all/images", "rmlc/test")
            assert config.data.pseudo_labels == f"{method}_{count}.npz"


def test_rows_of_table_7():
    found = configs("mscnn_lce_mic:dataset=cifar10,rows=propagation")
    assert len(found) == 4 * 4
    assert row_of(found["alone_1000"])[2] == ("labelled1000/labelled", "test")
    assert row_of(found["soft_4000"])[2] == ("train", "test")


def test_word_vectors_of_300_numbers_come_from_a_file(tmp_path):
    plain = experiment.get_config()
    assert (plain.model.word_vectors, plain.model.word_dim) == ("glove100", 0)
    names, rng = ["red", "green", "blue"], np.random.default_rng(0)
    values = rng.normal(size=(3, 300)).round(3)
    file = tmp_path / "glove.300d.txt"
    rows = (f"{name} {' '.join(map(str, row))}" for name, row in zip(names, values, strict=True))
    file.write_text("\n".join(rows) + "\n")
    found = configs(f"mscnn_lce_mic:dataset=coco2014,glove={file}")
    assert all((c.model.word_vectors, c.model.word_dim) == (str(file), 300) for c in found.values())
    statistics = LabelStatistics(np.eye(3, dtype=np.int8), names)
    constants, _ = head.constants(found["full"], statistics)
    np.testing.assert_allclose(constants["word_vectors"], values, rtol=1e-6)
    file.write_text("red 1 2 3\ngreen 1 2 3\n")
    with pytest.raises(UserError, match=r"word_dim = 300, but the vectors of .*300d\.txt' have 3 numbers"):
        head.constants(found["full"], statistics)
    missing = experiment.get_config(f"glove={tmp_path}/nowhere.txt")
    with pytest.raises(UserError, match=r"nowhere\.txt: cannot be read \(No such file or directory\)"):
        head.constants(missing, statistics)


def test_a_folder_from_before_stage_logits_is_a_model_without_them(data_dir):
    config = tiny_config(data_dir)
    old = config_lib.load("mscnn_lce_mic").to_dict()
    del old["model"]["stage_logits"]
    assert head.Model(3, **config_lib.from_dict(config.to_dict() | {"model": old["model"]}).model).stage_logits == "off"
