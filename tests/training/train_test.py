"""The trainer: equality of routes, one compile, masks, frozen parameters, the guard, averaging, stopping."""

import dataclasses
import json
import os
import shutil
import signal
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from jaxmlic import losses, sharding
from jaxmlic.errors import UserError
from jaxmlic.inputs import open_source
from jaxmlic.training import checkpoint, loop, optim, run_folder
from jaxmlic.training import state as state_lib
from jaxmlic.training import step as step_lib
from jaxmlic.training.checkpoint import Checkpoints
from jaxmlic.training.logs import metrics_log

PLAIN = {"augment.flip": False, "augment.crop_area": (1.0, 1.0), "data.resize": 16}


def batch_of(count, seed=0, side=16):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        "labels": rng.integers(-1, 2, (count, 3)).astype(np.int8),
        "mask": np.ones(count, bool),
    }


def steps(trainer, batches):
    """Parameters by name and losses after stepping through `batches`."""
    state, values = trainer.initial_state(), []
    for batch in batches:
        state, scalars = trainer.train_step(state, sharding.put(batch, trainer.mesh))
        values.append(float(scalars["loss"]))
    return {k: np.asarray(v) for k, v in optim.flatten(state.params).items()}, np.array(values), state


def assert_close(found, expected, atol):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def trainers(data_dir):
    """The same experiment on one device and on eight."""
    config = tiny_config(data_dir, **{"train.batch_size": 16})
    return [loop.Trainer(config, "unused", sharding.make_mesh(jax.devices()[:n])) for n in (1, 8)]


def test_one_device_equals_eight(trainers):
    batches = [batch_of(16, seed, side=20) for seed in range(3)]
    (one, losses_one, _), (eight, losses_eight, _) = (steps(trainer, batches) for trainer in trainers)
    np.testing.assert_allclose(losses_one, losses_eight, rtol=1e-5)
    assert_close(eight, one, atol=1e-5)
    assert trainers[0].train_step._cache_size() == trainers[1].train_step._cache_size() == 1


def test_operations_and_paces_on_one_device_equal_eight(data_dir):
    """And a stage of the trunk moves at its share of the last one's pace: SGD's steps are compared with a pace of 1."""
    fields = {"augment.ops": 2, "augment.magnitude": 15.0, "augment.cutout": 0.3, "optim.name": "sgd"}
    fields |= {"train.batch_size": 16, "optim.clip_norm": 0.0, "optim.weight_decay": 0.0}
    fields |= {"optim.lr": 1.0, "optim.schedule": "constant", "optim.warmup": "0%"}
    paces, moved = {1: 0.5, 8: 0.5, 2: 1.0}, {}
    for devices, pace in paces.items():
        config = tiny_config(data_dir, **fields, **{"optim.stage_decay": pace})
        trainer = loop.Trainer(config, "unused", sharding.make_mesh(jax.devices()[:devices]))
        start = {k: np.asarray(v) for k, v in optim.flatten(trainer.initial_state().params).items()}
        found, _, _ = steps(trainer, [batch_of(16, side=20)])
        moved[devices] = {name: found[name] - start[name] for name in start}
    assert_close(moved[8], moved[1], atol=2e-5)
    for name, step in moved[2].items():
        share = 0.5 ** (3 - int(name.split("/")[1][5])) if name.startswith("trunk/") else 1.0
        np.testing.assert_allclose(moved[1][name], share * step, atol=2e-5, err_msg=name)
    assert max(np.abs(step).max() for step in moved[2].values()) > 1e-3


