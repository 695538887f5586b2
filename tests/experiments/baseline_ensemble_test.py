"""The ensemble baseline's experiment against its paper: schedule, groups, modes, tables; and one of its runs."""

import re

import pytest
from conftest import table_of
from jaxmlic.configs import baseline_ensemble as experiment

from jaxmlic import config as config_lib
from jaxmlic.cli import main as cli
from jaxmlic.evaluation import score_file
from jaxmlic.experiments import sweep
from jaxmlic.inputs import open_source
from jaxmlic.models.heads import linear
from jaxmlic.training import optim
from jaxmlic.training import state as state_lib
from jaxmlic.training.logs import metrics_log


def load(arg=""):
    return config_lib.load(f"baseline_ensemble:{arg}" if arg else "baseline_ensemble")


def rate(config, schedule, name):
    """Learning rate of a parameter by step, the product of group and schedule."""
    pace = optim.multipliers(config.optim.groups, ["trunk/x", "trunk/fc6/kernel", "classifier/bias"])[name]
    return lambda step: float(schedule(step)) * pace


def test_learning_rates_of_the_paper():
    config = load("trunk=vgg16_fc")  # VOC 2007: 5,011 images by 16
    to_steps = optim.steps_of(config, 5011)
    total = to_steps(config.train.duration, "")
    assert total == round(40 * 5011 / 16)
    schedule = optim.schedule(config.optim, total, optim.steps_of(config, 5011, total))
    middle = round(20 * 5011 / 16)
    for name, first in (("trunk/x", 0.01), ("trunk/fc6/kernel", 0.1), ("classifier/bias", 0.1)):
        found = rate(config, schedule, name)
        assert [found(s) for s in (0, middle - 2)] == pytest.approx([first, first])
        assert [found(s) for s in (middle + 1, total - 1)] == pytest.approx([first / 10, first / 10])
    assert (config.optim.name, config.optim.momentum, config.train.batch_size) == ("sgd", 0.9, 16)


def test_groups_fit_the_parameters_of_the_model():
    config = load("trunk=efficientnet_lite0,size=32")
    names = state_lib.parameter_names(linear.Model(20, **config.model), open_source(config).example())
    multipliers = optim.multipliers(config.optim.groups, names)
    assert {name: pace for name, pace in multipliers.items() if pace != 0.1} == {
        "classifier/kernel": 1.0,
        "classifier/bias": 1.0,
    }
    assert len(multipliers) > 100


def test_modes_and_data_sets():
    crop, mixup = {}, {}
    for mode in ("m1", "m2", "m3"):
        config = load(f"mode={mode},size=448")
        assert config.augment.flip and config.data.image_size == 448
        crop[mode], mixup[mode] = config.augment.crop_area, config.augment.mixup
    assert crop == {"m1": (1.0, 1.0), "m2": (0.08, 1.0), "m3": (1.0, 1.0)}
    assert mixup == {"m1": "off", "m2": "off", "m3": "every_second_epoch"}
    coco = load("dataset=coco2014").data
    assert (coco.test_split, coco.drop_empty, coco.val_fraction) == ("val", True, 0.0)
    assert load().eval.protocol == "top3_forced+unknown_wrong"
    assert load("dataset=coco2014").eval.protocol == "top3_forced"


def test_every_row_of_the_tables_has_an_entry():
    rows, fused = [entry.name for entry in sweep.entries("baseline_ensemble")], experiment.ensembles()
    assert len(rows) == 3 * 2 * 3 * 3 and len(fused) == 12
    assert all(set(members) <= set(rows) for members in fused.values())
    assert fused["voc2007_resnet101_scale_en"] == {f"voc2007_resnet101_m1_{size}": 1 for size in (384, 448, 512)}
    assert fused["coco2014_vgg16_fc_distr_en"] == {"coco2014_vgg16_fc_m2_512": 1, "coco2014_vgg16_fc_m3_512": 1}


