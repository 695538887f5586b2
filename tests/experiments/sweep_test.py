"""Sweeps: skipping, continuing, tables by hand, failures."""

import json
import shutil
import signal

import pytest
from conftest import table_of, tiny_config

from jaxmlic import config as config_lib
from jaxmlic.cli import main as cli
from jaxmlic.config import Entry
from jaxmlic.errors import UserError
from jaxmlic.experiments import beside_papers, runs, sweep
from jaxmlic.experiments.sweeps import results
from jaxmlic.training import loop
from jaxmlic.training.logs import metrics_log

FILE = """
from jaxmlic import config
from jaxmlic.configs import quickstart
def get_config(arg=None):
    return config.override(quickstart.get_config(), {values!r})
def sweep():
    return [("plain", {{}}), ("pooled", {{"model.pool": "max"}})]
"""


@pytest.fixture(scope="module")
def experiment(data_dir, tmp_path_factory):
    from jaxmlic import config

    flat = config.flatten(tiny_config(data_dir, **{"train.duration": "4 steps", "data.cache": True}))
    values = {k: v for k, v in flat.items() if not isinstance(v, list)}
    path = tmp_path_factory.mktemp("sweep") / "experiment.py"
    path.write_text(FILE.format(values=values))
    return path


@pytest.fixture(scope="module")
def finished_sweep(experiment):
    folder = experiment.parent / "runs"
    assert cli.run(["sweep", f"--config={experiment}", f"--workdir={folder}", "--seeds=2"]) == 0
    return folder