def test_epochs_are_counted_by_the_first_example_of_a_batch():
    for batch_size, examples in ((8, 54), (16, 16), (16, 100), (7, 50)):
        steps_ = np.arange(0, 300, dtype=np.int32)
        expected = [int(step) * batch_size // examples for step in steps_]
        np.testing.assert_array_equal(step_lib.epoch_of(jnp.asarray(steps_), batch_size, examples), expected)
    # MS-COCO's size after 100,000 epochs: step * batch_size does not fit in 32 bits
    step = 100_001 * 82_081 // 16 + 1
    assert step_lib.epoch_of(jnp.int32(step), 16, 82_081) == 100_001


class Greys(nn.Module):
    """One linear layer on the mean colour."""

    num_labels: int

    @nn.compact
    def __call__(self, images, train=False, labels=None, frozen_trunk=False):
        return {"logits": nn.Dense(self.num_labels)(images.astype(jnp.float32).mean((1, 2)) / 255.0)}


def test_mixup_in_the_step(data_dir):
    """54 examples by 16: steps 0 to 3 begin in epoch 0, step 4 in epoch 1. One program; one device equals eight."""
    head = SimpleNamespace(loss_fn=lambda outputs, labels: (losses.binary_cross_entropy(outputs["logits"], labels), {}))
    overrides = {**PLAIN, "train.batch_size": 16, "augment.mixup": "every_second_epoch"}
    config, model = tiny_config(data_dir, **overrides), Greys(3)
    with config.unlocked():
        config.loss = {}
    tx, multipliers, _, _ = state_lib.optimizer(config, model, open_source(config).example(), 54)

    @jax.jit
    def loss_of(params, images, labels):
        return losses.binary_cross_entropy(model.apply({"params": params}, images)["logits"], labels).mean()

    for count in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:count])
        place = sharding.replicated(mesh)
        step_fn = step_lib.make_step_fn(head, model, config, open_source(config), tx, multipliers, 54)
        step_fn = jax.jit(step_fn, in_shardings=(place, sharding.split(mesh)), out_shardings=place)
        state = jax.jit(
            lambda: state_lib.create(config, model, open_source(config).example(), tx, multipliers, jax.random.key(0)),
            out_shardings=place,
        )()
        for step in range(6):
            batch = batch_of(16, step)
            key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))[0]
            partners = np.asarray(jax.random.permutation(jax.random.fold_in(key, 2), 16))
            if step >= 4:
                partners = np.arange(16)
            a, b = batch["labels"], batch["labels"][partners]
            labels = np.where((a == 1) | (b == 1), 1, np.minimum(a, b)).astype(np.int8)
            images = (batch["image"].astype(np.float32) + batch["image"][partners]) / 2
            expected = loss_of(jax.device_get(state.params), images, labels)
            state, scalars = step_fn(state, sharding.put(batch, mesh))
            np.testing.assert_allclose(scalars["loss"], expected, rtol=1e-5)
        assert step_fn._cache_size() == 1


def test_the_trainer_counts_epochs_by_its_training_part(data_dir, monkeypatch):
    found, real = [], loop.make_step_fn

    def noted(*args):
        found.append(args)
        return real(*args)

    monkeypatch.setattr(loop, "make_step_fn", noted)
    loop.Trainer(tiny_config(data_dir), "unused")
    assert found[0][-2] == 54


@pytest.fixture(scope="module")
def plain_trainer(data_dir):
    """Without augmentation, so that the step can be computed by other means."""
    return loop.Trainer(tiny_config(data_dir, **PLAIN, **{"train.batch_size": 16}), "unused")


@pytest.mark.filterwarnings("ignore:.*pmap.*")
def test_the_mesh_equals_pmap(plain_trainer):
    trainer = plain_trainer
    batches = [batch_of(16, seed) for seed in range(2)]
    expected, _, _ = steps(trainer, batches)

    def step(state, batch):
        loss, scalars, stats, grads = step_lib.loss_and_grads(
            trainer.head,
            trainer.model,
            trainer.config,
            trainer.multipliers,
            state,
            batch["image"],
            batch,
            jax.random.key(0),
        )
        grads = jax.lax.pmean(grads, "data")  # equal shares without padding: the mean of means is the mean
        return step_lib.apply_gradients(
            trainer.config, trainer.tx, trainer.multipliers, state, jax.lax.pmean(loss, "data"), stats, grads, scalars
        )[0]

    state = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 8), trainer.initial_state())
    for batch in batches:
        state = jax.pmap(step, axis_name="data")(state, {k: v.reshape(8, 2, *v.shape[1:]) for k, v in batch.items()})
    # Adam divides by gradients near zero, and devices sum in the order in which they come: 2e-5 was seen once.
    assert_close({k: np.asarray(v[3]) for k, v in optim.flatten(state.params).items()}, expected, atol=1e-4)


class Normed(nn.Module):
    """A model whose value depends on the statistics of the whole batch."""

    num_labels: int

    @nn.compact
    def __call__(self, images, train=False, labels=None, frozen_trunk=False):
        x = nn.Conv(4, (3, 3), strides=4, use_bias=False)(images / 255.0)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return {"logits": nn.Dense(self.num_labels)(nn.relu(x).mean((1, 2)))}


