"""The papers' tables with runs beside them."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxmlic import config as config_lib
from jaxmlic import metrics
from jaxmlic.cli import main as cli
from jaxmlic.cli.results import ensemble as ensemble_command
from jaxmlic.errors import UserError
from jaxmlic.evaluation import score_file
from jaxmlic.experiments import decisions, reproduce, sweep
from jaxmlic.reports import paper_page

ROOT = Path(__file__).parents[2]

NAMES = ["cat", "dog", "cow", "hen"]


def write_run(workdir, spec, name, seed, **changed):
    """A complete run's folder as the sweep leaves it, with random scores; returns the score file."""
    base = config_lib.load(spec)
    entry = next(entry for entry in sweep.entries(spec) if entry.name == name)
    config = sweep.config_of_run(sweep.config_of(spec, base, entry, ()), entry, workdir, seed)
    folder = workdir / config.data.name / name / f"seed{seed}"
    (folder / "scores").mkdir(parents=True)
    values = config_lib.override(config, changed).to_dict()
    record = {"config": values, "class_names": NAMES, "num_train": 9, "fingerprint": ""}
    (folder / "config.json").write_text(json.dumps(record, default=list))
    (folder / "result.json").write_text("{}")
    rng = np.random.default_rng([seed, *name.encode()])
    labels = (rng.random((30, 4)) < 0.4).astype(np.int8)
    scores = score_file.ScoreFile(
        rng.normal(size=(30, 4)), labels, [f"i{n}" for n in range(30)], NAMES, values, config.eval.protocol, "val",
        chosen=rng.random((30, 4)) < 0.4,
    )  # fmt: skip
    score_file.save(folder / "scores" / f"{config.data.test_split}.npz", scores)
    return scores


def line_of(target, label, workdir, **options):
    _, tables = reproduce.tables_of(target)
    if target.startswith("baseline_ensemble"):
        tables = [table for table in tables if table.dataset == "coco2014"]
    return next(line for line in reproduce.lines_of(tables, workdir, **options) if line.row.label == label)


def test_ours_are_means_over_runs_by_the_rows_protocol(tmp_path):
    spec = "cnn_rnn:dataset=coco2014"
    found = [write_run(tmp_path, spec, "coco2014_softmax", seed) for seed in (0, 1)]
    line = line_of("cnn_rnn/3", "Softmax", tmp_path)
    assert line.protocol == "top3_forced" and len(line.ours) == 2 and line.notes == ()
    values = [100 * metrics.evaluate(one.scores, one.labels, "top3_forced")["CF1"] for one in found]
    assert line.our_number("CF1") == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    # One run has no spread, none has no number.
    write_run(tmp_path, spec, "coco2014_cnn_rnn", 0)
    mean, spread = line_of("cnn_rnn/3", "CNN-RNN", tmp_path).our_number("OP")
    assert not np.isnan(mean) and np.isnan(spread)
    assert np.isnan(line_of("cnn_rnn/3", "WARP", tmp_path).our_number("OP")).all()


def test_a_path_row_is_decided_by_what_the_decoder_emitted(tmp_path):
    scores = write_run(tmp_path, "cnn_rnn:dataset=coco2014", "coco2014_cnn_rnn", 0)
    line = line_of("cnn_rnn/3", "CNN-RNN", tmp_path)
    positive, chosen = scores.labels == 1, scores.chosen
    assert line.protocol == "path"
    assert line.our_number("OP")[0] == pytest.approx(100 * (positive & chosen).sum() / chosen.sum())


def test_the_first_step_s_accuracy_comes_from_the_run(tmp_path):
    """Table 4's column; a score file has no paths, and one from before the metric no number."""
    spec, name = "multi_order_rnn:dataset=coco2014", "coco2014_multi_order"
    scores = write_run(tmp_path, spec, name, 0)

    def ours():
        _, tables = reproduce.tables_of("multi_order_rnn/4")
        lines = reproduce.lines_of([table for table in tables if table.dataset == "coco2014"], tmp_path)
        return {line.row.label: line.our_number("top1_step")[0] for line in lines if line.ours}

    assert np.isnan(ours()["Multi-order RNN"])
    path = tmp_path / "coco2014" / name / "seed0/scores/val.npz"
    paths = {"top1_step": 0.75, "repeats": 0.5}
    score_file.save(path, dataclasses.replace(scores, extra={"paths": paths}))
    assert ours() == {"Multi-order RNN": 75.0}


