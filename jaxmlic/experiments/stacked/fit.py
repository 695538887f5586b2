"""The loop of a group of runs: trains, logs, validates and saves as `training.loop` does for one."""

import collections
import contextlib
import copy
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from jaxmlic import distributed, metrics, progress, sharding, storage
from jaxmlic import run as run_lib
from jaxmlic.data import loader
from jaxmlic.errors import UserError
from jaxmlic.evaluation import scoring
from jaxmlic.experiments import decisions, runs
from jaxmlic.experiments.stacked import arrays, numbers, program
from jaxmlic.experiments.stacked.lanes import Lane
from jaxmlic.models.heads.contract import Prediction
from jaxmlic.reports import score_report
from jaxmlic.training import run_folder
from jaxmlic.training.logs import goodput, metrics_log, trackers
from jaxmlic.training.state import TrainState
from jaxmlic.training.step import check_finite

_SAVE_SECONDS = 120.0  # between checkpoints of evaluations: meanwhile the best states wait in memory


class Group:
    """Lanes that one program trains.

    Attributes:
      lanes: the L runs; one with a `failure` is computed on, and neither logged nor saved.
      step: how many steps they have done.
    """

    def __init__(self, lanes: Sequence[Lane], report: Callable[[str], None]):
        self.lanes, self.step = lanes, lanes[0].start
        # Each run's record of its time: what all of them share is each one's.
        self._times = [goodput.Goodput(lane.workdir, lane.trainer.started) for lane in lanes]
        self._trainer = lanes[0].trainer
        devices = jax.devices()
        self._mesh = sharding.make_mesh(devices[: next(n for n in range(len(devices), 0, -1) if len(lanes) % n == 0)])
        numbers.check_losses(lanes)
        self._iterators = {lane.config.seed: lane.iterator() for lane in lanes}
        states, best, notes = arrays.initial_states(lanes, self._iterators)
        for note in notes:
            report(note)
        shared = arrays.in_common([*states, *best], [*lanes, *lanes])
        self._own = arrays.stack(states, shared, self._mesh)
        self._best = arrays.stack(best, shared, self._mesh)
        self._shared = jax.device_put(shared, sharding.replicated(self._mesh))
        self._arguments = program.arguments(lanes, self._mesh)
        self._rates = np.asarray(self._arguments["rates"])
        self._truth, axes = program.training_arrays(lanes, self._mesh)
        self._train = arrays.table([lane.train for lane in lanes], self._mesh)
        self._val = arrays.table([lane.validation for lane in lanes], self._mesh) if lanes[0].validation else None
        self._train_step = program.train_step(lanes[0], self._train, axes, None if len(self._iterators) == 1 else 0)

        self._predict_steps: dict[int | None, Callable] = {}  # by the axis of lanes of what they score

    def fit(self) -> int | None:
        """Trains to the end, or until a signal, which saves first; returns one that came. Failed lanes know why."""
        total, batch = self._trainer.total, self._trainer.config.train.batch_size
        for lane, time_spent in zip(self.lanes, self._times, strict=True):
            run_folder.note_start(lane.workdir, lane.start)
            time_spent.start(lane.start)
        logs = [
            metrics_log.MetricsLog(
                lane.workdir, lane.start, trackers=trackers.Trackers(lane.config, lane.workdir, lane.group)
            )
            for lane in self.lanes
        ]
        label = f"train {len(self.lanes)} runs at once"
        bar = progress.Progress(label, total * batch, "img", done=self.step * batch, log_seconds=math.inf)
        try:
            with distributed.Stop() as stop:
                self._loop(logs, bar, stop)
            with self._span("saving"):
                for _, lane in self._going():
                    lane.checkpoints.wait()
            bar.write(f"time: {self._times[0].text()}")
            for _, lane in self._going() if self.step == total else ():
                result = lane.trainer.result(lane.checkpoints.best())
                storage.write_json(lane.workdir / run_folder.RESULT_FILE, result)
        finally:
            bar.close()
            for log, time_spent in zip(logs, self._times, strict=True):
                log.close()
                time_spent.close()
        return stop.signal

    def _going(self) -> list[tuple[int, Lane]]:
        return [(number, lane) for number, lane in enumerate(self.lanes) if not lane.failure]

    def _loop(self, logs: list[metrics_log.MetricsLog], bar: progress.Progress, stop: distributed.Stop) -> None:
        trainer, every = self._trainer, self._trainer.every
        pending, clock, clock_step, saved = collections.deque(), time.monotonic(), self.step, time.monotonic()
        stopped = stop.now()
        while self.step < trainer.total and not stopped and self._going():
            pending.append(self._take_step())
            self.step += 1
            bar.advance(trainer.config.train.batch_size)
            if len(pending) > 2:  # as in the loop of one run
                jax.block_until_ready(pending[-3])
            end = self.step == trainer.total
            if self.step % every["log"] == 0 or end:
                rows = self._means(pending)
                seconds, clock = time.monotonic() - clock, time.monotonic()
                rate = (self.step - clock_step) * trainer.config.train.batch_size / seconds
                pending.clear()
                clock_step = self.step
                self._find_failures(bar)
                for number, _ in self._going():
                    logs[number].write(self.step, rows[number] | {"img_per_s": rate} | self._times[number].row())
                losses = [rows[number]["train/loss"] for number, _ in self._going()]
                if losses:
                    bar.report(f"step {self.step}/{trainer.total}  losses {min(losses):.4f} to {max(losses):.4f}")
            due = self.step % every["eval"] == 0 and trainer.total - self.step > every["eval"] / 2
            evaluates = self._val is not None and (due or end)
            asked = end or self.step % every["checkpoint"] == 0
            if evaluates or asked:
                self._find_failures(bar)
                with self._span("evaluation"):
                    values = self._validate(logs, bar) if evaluates else {}
                if asked or time.monotonic() - saved > _SAVE_SECONDS:
                    self._save(values, logs)
                    saved = time.monotonic()
                clock, clock_step = time.monotonic(), self.step
            stopped = stop.now()
        if stopped:
            self._find_failures(bar)
            self._save({}, logs)
            bar.write(
                f"stopped at step {self.step} by {signal.Signals(stop.signal).name}; saved. The same command continues"
            )

    def _take_step(self) -> dict[str, jax.Array]:
        with self._span("input"):
            found = {seed: next(iterator)["rows"] for seed, iterator in self._iterators.items()}
        rows = [found[lane.config.seed] for lane in self.lanes]
        rows = rows[0] if len(found) == 1 else np.stack(rows)
        table = self._train
        self._own, scalars = self._train_step(
            self._arguments, self._shared, table.values, table.records, self._truth, self._own, rows
        )
        return scalars

    def _means(self, pending: collections.deque) -> list[dict[str, float]]:
        """A row of the log for each lane, as `training.loop` makes it."""
        rows = jax.device_get(list(pending))
        epoch = self.step * self._trainer.config.train.batch_size / len(self._trainer.train_view)
        found = []
        for number in range(len(self.lanes)):
            means = {f"train/{name}": float(np.mean([row[name][number] for row in rows])) for name in rows[0]}
            found.append({"epoch": epoch, **means, "train/lr": float(self._rates[number, self.step - 1])})
        return found

    def _find_failures(self, bar: progress.Progress) -> None:
        """Gives lanes whose loss or gradients are not finite their `failure`, and saves their best state."""
        guards, best = jax.device_get(self._own.guard), None
        for number, lane in self._going():
            try:
                check_finite(jax.tree.map(lambda x, number=number: x[number], guards), lane.trainer.trainable)
            except UserError as error:
                lane.failure = str(error)
                bar.write(f"{lane.title}: {error}")
                best = jax.device_get(self._best) if best is None else best
                self._save_best(number, lane, best)

    def _validate(self, logs: list[metrics_log.MetricsLog], bar: progress.Progress) -> dict[int, float]:
        """{lane: its validation score}, logged; better states than the best so far are kept."""
        predictions = self._score(self._own, self._val, len(self._trainer.val_view))
        values, better = {}, np.zeros(len(self.lanes), bool)
        for number, lane in self._going():
            row = scoring.validation_numbers(
                lane.config, predictions[number], lane.trainer.val_view.labels, lane.trainer.trained_classes
            )
            logs[number].write(self.step, row)
            value = row[f"val/{lane.metric}"]
            values[number] = value if np.isfinite(value) else -1.0  # an undefined score never counts as best
            if values[number] >= lane.best_value:
                better[number] = True
                lane.best_step, lane.best_value = self.step, values[number]
                lane.best_position = copy.deepcopy(self._iterators[lane.config.seed].get_state())
        self._best = arrays.keep_where(better, self._own, self._best)
        if values:
            name, low, high = self._trainer.config.eval.metric, min(values.values()), max(values.values())
            bar.write(f"step {self.step}: validation {name} {100 * low:.2f} to {100 * high:.2f} of {len(values)} runs")
        return values

    def _score(self, own: TrainState, table: arrays.Table, count: int) -> list[Prediction]:
        """Each lane's prediction, numpy, of its `count` examples in the table."""
        records = np.asarray(table.records)
        axis = None if records.ndim == 1 else 0
        if axis not in self._predict_steps:
            self._predict_steps[axis] = program.predict_step(self.lanes[0], table.unpack, axis)
        predict = self._predict_steps[axis]
        size, parts = scoring.batch_size_for(self._trainer.config, self._trainer.mesh), []
        for start in range(0, count, size):
            rows = np.arange(start, start + size)
            rows = np.where(rows < count, rows, 0)
            found = predict(self._arguments, self._shared, table.values, own, records[..., rows])
            parts.append(jax.device_get(found))
        stacked = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1)[:, :count], *parts)
        return [jax.tree.map(lambda x, number=number: x[number], stacked) for number in range(len(self.lanes))]

    @contextlib.contextmanager
    def _span(self, kind: str) -> Iterator[None]:
        with contextlib.ExitStack() as spans:
            for time_spent in self._times:
                spans.enter_context(time_spent.span(kind))
            yield

    def _save(self, values: dict[int, float], logs: list[metrics_log.MetricsLog]) -> None:
        """Checkpoints of the best states that have none yet and of the current ones. values: their scores by lane."""
        for number, _ in self._going():
            logs[number].flush()  # before the save, as in the loop of one run
        with self._span("saving"):
            self._save_lanes(values)
        for number, _ in self._going():
            self._times[number].save(self.step)

    def _save_lanes(self, values: dict[int, float]) -> None:
        best, own = jax.device_get((self._best, self._own))
        for number, lane in self._going():
            if lane.best_step == self.step:
                lane.best_position = None
            self._save_best(number, lane, best)
            scores = {lane.metric: values[number]} if number in values else None
            self._save_lane(lane, self.step, own, number, self._iterators[lane.config.seed], scores)

    def _save_best(self, number: int, lane: Lane, best: TrainState) -> None:
        if lane.best_position is not None:
            iterator = lane.iterator()
            iterator.set_state(lane.best_position)
            self._save_lane(lane, lane.best_step, best, number, iterator, {lane.metric: lane.best_value})
            lane.best_position = None

    def _save_lane(self, lane: Lane, step: int, own: TrainState, number: int, iterator, scores: dict | None) -> None:
        state = arrays.select(own, number, self._shared, lane.trainer.mesh)
        lane.checkpoints.save(step, state, iterator, scores)

    def evaluate(self) -> None:
        """Scores the test split with each lane's best state, as `runs.evaluate` does for one run."""
        split = self._trainer.config.data.test_split
        going = self._going()
        views = [
            loader.find_view(lane.config.data, lane.trainer.dataset, lane.config.seed, split) for lane in self.lanes
        ]
        readers = [lane.trainer.source.eval_reader(view) for lane, view in zip(self.lanes, views, strict=True)]
        by_rule = any(metrics.get_protocol(lane.config.eval.protocol).by_rule for lane in self.lanes)
        if by_rule or any(reader.stored is None for reader in readers):
            for _, lane in going:
                decisions.learn_missing(lane.workdir, lane.config.eval.protocol)
                runs.evaluate(lane.workdir)
            return
        own = self._own if self._val is None else self._best
        predictions = self._score(own, arrays.table(readers, self._mesh), len(views[0]))
        for number, lane in going:
            scored = predictions[number], views[number].labels, views[number].ids
            protocol = metrics.get_protocol(lane.config.eval.protocol).name
            trained = lane.trainer.trained_classes if lane.config.eval.trained_classes_only else None
            record, step = run_folder.load(lane.workdir), lane.checkpoints.best()
            found = run_lib.evaluation(record, step, scored, split, protocol, trained)
            path = run_folder.scores_file(lane.workdir, split)
            score_report.write(path, found.scores, found.numbers, {"split": split, "step": step})