def test_batch_norm_is_over_the_global_batch(data_dir):
    head = SimpleNamespace(loss_fn=lambda outputs, labels: (losses.binary_cross_entropy(outputs["logits"], labels), {}))
    config = tiny_config(data_dir, **PLAIN)
    with config.unlocked():
        config.loss = {}
    model, batch = Normed(3), batch_of(16)
    tx, multipliers, _, _ = state_lib.optimizer(config, model, open_source(config).example(), 100)
    found = []
    for count in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:count])
        place = sharding.replicated(mesh)
        step = jax.jit(
            step_lib.make_step_fn(head, model, config, open_source(config), tx, multipliers, 100),
            in_shardings=(place, sharding.split(mesh)),
            out_shardings=place,
        )
        state = jax.jit(
            lambda: state_lib.create(config, model, open_source(config).example(), tx, multipliers, jax.random.key(0)),
            out_shardings=place,
        )()
        state, _ = step(state, sharding.put(batch, mesh))
        found.append(optim.flatten({"params": state.params, "stats": state.batch_stats}))
    assert_close(found[1], found[0], atol=1e-5)
    images = batch["image"].astype(np.float32) / 255
    assert not np.allclose(found[0]["stats/BatchNorm_0/mean"], 0) and images.std() > 0


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "weighted_cross_entropy"])
def test_padding_changes_nothing(data_dir, plain_trainer, loss):
    """Nor does it for a loss that counts labels over the batch."""
    trainer, batch = plain_trainer, batch_of(16)
    if loss != trainer.config.loss.name:
        trainer = loop.Trainer(tiny_config(data_dir, **PLAIN, **{"train.batch_size": 16, "loss.name": loss}), "unused")
    batch["mask"][5:] = False
    other = {k: v.copy() for k, v in batch.items()}
    other["image"][5:] = 255
    other["labels"][5:] = 1
    expected, first, _ = steps(trainer, [batch])
    found, second, _ = steps(trainer, [other])
    assert_close(found, expected, atol=0)
    np.testing.assert_array_equal(first, second)


def test_loss_is_the_mean_over_real_examples(plain_trainer):
    trainer, batch = plain_trainer, batch_of(16)
    batch["mask"][3:] = False
    state = trainer.initial_state()
    logits = trainer.model.apply({"params": state.params}, batch["image"])["logits"]
    expected = losses.binary_cross_entropy(logits, jnp.asarray(batch["labels"]))[:3].mean()
    _, found, _ = steps(trainer, [batch])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_frozen_parameters_stay_bit_for_bit(data_dir):
    groups = (("trunk/stage1.*", None), ("trunk/.*", 0.1), (".*", 1.0))
    trainer = loop.Trainer(tiny_config(data_dir, **{"optim.groups": groups}), "unused")
    before = {k: np.asarray(v) for k, v in optim.flatten(trainer.initial_state().params).items()}
    after, _, state = steps(trainer, [batch_of(8, side=20)])
    for name, value in before.items():
        assert np.array_equal(after[name], value) == name.startswith("trunk/stage1"), name
    assert len(state.guard.gradients) == sum(not name.startswith("trunk/stage1") for name in before)


def test_whole_run(finished_run):
    rows = metrics_log.read(finished_run)
    assert [r["step"] for r in rows if "train/loss" in r] == [4, 8, 12, 16]
    scored = [r for r in rows if "val/mAP" in r]
    assert [r["step"] for r in scored] == [4, 8, 12, 16]
    best = max(scored, key=lambda r: (r["val/mAP"], r["step"]))
    result = run_folder.result(finished_run)
    assert result["best_step"] == best["step"] and result["val/mAP"] == best["val/mAP"]
    assert all(r["val/protocol"] == "all_point" for r in scored)
    assert rows[0]["train/loss"] > rows[-2]["train/loss"]
    kept = sorted(int(p.name) for p in (finished_run / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == sorted({best["step"], 12, 16})  # the best and the last two
    assert list((finished_run / "tensorboard").glob("events*"))


def test_a_complete_run_is_left_alone(finished_run, data_dir, capsys):
    before = (finished_run / "metrics.jsonl").read_bytes()
    assert loop.run(tiny_config(data_dir), str(finished_run)) == loop.Outcome(16, True)
    assert "is complete" in capsys.readouterr().out
    assert (finished_run / "metrics.jsonl").read_bytes() == before


def test_another_config_in_the_folder_is_refused(finished_run, data_dir):
    with pytest.raises(UserError, match=r"optim\.lr: 0\.004 there, 0\.5 now"):
        loop.run(tiny_config(data_dir, **{"optim.lr": 0.5}), str(finished_run))


@pytest.fixture
def stopping_trainer(data_dir, tmp_path):
    """A trainer on eight devices that is sent a signal after a number of steps."""

    def make(step, number, **overrides):
        trainer = loop.Trainer(tiny_config(data_dir, **overrides), str(tmp_path / "run"))
        jitted, calls = trainer.train_step, []

        def step_then_signal(state, batch):
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), number)
            return jitted(state, batch)

        trainer.train_step = step_then_signal
        trainer.jitted = jitted
        return trainer

    return make