def test_what_a_run_costs_comes_from_its_config_and_log(tmp_path):
    """A linear layer of 1,280 numbers and 4 labels on a frozen trunk; the first report holds the compilation."""
    write_run(tmp_path, "yardsticks:rows=heads,dataset=voc2007_subset", "linear", 0)
    folder = tmp_path / "voc2007_subset" / "linear" / "seed0"
    rows = [{"step": 50 * n, "img_per_s": speed} for n, speed in enumerate((1.0, 64.0, 32.0, 128.0), 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 201}]))
    line = line_of("yardsticks/voc2007_subset", "linear", tmp_path)
    assert line.our_number("trained_parameters")[0] == pytest.approx((1280 + 1) * 4 / 1000)
    assert line.our_number("step_ms")[0] == pytest.approx(1000 * 32 / 64)
    (folder / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    line = line_of("yardsticks/voc2007_subset", "linear", tmp_path)
    assert np.isnan(line.our_number("step_ms")[0]) and not np.isnan(line.our_number("mAP")[0])


def test_runs_of_another_config_are_named_and_do_not_count(tmp_path):
    write_run(tmp_path, "cnn_rnn:dataset=coco2014", "coco2014_softmax", 0, **{"optim.lr": 0.5})
    line = line_of("cnn_rnn/3", "Softmax", tmp_path)
    assert line.ours == () and "another config (optim.lr: 0.5 there, 0.0001 now); not counted" in line.notes[0]
    # Weights that lie elsewhere are the same run.
    write_run(tmp_path, "cnn_rnn:dataset=coco2014", "coco2014_warp", 0, pretrained="elsewhere/vgg16.npz")
    assert len(line_of("cnn_rnn/3", "WARP", tmp_path).ours) == 1


def test_a_fusion_needs_all_of_its_members(tmp_path):
    spec = "baseline_ensemble:dataset=coco2014"
    members = [write_run(tmp_path, spec, "coco2014_resnet101_m2_512", 0)]
    assert line_of("baseline_ensemble/3", "R DistrEn", tmp_path).ours == ()
    members.append(write_run(tmp_path, spec, "coco2014_resnet101_m3_512", 0))
    # The members' scores are of other images: the same labels are needed.
    path = tmp_path / "coco2014/coco2014_resnet101_m3_512/seed0/scores/val.npz"
    second = score_file.ScoreFile(
        members[1].scores, members[0].labels, members[0].ids, NAMES, members[1].config, "top3_forced", "val"
    )
    score_file.save(path, second)
    line = line_of("baseline_ensemble/3", "R DistrEn", tmp_path)
    fused = (members[0].scores.astype(float) + members[1].scores) / 2
    wanted = metrics.evaluate(fused.astype(np.float32), members[0].labels, "top3_forced")
    assert line.weights == (0.5, 0.5) and line.our_number("mAP")[0] == pytest.approx(100 * wanted["mAP"])


def test_columns_that_are_no_metric_of_ours(tmp_path):
    scores = write_run(tmp_path, "cnn_rnn:dataset=voc2007", "voc2007_cnn_rnn", 0)
    line = line_of("cnn_rnn/4", "CNN-RNN", tmp_path)
    ap = metrics.evaluate(scores.scores, scores.labels)["AP"]
    row = reproduce.Line(line.table, line.row, ours=line.ours)
    assert row.our_number("AP cow")[0] == pytest.approx(100 * ap[2])
    assert np.isnan(row.our_number("AP aeroplane")[0])
    numbers = reproduce.Line(
        line.table, line.row, ours=({"top1": 0.75, "accuracy": 0.7}, {"top1": 0.5, "accuracy": 0.9})
    )
    assert numbers.our_number("error")[0] == pytest.approx(37.5)
    assert numbers.our_number("accuracy std")[0] == pytest.approx(20 / 2**0.5)


def test_a_stand_in_has_the_rows_that_its_sweep_has(tmp_path):
    line = line_of("cnn_rnn/3", "WARP", tmp_path, dataset="corel5k")
    assert [entry.name for entry in line.entries] == ["corel5k_warp"] and line.protocol == "top5_forced"
    assert line.command("runs/x").startswith("jaxmlic sweep --config=cnn_rnn:dataset=corel5k --workdir=runs/x/corel5k ")
    own = line_of("cnn_rnn/3", "WARP", tmp_path, dataset="corel5k", overrides=["--config.train.duration=5 epochs"])
    assert own.command("runs/x").endswith(" --weights=DIR '--config.train.duration=5 epochs'")
    assert any(
        text.startswith("features: jaxmlic features --config=cnn_rnn:dataset=corel5k")
        for text in reproduce.needs([line])
    )
    missing = line_of("baseline_ensemble/3", "R DistrEn", tmp_path, dataset="corel5k", argument="trunk=resnet18")
    assert missing.entries == () and "no entry of baseline_ensemble:dataset=corel5k,trunk=resnet18" in missing.notes[0]


@pytest.mark.parametrize(("target", "count"), [("yardsticks/corel5k", 2), ("corel5k/record", 5)])
def test_each_kind_of_features_has_a_command_that_stores_it(target, count, tmp_path):
    """MSCNN-LCE-MIC reads stages where others read a map, and kernel ridge reads descriptors."""
    lines = reproduce.lines_of(reproduce.tables_of(target)[1], tmp_path)
    commands = [text for text in reproduce.needs(lines) if text.startswith("features:")]
    assert len(commands) == len(set(commands)) == count
    stored = []
    for command in commands:
        found = re.search(r"--config=(\S+) --config\.(features\.weights|pretrained)=", command)
        config = config_lib.load(found[1])
        assert (found[2] == "features.weights") == bool(config.features.sets)
        stored.append(stored_of(config))
    for line in lines:
        for config in line.configs:
            assert config.data.source not in ("features", "descriptors") or stored_of(config) in stored


def stored_of(config):
    """The sets of descriptors, or the trunk with the size of its input and what is kept of it."""
    if config.features.sets:
        return tuple(config.features.sets), tuple(config.features.pools)
    return config.model.trunk, config.data.image_size, config.features.store


def test_every_row_with_an_entry_has_a_command(tmp_path):
    for name in reproduce.papers.names():
        paper, tables = reproduce.tables_of(name)
        for line in reproduce.lines_of(tables, tmp_path):
            assert bool(line.entries) == bool(line.row.entry), (name, line.row.label, line.notes)
            assert bool(line.command("runs")) == bool(line.entries)
            if line.entries:  # the command runs these entries, and what they start from
                only = line.command("runs").partition(" --only=")[2].split()[0].split(",")
                wanted = {entry.name for entry in line.entries} | {entry.start_from for entry in line.entries}
                assert {entry.name for entry in sweep.entries(line.spec, only)} == wanted - {""}
        first = reproduce.lines_of(tables[:1], tmp_path)
        assert paper.name == name and bool(reproduce.needs(first)) == any(line.row.entry for line in first)


def test_mistakes(capsys):
    for more, message in (
        (["cnn_rnn/9"], "table of cnn_rnn '9' is unknown; known: 1, 2, 3, 4"),
        (["cnn_rn"], "did you mean 'cnn_rnn'?"),
        ([], "name a paper, or give --list"),
        (["cnn_rnn", "--seeds=0"], "--seeds"),
    ):
        assert cli.run(["reproduce", *more]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    with pytest.raises(UserError, match="known: I, II"):
        reproduce.tables_of("mscnn_lce_mic/9")
    assert reproduce.tables_of("mscnn_lce_mic/iv")[1][0].number == "IV"


def test_list(capsys):
    assert cli.run(["reproduce", "--list"]) == 0
    out = capsys.readouterr().out
    assert "cnn_rnn/3" in out and "5 of 5" in out and "baseline_ensemble/2" in out


def test_train_on_a_stand_in_and_the_files(data_dir, tmp_path, capsys):
    command = [
        *("reproduce", "cnn_rnn/4", "--dataset=tiny", "--argument=trunk=small_cnn,size=24,smoke", "--train"),
        *(f"--config.data.dir={data_dir}", f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"),
    ]
    assert cli.run(command) == 0
    out = capsys.readouterr().out
    assert "ours on tiny, path, 1 run" in out
    with (tmp_path / "out" / "cnn_rnn_table_4.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["row"] == "CNN-RNN" and row["metric"] == "mAP"]
    own = json.loads((tmp_path / "runs/tiny/tiny_cnn_rnn/seed0/scores/test.path.json").read_text())
    assert [row["printed"] for row in rows] == ["84"] and float(rows[0]["ours"]) == pytest.approx(
        100 * own["mAP"], abs=0.005
    )
    page = (tmp_path / "out" / "cnn_rnn_table_4.md").read_text()
    assert "| `tiny_cnn_rnn` | ours on tiny, path, 1 run |" in page


@pytest.mark.parametrize("name", reproduce.papers.names())
def test_the_pages_in_docs_are_those_of_the_command(name, tmp_path):
    """`jaxmlic reproduce NAME --out=docs/papers` in a checkout without runs writes them again."""
    paper, tables = reproduce.tables_of(name)
    lines = reproduce.lines_of(tables, tmp_path)
    page = paper_page.markdown(paper, lines, f"runs/{name}", reproduce.needs(lines))
    assert (ROOT / "docs" / "papers" / f"{name}.md").read_text(encoding="utf-8") == page


def test_a_fusion_is_decided_by_a_rule_that_is_learned_on_fused_held_out_scores(tmp_path):
    """As `jaxmlic ensemble` of both kinds of scores and `jaxmlic thresholds --apply` decide it."""
    rng, names, paths = np.random.default_rng(0), [f"word{n}" for n in range(7)], {}
    for split, count in (("test", 40), ("train", 120)):
        labels = (rng.random((count, 7)) < np.linspace(0.05, 0.6, 7)).astype(np.int8)
        for member in "ab":
            folder = tmp_path / member / "scores"
            folder.mkdir(parents=True, exist_ok=True)
            values = (labels * 1.5 + rng.normal(size=labels.shape) - 1).astype(np.float32)
            ids = [f"{split}{n}" for n in range(count)]
            extra = {"held_out": True} if split == "train" else {}
            path = folder / (f"{split}.npz" if split == "test" else f"{split}.out_of_fold.npz")
            score_file.save(
                path, score_file.ScoreFile(values, labels, ids, names, {}, "top2_forced", split, extra=extra)
            )
            paths.setdefault(split, []).append(path)
    found = decisions.fused_scores(paths["test"], (0.75, 0.25), "train", "top2_learned")
    for split, files in paths.items():
        out = ["--weights=3,1", "--protocol=top2_forced", f"--out={tmp_path / split}.npz"]
        ensemble_command.main([*map(str, files), *out])
    rule, _ = decisions.learn_on_scores(tmp_path / "train.npz", "cf1_at=2", images=40, folds=0)
    np.testing.assert_array_equal(found.chosen, rule.choose(score_file.load(tmp_path / "test.npz").scores))
    assert (found.chosen.sum(1) == 2).all() and found.protocol == "top2_learned"
    plain = np.argsort(-found.scores, axis=1)[:, :2]
    assert not np.take_along_axis(found.chosen, plain, 1).all()
    assert decisions.fused_scores(paths["test"], (0.5, 0.5), "train", "top2_forced").chosen is None
    paths["train"][1].unlink()
    with pytest.raises(UserError, match=r"b: has no held-out scores of training images"):
        decisions.fused_scores(paths["test"], (0.75, 0.25), "train", "top2_learned")