def test_entries_lead_to_the_config_that_their_name_says():
    base = load()
    for entry in sweep.entries("baseline_ensemble")[::5]:
        dataset, trunk, mode, size = re.fullmatch(r"(\w+)_(vgg16_fc|resnet101)_(m\d)_(\d+)", entry.name).groups()
        config = sweep.config_of("baseline_ensemble", base, entry, ())
        assert config == load(f"dataset={dataset},trunk={trunk},mode={mode},size={size}"), entry.name
        assert (config.data.name, config.model.trunk, config.data.image_size) == (dataset, trunk, int(size))
        assert (config.augment.mixup != "off") == (mode == "m3") and (config.data.resize > 0) == (mode == "m2")


def test_the_argument_narrows_and_scales_the_sweep():
    spec = "baseline_ensemble:dataset=corel5k,trunk=efficientnet_lite0,size=160"
    names = [entry.name for entry in sweep.entries(spec)]
    assert names == [f"corel5k_efficientnet_lite0_{m}_{s}" for m in ("m1", "m2", "m3") for s in (120, 140, 160)]
    assert experiment.ensembles("trunk=resnet101,dataset=coco2014").keys() == {
        "coco2014_resnet101_scale_en",
        "coco2014_resnet101_distr_en",
    }


def test_fusions_of_complete_runs():
    """ScaleEn needs three members, DistrEn two of the same seed."""
    spec = "baseline_ensemble:dataset=voc2007,trunk=vgg16_fc"
    runs = [("m3_384", 0), ("m3_448", 0), ("m3_512", 0), ("m3_512", 1), ("m2_512", 1)]
    rows = [
        {"entry": f"voc2007_vgg16_fc_{name}", "seed": seed, "split": "test", "protocol": "path"} for name, seed in runs
    ]
    path = "w/voc2007_vgg16_fc_{}/seed{}/scores/test.npz".format
    assert sweep.fusion_commands(spec, "w", rows) == [
        f"jaxmlic ensemble {path('m3_384', 0)} {path('m3_448', 0)} {path('m3_512', 0)} "
        "--out=w/voc2007_vgg16_fc_scale_en_seed0.npz",
        f"jaxmlic ensemble {path('m2_512', 1)} {path('m3_512', 1)} --out=w/voc2007_vgg16_fc_distr_en_seed1.npz",
    ]
    assert sweep.fusion_commands("quickstart", "w", rows) == []


def test_a_fusion_with_a_run_that_decides_by_a_rule():
    """Its score file has the rule's name, and the fusion is decided without one."""
    rows = [
        {"entry": name, "seed": 0, "split": "test", "protocol": "top5_forced"} for name in ("two_pass_knn", "tagprop")
    ]
    rows.append({"entry": "ridge_full", "seed": 0, "split": "test", "protocol": "top5_learned"})
    assert sweep.fusion_commands("corel5k", "w", rows) == [
        "jaxmlic ensemble w/ridge_full/seed0/scores/test.top5_learned.npz w/two_pass_knn/seed0/scores/test.npz "
        "--out=w/closed_form_en_seed0.npz --weights=0.85,0.15 --protocol=top5_forced"
    ]


def test_an_entry_runs(data_dir, tmp_path):
    """M3 on the small CNN: mixup and the step schedule in a run of the trainer, and the protocol of its scores."""
    spec = "baseline_ensemble:dataset=tiny,trunk=small_cnn,mode=m3,size=32,smoke"
    command = ["sweep", f"--config={spec}", f"--workdir={tmp_path}", "--only=tiny_small_cnn_m3_24"]
    assert cli.run([*command, f"--config.data.dir={data_dir}"]) == 0
    assert [row["protocol"] for row in table_of(tmp_path / "sweep.csv")] == ["top3_forced"]
    run = tmp_path / "tiny_small_cnn_m3_24" / "seed0"
    assert score_file.load(run / "scores" / "test.npz").config["data"]["image_size"] == 24
    rates = [row["train/lr"] for row in metrics_log.read(run) if "train/lr" in row]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])  # of 12 steps the 3rd, the 6th, the 9th and the last