def without_rate(rows):
    return [{k: v for k, v in row.items() if k != "img_per_s" and not k.startswith("goodput/")} for row in rows]


def test_sigterm_saves_and_the_same_command_continues(stopping_trainer, finished_run, data_dir):
    trainer = stopping_trainer(6, signal.SIGTERM)
    assert trainer.fit() == loop.Outcome(6, False, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run_folder.result(trainer.workdir) is None
    second = loop.Trainer(tiny_config(data_dir), trainer.workdir)
    assert second.fit() == loop.Outcome(16, True)
    assert trainer.jitted._cache_size() == second.train_step._cache_size() == 1
    states = [
        Checkpoints(folder, read_only=True).restore(
            16, state_lib.abstract(second.config, second.model, second.source.example(), 54, second.mesh)
        )
        for folder in (trainer.workdir, finished_run)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    # The report at step 8 covers two steps here and four there; all later rows are the same.
    rows = [without_rate(r for r in metrics_log.read(f) if r["step"] > 8) for f in (trainer.workdir, finished_run)]
    assert rows[0] == rows[1]


def notice_in_evaluation(trainer, number, batch):
    """Sends SIGTERM within a batch of the trainer's `number`th evaluation; returns the batches that it computes."""
    predict, batches, calls = trainer.predict_step, [], []
    validate = trainer.validate

    def counted(*args):
        calls.append(1)
        return validate(*args)

    def predict_then_signal(variables, images):
        if len(calls) == number:
            batches.append(1)
            if len(batches) == batch:
                os.kill(os.getpid(), signal.SIGTERM)
        return predict(variables, images)

    trainer.validate, trainer.predict_step = counted, predict_then_signal
    return batches


@pytest.mark.parametrize(("number", "step"), [(1, 4), (4, 16)], ids=["the first evaluation", "the last one"])
def test_sigterm_ends_an_evaluation_that_the_same_command_repeats(number, step, finished_run, data_dir, tmp_path):
    config = tiny_config(data_dir, **{"train.eval_batch_size": 8})
    workdir = tmp_path / "run"
    trainer = loop.Trainer(config, str(workdir))
    batches = notice_in_evaluation(trainer, number, 1)
    assert trainer.fit() == loop.Outcome(step, False, signal.SIGTERM)
    assert len(batches) == 1 < len(trainer.val_view) / 8  # the others were not computed
    assert run_folder.result(workdir) is None and not Checkpoints(workdir, read_only=True).has_score(step)
    assert not [row for row in metrics_log.read(workdir) if row["step"] == step and "val/protocol" in row]
    # Ended again, and at last complete: nothing is missing, and nothing stands there twice.
    again = loop.Trainer(config, str(workdir))
    notice_in_evaluation(again, 1, 1)
    assert again.fit() == loop.Outcome(step, False, signal.SIGTERM)
    assert loop.Trainer(config, str(workdir)).fit() == loop.Outcome(16, True)
    rows = [without_rate(metrics_log.read(folder)) for folder in (workdir, finished_run)]
    assert rows[0] == rows[1]
    assert run_folder.result(workdir) == run_folder.result(finished_run)
    kept = [sorted(p.name for p in (folder / "checkpoints").iterdir()) for folder in (workdir, finished_run)]
    assert kept[0] == kept[1]


def test_nan_stops_the_run_says_where_and_spares_the_checkpoint(data_dir, tmp_path):
    trainer = loop.Trainer(tiny_config(data_dir), str(tmp_path / "run"))
    jitted = trainer.train_step

    def poisoned(state, batch):
        if int(state.step) == 9:
            state = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
        return jitted(state, batch)

    trainer.train_step = poisoned
    with pytest.raises(
        UserError, match=r"at step 9 the loss and the gradients of .* \(first: classifier/bias\)"
    ) as error:
        trainer.fit()
    assert run_folder.failure(tmp_path / "run")["reason"] == str(error.value)
    kept = Checkpoints(tmp_path / "run", read_only=True)
    assert kept.latest() == 8
    assert loop.Trainer(tiny_config(data_dir), str(tmp_path / "run")).fit().finished
    assert run_folder.failure(tmp_path / "run") is None


def test_guard_keeps_the_first_bad_step():
    guard = state_lib.NonFinite(jnp.int32(-1), jnp.bool_(False), jnp.zeros(2, bool))
    for step, loss, squares in [(0, 1.0, [1, 1]), (1, 1.0, [1, jnp.inf]), (2, jnp.nan, [jnp.nan, 1])]:
        guard = step_lib.first_non_finite(guard, jnp.int32(step), jnp.float32(loss), jnp.float32(squares))
    assert int(guard.step) == 1 and not bool(guard.loss) and guard.gradients.tolist() == [False, True]
    with pytest.raises(UserError, match=r"at step 1 the gradients of 1 of 2 parameters \(first: b\)"):
        step_lib.check_finite(guard, ["b", "a"])


def test_averaged_parameters_are_what_is_scored(data_dir):
    trainer = loop.Trainer(tiny_config(data_dir, **{"optim.ema": 0.5}), "unused")
    first = {k: np.asarray(v) for k, v in optim.flatten(trainer.initial_state().params).items()}
    after, _, state = steps(trainer, [batch_of(8, side=20)])
    scored = optim.flatten(state_lib.eval_variables(state)["params"])
    for name in first:  # at step 0 the decay is 1 / 10
        np.testing.assert_allclose(scored[name], 0.1 * first[name] + 0.9 * after[name], atol=1e-6)


def test_bfloat16_trains_with_float32_parameters_and_logits(data_dir):
    trainer = loop.Trainer(tiny_config(data_dir, **{"model.dtype": "bfloat16"}), "unused")
    _, values, state = steps(trainer, [batch_of(8, side=20)] * 3)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    outputs = trainer.model.apply({"params": state.params}, batch_of(2)["image"])
    assert outputs["logits"].dtype == jnp.float32 and outputs["feature_map"].dtype == jnp.bfloat16
    assert values[2] < values[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.batch_size": 12}, "cannot be divided over 8 devices"),
        ({"train.duration": "1 examples"}, "less than one step"),
        ({"train.duration": "0 steps"}, "leaves 2 parameters of the head at random values"),
        ({"optim.groups": ((".*", None),)}, "freezes every parameter"),
        ({"head": "linaer"}, "did you mean 'linear'"),
        ({"model.trunk": "small_cn"}, "did you mean 'small_cnn'"),
        ({"model.pool": "average"}, "config.model.pool"),
        ({"model.batch_norm": "frozen"}, "has no batch norm"),
        ({"model.dtype": "float16"}, "config.model.dtype"),
        ({"loss.name": "bce"}, "config.loss.name"),
        ({"loss.options": (("gamma", 2.0),)}, "config.loss.options: binary_cross_entropy has no option 'gamma'"),
        ({"eval.protocol": "all_pont"}, "all_point"),
        ({"data.name": "tinny"}, "tinny"),
        ({"eval.metric": "map"}, "config.eval.metric"),
        ({"augment.mixup": "on"}, "config.augment.mixup"),
        ({"augment.cutout": 2.0}, "config.augment.cutout"),
        ({"optim.stage_decay": 2.0}, "config.optim.stage_decay"),
    ],
)
def test_config_mistakes_are_told_before_training(data_dir, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        loop.run(tiny_config(data_dir, **overrides), str(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_after_a_mistake_the_folder_can_be_used_with_the_mended_config(data_dir, tmp_path):
    with pytest.raises(UserError, match="fewer than"):
        loop.run(tiny_config(data_dir, **{"train.batch_size": 64}), str(tmp_path / "run"))
    mended = tiny_config(data_dir)
    trainer = loop.Trainer(mended, str(tmp_path / "run"))
    assert run_folder.claim(tmp_path / "run", mended, trainer.train_view).config.train.batch_size == 8


def test_changed_data_and_class_names_are_refused(finished_run, data_dir):
    trainer = loop.Trainer(tiny_config(data_dir), "unused")
    names = dataclasses.replace(trainer.train_view, indices=trainer.train_view.indices[1:])
    with pytest.raises(UserError, match="other examples or labels"):
        run_folder.claim(finished_run, trainer.config, names)
    stored = json.loads((finished_run / "config.json").read_text())
    assert stored["class_names"] == ["red", "green", "blue"] and stored["num_train"] == 54


def test_checkpoints_without_their_config_are_not_continued(data_dir, tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    trainer = loop.Trainer(tiny_config(data_dir), str(tmp_path))
    with pytest.raises(UserError, match=r"holds checkpoints but no config\.json"):
        trainer.fit()


def best_of(workdir, trainer):
    """Parameters of a run's best checkpoint, by name."""
    best = json.loads((workdir / "result.json").read_text())["best_step"]
    config = run_folder.load(workdir).config
    abstract = state_lib.abstract(
        config, trainer.model, trainer.source.example(), len(trainer.train_view), trainer.mesh
    )
    state = Checkpoints(str(workdir), read_only=True).restore(best, abstract)
    return optim.flatten(state_lib.eval_variables(state)["params"])


def test_a_run_starts_from_another(finished_run, data_dir, tmp_path, capsys):
    """Every parameter of the same name and shape comes from the other run's best checkpoint, averages included."""
    config = tiny_config(data_dir, start_from=str(finished_run), **{"optim.ema": 0.5})
    trainer = loop.Trainer(config, str(tmp_path / "run"))
    state = trainer.initial_state()
    assert "starting from" in capsys.readouterr().out
    wanted = best_of(finished_run, trainer)
    for found in (optim.flatten(state.params), state.ema):
        assert_close(found, wanted, atol=0)


def test_resuming_does_not_need_what_training_started_from(finished_run, data_dir, tmp_path):
    other, config = tmp_path / "other", {"train.duration": "4 steps", "start_from": str(tmp_path / "other")}
    shutil.copytree(finished_run, other)
    run = tmp_path / "run"
    assert loop.Trainer(tiny_config(data_dir, **config), str(run)).fit().finished
    shutil.rmtree(other)
    (run / "result.json").unlink()
    assert loop.Trainer(tiny_config(data_dir, **config), str(run)).fit() == loop.Outcome(4, True)


def test_a_run_of_other_classes_gives_its_trunk_alone(finished_run, data_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    stored = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(stored | {"class_names": ["a", "b", "c"]}))
    trainer = loop.Trainer(tiny_config(data_dir, start_from=str(other)), str(tmp_path / "run"))
    fresh = optim.flatten(loop.Trainer(tiny_config(data_dir), str(tmp_path / "x")).initial_state().params)
    theirs = best_of(finished_run, trainer)
    wanted = {name: theirs[name] if name.startswith("trunk/") else value for name, value in fresh.items()}
    assert_close(optim.flatten(trainer.initial_state().params), wanted, atol=0)
    with pytest.raises(UserError, match=r"config\.start_from: .*config\.json does not exist"):
        loop.Trainer(tiny_config(data_dir, start_from=str(tmp_path)), str(tmp_path / "run")).initial_state()
    wide = tiny_config(data_dir, start_from=str(other), **{"model.trunk": "small_cnn_wide"})
    trainer = loop.Trainer(wide, str(tmp_path / "wide"))
    with pytest.raises(UserError, match=r"config\.start_from: .* no parameter in common"):
        trainer.initial_state()


def test_a_run_knows_where_it_came_from_and_where_its_time_went(finished_run):
    (start,) = json.loads((finished_run / "config.json").read_text())["starts"]
    assert start["step"] == 0 and start["hosts"] == 1
    assert start["devices"] == {"platform": "cpu", "kind": "cpu", "number": 8}
    assert start["versions"]["jax"] == jax.__version__ and "orbax-checkpoint" in start["versions"]
    rows = [row for row in metrics_log.read(finished_run) if "goodput/steps" in row]
    assert [row["step"] for row in rows] == [4, 8, 12, 16]
    seconds = {key.removeprefix("goodput/"): value for key, value in rows[-1].items() if key.startswith("goodput/")}
    assert all(seconds[kind] > 0 for kind in ("steps", "input", "evaluation", "saving", "compiling", "starting"))
    assert seconds["redone"] == seconds["away"] == 0


def test_checkpoints_without_permission_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    checkpoint.check_place(tmp_path)
    # Root may do everything, so that the system's answer is changed and not the folder.
    monkeypatch.setattr(
        checkpoint.os, "access", lambda path, mode: not (mode & denied and str(path).endswith("points"))
    )
    denied = os.W_OK
    Checkpoints(tmp_path, read_only=True)
    with pytest.raises(UserError, match=r"checkpoints: cannot be written \(Permission denied\)"):
        checkpoint.check_place(tmp_path)
    denied = os.R_OK
    with pytest.raises(UserError, match=r"checkpoints: cannot be read \(Permission denied\)"):
        Checkpoints(tmp_path, read_only=True)
