"""Experiment files: loading, overriding, and the mistakes people make with them."""

import json

import pytest

from jaxmlic import config as config_lib
from jaxmlic.errors import UserError


def test_shipped_experiments_load_by_name_and_by_path(tmp_path):
    by_name = config_lib.load("quickstart")
    copy = tmp_path / "mine.py"
    copy.write_text("from jaxmlic.configs import quickstart\nget_config = quickstart.get_config\n")
    assert config_lib.load(str(copy)) == by_name


def test_overrides_of_every_type():
    config = config_lib.load(
        "quickstart",
        [
            "--config.optim.lr=0.5",
            "--config.train.batch_size=7",
            "--config.data.cache=false",
            "--config.optim.groups=((('trunk/.*'), None), ('.*', 1.0))",
            "--config.augment.crop_area=(0.25, 1.0)",
            "--config.train.duration=3 epochs",
        ],
    )
    assert config.optim.lr == 0.5 and config.train.batch_size == 7 and config.data.cache is False
    assert config.optim.groups == (("trunk/.*", None), (".*", 1.0))
    assert config.augment.crop_area == (0.25, 1.0) and config.train.duration == "3 epochs"


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        ("nowhere/x.py", [], r"config file nowhere/x\.py does not exist"),
        ("quickstrt", [], "did you mean 'quickstart'"),
        ("quickstart", ["--config.optim.lrr=1"], r"--config\.optim\.lrr: .* no such field .*did you mean 'optim\.lr'"),
        ("quickstart", ["--config.nothing=1"], r"--config\.nothing: .* no such field"),
        ("quickstart", ["--config.optim.lr.x=1"], r"no such field"),
        ("quickstart", ["--config.optim.lr=fast"], r"config\.optim\.lr"),
        ("quickstart", ["--config.train.batch_size=1.5"], r"config\.train\.batch_size"),
        ("quickstart", ["--optim.lr=1"], r"optim\.lr"),
        ("quickstart", ["lr=1"], r"overrides look like"),
        ("quickstart:smok", [], r"'smok' is unknown \(did you mean 'smoke'"),
        ("linear:mode=frozn", [], r"mode = 'frozn' is unknown \(did you mean 'frozen'\?\); known: frozen, finetune"),
        ("baseline_ensemble:mode=m4", [], r"mode = 'm4' is unknown.*known: m1, m2, m3"),
        ("linear:size=big", [], r"size='big' is not of type int"),
        ("linear:dataset", [], r"needs a value: dataset="),
    ],
)
def test_mistakes_are_one_line(spec, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        config_lib.load(spec, overrides)
    assert "\n" not in str(caught.value)


def test_broken_files(tmp_path):
    for text, message in [
        ("def get_config(:\n", r"broken\.py:1: "),
        ("import nothing_here\n", r"broken\.py: No module named 'nothing_here'"),
        ("x = 1\n", r"broken\.py: .*get_config"),
    ]:
        path = tmp_path / "broken.py"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            config_lib.load(str(path))


def test_config_is_locked_and_typed():
    config = config_lib.load("quickstart")
    with pytest.raises(AttributeError):
        config.optim.typo = 1
    with pytest.raises(UserError, match=r"config\.optim\.typo is unknown"):
        config_lib.override(config, {"optim.typo": 1})
    with pytest.raises(UserError, match="not of the field's type"):
        config_lib.override(config, {"optim.lr": "fast"})


def test_override_leaves_the_original_alone():
    config = config_lib.load("quickstart")
    before = config.optim.lr
    assert config_lib.override(config, {"optim.lr": 9.0}).optim.lr == 9.0
    assert config.optim.lr == before


def test_a_config_equals_its_json_copy():
    config = config_lib.load("linear")
    stored = json.loads(json.dumps(config.to_dict()))
    assert config_lib.differences(stored, config) == []
    assert config_lib.flatten(config_lib.from_dict(stored)) == config_lib.flatten(config)


def test_a_folder_older_than_a_field_gets_its_default():
    stored = config_lib.load("quickstart").to_dict()
    del stored["train"]["cpu_devices"], stored["eval"]["min_positives"]
    found = config_lib.from_dict(stored)
    assert (found.train.cpu_devices, found.eval.min_positives) == (1, 1)


def test_differences_name_what_matters_only():
    config = config_lib.load("quickstart")
    other = config_lib.override(config, {"optim.lr": 0.5, "data.threads": 9, "data.dir": "/elsewhere"})
    assert config_lib.differences(config.to_dict(), other) == ["optim.lr: 0.004 there, 0.5 now"]


def test_parse_arg():
    found = config_lib.parse_arg("dataset=voc,smoke", dataset="coco", size=3)
    assert (found.dataset, found.size, found.smoke) == ("voc", 3, True)
    assert config_lib.parse_arg(None).smoke is False
    assert config_lib.parse_arg(None, mode=("a", "b")).mode == "a"
    assert config_lib.parse_arg("mode=b", mode=("", "a", "b")).mode == "b"
    with pytest.raises(UserError, match=r"config argument mode = 'c' is unknown.*; known: a, b$"):
        config_lib.parse_arg("mode=c", mode=("", "a", "b"))