def test_table_holds_mean_and_spread_of_the_runs(finished_sweep):
    runs = table_of(finished_sweep / "runs.csv")
    assert [(r["entry"], r["seed"]) for r in runs] == [("plain", "0"), ("plain", "1"), ("pooled", "0"), ("pooled", "1")]
    for row in runs:
        path = finished_sweep / row["entry"] / f"seed{row['seed']}" / "scores" / "test.all_point.json"
        assert float(row["mAP"]) == json.loads(path.read_text())["mAP"]
    for row in table_of(finished_sweep / "sweep.csv"):
        values = [float(r["mAP"]) for r in runs if r["entry"] == row["entry"]]
        assert float(row["mAP mean"]) == pytest.approx(sum(values) / 2)
        assert float(row["mAP std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_finished_runs_are_skipped(finished_sweep, experiment, monkeypatch, capsys):
    monkeypatch.setattr(loop, "run", lambda *_: pytest.fail("trained again"))
    command = ["sweep", f"--config={experiment}", f"--workdir={finished_sweep}", "--seeds=2", "--only=pooled"]
    before = [(finished_sweep / name).read_text() for name in ("runs.csv", "sweep.csv")]
    assert cli.run(command) == 0
    assert "plain" not in capsys.readouterr().out
    # What a call leaves out by --only stays in the tables.
    assert [(finished_sweep / name).read_text() for name in ("runs.csv", "sweep.csv")] == before


def test_another_config_in_a_finished_entry_is_refused(finished_sweep, experiment, capsys):
    command = [
        "sweep",
        f"--config={experiment}",
        f"--workdir={finished_sweep}",
        "--config.optim.lr=0.5",
        "--only=plain",
    ]
    assert cli.run(command) == 2
    assert "optim.lr: 0.004 there, 0.5 now" in capsys.readouterr().err


def test_tables_hold_no_run_of_another_config(finished_sweep, experiment, tmp_path):
    shutil.copytree(finished_sweep, tmp_path / "runs")
    command = ["sweep", f"--config={experiment}", f"--workdir={tmp_path / 'runs'}", "--only=pooled"]
    shutil.rmtree(tmp_path / "runs" / "pooled")
    assert cli.run([*command, "--config.optim.lr=0.5"]) == 0
    assert [(r["entry"], r["seed"]) for r in table_of(tmp_path / "runs" / "runs.csv")] == [("pooled", "0")]


def test_an_interrupted_sweep_stops_and_continues(experiment, tmp_path, monkeypatch, capsys):
    real, stops = loop.run, [loop.Outcome(2, False, signal.SIGTERM)]
    monkeypatch.setattr(loop, "run", lambda *args: stops.pop() if stops else real(*args))
    command = ["sweep", f"--config={experiment}", f"--workdir={tmp_path}", "--only=plain"]
    assert cli.run(command) == 0
    assert "stopped in plain, seed 0" in capsys.readouterr().out and not (tmp_path / "sweep.csv").exists()
    assert cli.run(command) == 0
    assert (tmp_path / "sweep.csv").exists()
    assert [row["step"] for row in metrics_log.read(tmp_path / "plain" / "seed0") if "val/mAP" in row] == [4]


def test_a_failing_entry_does_not_stop_the_others(experiment, tmp_path, capsys):
    path = tmp_path / "failing.py"
    text = experiment.read_text().replace("[(", '[("broken", {"model.pool": "median"}), (')
    path.write_text(text.replace(', ("pooled", {"model.pool": "max"})', ""))
    assert cli.run(["sweep", f"--config={path}", f"--workdir={tmp_path / 'runs'}"]) == 2
    captured = capsys.readouterr()
    assert "1 of 2 runs failed: broken, seed 0: config.model.pool = 'median'" in captured.err
    rows = table_of(tmp_path / "runs" / "sweep.csv")
    assert [row["entry"] for row in rows] == ["plain"]


def rows_of(values, **found):
    """A run of each entry, {entry: accuracy}."""
    run = {"split": "test", "protocol": "all_point", "mAP": None, "CF1": float("nan")}
    return [results.row(entry, 0, run | {"accuracy": value} | found) for entry, value in values.items()]


def test_folds_and_batches_have_a_row_together(tmp_path):
    """By the fields of their entries, whatever the names are."""
    rows = rows_of(
        {
            Entry("a", series="warp", part="fold0"): 0.1,
            Entry("b", series="warp", part="fold10"): 0.3,
            Entry("warp_noise20_batch1", series="warp", noise_rate=0.2, part="batch1"): 0.5,
            Entry("x_fold1"): 0.7,
            Entry("x_fold2"): 0.9,
        }
    )
    lines = results.table(rows).splitlines()[2:]
    assert lines[0].split() == ["entry", "runs", "accuracy"]
    names = ["a", "b", "warp_noise20_batch1", "x_fold1", "x_fold2", "warp_fold*"]
    assert [line.split()[0] for line in lines[1:]] == names
    assert lines[-1].split() == ["warp_fold*", "2", "20.00", "+-", "14.14"]
    results.write(tmp_path, rows)
    runs = table_of(tmp_path / "runs.csv")
    assert [tuple(run[key] for key in ("entry", "series", "noise_rate", "part", "seed")) for run in runs] == [
        ("a", "warp", "", "fold0", "0"),
        ("b", "warp", "", "fold10", "0"),
        ("warp_noise20_batch1", "warp", "0.2", "batch1", "0"),
        ("x_fold1", "x_fold1", "", "", "0"),
        ("x_fold2", "x_fold2", "", "", "0"),
    ]
    row = table_of(tmp_path / "sweep.csv")[-1]
    assert row["entry"] == "warp_fold*" and row["runs"] == "2" and float(row["accuracy mean"]) == pytest.approx(0.2)


def test_batches_of_a_noise_rate_have_a_row_together():
    parts = {Entry(f"w{i}", series="warp", noise_rate=0.2, part=f"batch{i}"): 0.5 for i in range(3)}
    assert list(results.pooled(rows_of(parts))) == ["w0", "w1", "w2", "warp_noise20_batch*"]


def test_the_papers_numbers_beside_ours():
    folds = {Entry(f"warp_random_fold{i}", series="warp_random", part=f"fold{i}"): 0.4 + i / 10 for i in range(3)}
    rows = rows_of(folds | {Entry("warp_noise20", series="warp_random", noise_rate=0.2): 0.1, Entry("own"): 0.9})
    text = beside_papers.compare("cnn_lstm_rmlc", rows, {row["entry"]: "cifar10" for row in rows})
    assert text.splitlines()[1:] == [
        "warp_random: accuracy 50.00, paper 50.52 (cnn_lstm_rmlc Table 1, test, all_point, measured by: not stated, "
        "cites [36]; [36] is ImageNet's paper; [31] seems to be meant)"
    ]
    assert beside_papers.compare("cnn_lstm_rmlc", rows, {row["entry"]: "mine" for row in rows}) == ""
    rows = rows_of({Entry("coco2014_cnn_rnn"): 0.5}, CF1=0.6123, OF1=0.7)
    lines = beside_papers.compare("cnn_rnn", rows, {"coco2014_cnn_rnn": "coco2014"}).splitlines()
    assert lines[1].startswith("coco2014_cnn_rnn: CF1 61.23, paper 60.4; OF1 70.00, paper 67.8; MAP@10 nan, paper 61.2")
    assert "(cnn_rnn Table 3, val, path, ours all_point, measured by: the paper)" in lines[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=plian"], "did you mean 'plain'"),
        (["--seeds=0"], "--seeds=0: at least 1"),
        (["--config.optim.lrr=1"], "no such field"),
    ],
)
def test_mistakes(experiment, tmp_path, arguments, message, capsys):
    assert cli.run(["sweep", f"--config={experiment}", f"--workdir={tmp_path}", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_that_takes_it_gets_the_argument(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def sweep(arg):\n    return [(f'of {arg}', {})]\n")
    assert sweep.entries(f"{path}:side=3") == [Entry("of side=3")]
    assert sweep.entries(str(path)) == [Entry("of ")]


def test_an_entry_may_be_more_of_the_argument(tmp_path):
    """For entries whose heads have other fields: overrides of the command line count for them, too, before its own."""
    path = tmp_path / "x.py"
    path.write_text(
        "from jaxmlic.config import Entry, parse_arg\nfrom jaxmlic.configs import quickstart\n"
        "def get_config(arg=None):\n"
        "    arg = parse_arg(arg, side=16, pooled='')\n"
        "    config = quickstart.get_config()\n"
        "    config.data.image_size = arg.side\n"
        "    if arg.pooled:\n"
        "        config.model.other_field = arg.pooled\n"
        "    return config\n"
        "def sweep(arg):\n"
        "    entry = Entry('both', {'optim.momentum': 0.1}, argument='pooled=max')\n"
        "    return [('text', 'pooled=max'), ('fields', {'model.pool': 'max'}), entry]\n"
    )
    overrides = ["--config.optim.lr=0.5", "--config.optim.momentum=0.7"]
    for spec, side in ((str(path), 16), (f"{path}:side=24", 24)):
        base = config_lib.load(spec, overrides)
        text, fields, both = (sweep.config_of(spec, base, entry, overrides) for entry in sweep.entries(spec))
        assert (text.model.other_field, text.data.image_size, text.optim.lr) == ("max", side, 0.5)
        assert fields.model.pool == "max"
        assert (both.model.other_field, both.optim.momentum, both.optim.lr) == ("max", 0.1, 0.5)


def test_files_without_a_usable_sweep(tmp_path, capsys):
    path = tmp_path / "x.py"
    for text, message in [
        ("", "has no sweep()"),
        ("def sweep():\n    return [('a', {}), ('a', {})]\n", "names 'a' twice"),
    ]:
        path.write_text("from jaxmlic.configs.quickstart import get_config\n" + text)
        assert cli.run(["sweep", f"--config={path}", f"--workdir={tmp_path}"]) == 2
        assert message in capsys.readouterr().err


STAGES = """
from jaxmlic.config import Entry
from jaxmlic.configs import quickstart
get_config = quickstart.get_config
def sweep():
    return [Entry("second", {"optim.lr": 0.1}, start_from="first"), ("first", {}), Entry("scratch", from_scratch=True)]
"""


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """A sweep whose runs are recorded and not made: {entry: its config}, in their order."""
    path = tmp_path / "stages.py"
    path.write_text(STAGES)
    found = {}

    def run_one(config, workdir, report, group):
        found[workdir.parent.name] = config
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "result.json").write_text("{}")
        return {"split": "test", "protocol": "all_point", "mAP": 0.5}, None

    monkeypatch.setattr(runs, "run_one", run_one)
    monkeypatch.setattr(sweep, "complete", lambda *_: [])
    return path, tmp_path / "runs", found


def test_a_second_stage_runs_after_the_first_and_starts_from_it(ran):
    path, workdir, found = ran
    sweep.run(str(path), workdir, seeds=2, overrides=["--config.pretrained=w.npz"])
    assert list(found) == ["first", "scratch", "second"]
    assert found["second"].start_from == str(workdir / "first" / "seed1") and found["second"].seed == 1
    assert (found["first"].start_from, found["first"].pretrained, found["scratch"].pretrained) == ("", "w.npz", "")


def test_a_second_stage_without_its_first_fails_alone(ran):
    path, workdir, found = ran
    outcome = sweep.run(str(path), workdir, only=["second", "scratch"])
    assert list(found) == ["scratch"] and len(outcome.failures) == 1
    assert "second, seed 0: it starts from the run in" in outcome.failures[0] and "'first'" in outcome.failures[0]
    # A run that the command line names is used in its place.
    other = workdir.parent / "other"
    other.mkdir()
    (other / "result.json").write_text("{}")
    sweep.run(str(path), workdir, only=["second"], overrides=[f"--config.start_from={other}"])
    assert found["second"].start_from == str(other)


def test_entries_that_start_from_nothing_that_is_there():
    a, b = Entry("a", start_from="b"), Entry("b", start_from="a")
    for entries, message in (([a], "starts from 'b', which is no"), ([a, b], "circle: a, b")):
        with pytest.raises(UserError, match=message):
            sweep.in_order(entries, entries)


def test_every_entry_takes_the_weights_of_its_own_trunk(tmp_path):
    for name in ("vgg16-397923af.pth", "vgg16_bn-6c64b313.pth", "resnet101.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    base = config_lib.load("mscnn_lce_mic:dataset=coco2014")
    entries = {entry.name: entry for entry in sweep.entries("mscnn_lce_mic:dataset=coco2014")}

    def weights_of(name, overrides=()):
        return sweep.config_of("mscnn_lce_mic:dataset=coco2014", base, entries[name], overrides, tmp_path).pretrained

    assert weights_of("full") == str(tmp_path / "vgg16-397923af.pth")
    assert weights_of("ml_gcn_resnet101") == str(tmp_path / "resnet101.safetensors")
    base.pretrained = "other.npz"
    with pytest.raises(UserError, match=r"--weights names the weight files, and config.pretrained = 'other.npz'"):
        weights_of("full")
