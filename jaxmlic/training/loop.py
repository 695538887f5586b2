"""The one loop for every system: trains, logs, validates, saves, and continues what a run folder holds."""

import collections
import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import distributed, progress, sharding, storage
from jaxmlic.data import datasets, loader
from jaxmlic.data.prefetch import PlacedBatches
from jaxmlic.errors import check_least
from jaxmlic.evaluation import scoring
from jaxmlic.inputs import open_source
from jaxmlic.models.heads import contract
from jaxmlic.training import closed_form, optim, run_folder, starting_point, targets
from jaxmlic.training import state as state_lib
from jaxmlic.training.checkpoint import Checkpoints, check_place
from jaxmlic.training.logs import goodput, metrics_log, profile, trackers
from jaxmlic.training.state import TrainState
from jaxmlic.training.step import check_batch, check_finite, compiler_options, make_step_fn


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `fit` ended: at which step, whether that is the end, and the signal that stopped it, if any."""

    step: int
    finished: bool
    stopped_by: int | None = None


@dataclasses.dataclass(frozen=True)
class _Work:
    """What a call of `fit` works with: opened by it, and closed at its end."""

    iterator: Iterator[loader.Batch]
    val_reader: loader.RowReader | None
    checkpoints: Checkpoints
    log: metrics_log.MetricsLog
    bar: progress.Progress
    stop: distributed.Stop
    time_spent: goodput.Goodput
    trace: profile.Profile


@dataclasses.dataclass
class Trainer:
    """Everything a run needs, built once: data, model, step, checkpoints."""

    config: ConfigDict
    workdir: str
    mesh: jax.sharding.Mesh = dataclasses.field(default_factory=sharding.make_mesh)
    started: float = dataclasses.field(default_factory=time.monotonic)
    group: str = ""  # what trackers put the run under

    def __post_init__(self):
        config = self.config
        check_batch(config, self.mesh.size)
        scoring.check_rules(config)
        self.source = open_source(config)
        self.dataset = datasets.load(config.data.name, config.data.dir or None)
        self.train_view, self.val_view = targets.training_views(config, self.dataset, self.workdir)
        self.trained_classes = targets.trained_classes(self.train_view)
        self.head = contract.find(config.head)
        self.model = contract.make_model(self.head, config, len(self.dataset.class_names), len(self.train_view))
        self.tx, self.multipliers, self.learning_rate, self.total = state_lib.optimizer(
            config, self.model, self.source.example(), len(self.train_view)
        )
        self.source.check_training(self.multipliers)
        self.trainable = [name for name, rate in self.multipliers.items() if rate is not None]
        convert = optim.steps_of(config, len(self.train_view), self.total)
        self.every = {
            name: max(1, convert(config.train[f"{name}_every"], f"train.{name}_every"))
            for name in ("eval", "checkpoint", "log")
        }
        self.keep_steps = self._keep_steps()
        examples, whole = len(self.train_view), sharding.replicated(self.mesh)
        shapes = state_lib.abstract(
            config, self.model, self.source.example(), examples, self.mesh, config.train.shard_state
        )
        self.place = jax.tree.map(lambda x: x.sharding, shapes)  # of the state's arrays
        closed_form.check(config, self.head, self.multipliers, self.total)
        parts, self.step_examples = (self.head, self.model, config, self.source), config.train.batch_size
        if contract.has_closed_form(self.head):
            self.train_step = closed_form.make_step(*parts, self.train_view, self.mesh, self.workdir, print)
            self.step_examples = examples
        else:
            self.train_step = jax.jit(
                make_step_fn(*parts, self.tx, self.multipliers, examples, self.mesh),
                in_shardings=(self.place, sharding.split(self.mesh)),
                out_shardings=(self.place, whole),
                donate_argnums=0,
                compiler_options=compiler_options(config),
            )
        self.eval_variables = state_lib.eval_variables
        if config.train.shard_state:
            self.eval_variables = jax.jit(state_lib.eval_variables, out_shardings=whole)
        self.predict_step = scoring.make_predict_step(self.head, self.model, self.mesh)

    def _keep_steps(self) -> int:
        """Checkpoints at multiples of so many steps are kept, by `config.train.keep_every`; 0 = none."""
        check_least("train.keep_every", self.config.train.keep_every, 0)
        saved = [self.every["checkpoint"], *([self.every["eval"]] if self.val_view else [])]
        return self.config.train.keep_every * min(saved)

    def initial_state(self, restored: bool = False) -> TrainState:
        """A state from scratch, with the trunk's pretrained weights or from another run, as the config says.

        restored: a checkpoint will replace all of it, so the files that the config names are not needed any more.
        """
        # It runs once: on the CPU, optimising the unrolled random bits would take longer than everything else.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        example, key = self.source.example(), jax.random.key(self.config.seed)
        init = jax.jit(
            lambda: state_lib.create(self.config, self.model, example, self.tx, self.multipliers, key),
            out_shardings=self.place,
            compiler_options=options,
        )
        state = init()
        if restored:
            return state
        statistics = contract.LabelStatistics(self.train_view.labels, list(self.dataset.class_names))
        fixed = sorted(self.multipliers.keys() - set(self.trainable if self.total else ()))
        state, notes = starting_point.apply(state, self.config, self.head, statistics, self.mesh, fixed)
        print(*notes, sep="\n", end="\n" if notes else "")
        return jax.device_put(state, self.place)

    def readers(self) -> tuple[loader.RowReader, loader.RowReader | None]:
        """Of the training and the validation examples."""
        train = self.source.train_reader(self.train_view)
        return train, self.source.validation_reader(self.val_view) if self.val_view else None

    def validate(
        self,
        state: TrainState,
        reader: loader.RowReader,
        stop: Callable[[], bool] = lambda: False,
        training: progress.Progress | None = None,
    ) -> dict[str, float | str] | None:
        """Metrics on the validation examples, and the threshold (a logit) that suits them best.

        stop: None is returned where it says so. training: the bar of the training that waits for this.
        """
        with progress.Progress("validation", len(reader), transient=True, within=training) as bar:
            found = scoring.score(
                self.predict_step,
                self.eval_variables(state),
                reader,
                self.mesh,
                batch_size=scoring.batch_size_for(self.config, self.mesh),
                threads=self.config.data.threads,
                bar=bar,
                stop=stop,
            )
        return None if found is None else scoring.validation_numbers(self.config, *found[:2], self.trained_classes)

    def fit(self, profiled: tuple[int | None, int] | None = None) -> Outcome:
        """Trains to the end, or until SIGTERM or Ctrl-C, which save first; continues what the run folder holds.

        With several processes a signal to any of them stops all at one step.
        profiled: steps to trace, as `profile.parse` gives them.
        """
        distributed.check_same(run_folder.must_agree(self.config, self.train_view, self.workdir))
        with contextlib.ExitStack() as opened:
            lock = distributed.all_or_none(lambda: run_folder.lock(self.workdir))
            opened.enter_context(contextlib.closing(lock))
            return self._fit(opened, profiled)

    def _fit(self, opened: contextlib.ExitStack, profiled: tuple[int | None, int] | None) -> Outcome:
        time_spent = opened.enter_context(
            contextlib.closing(goodput.Goodput(self.workdir, self.started, active=distributed.is_main()))
        )
        record = self.source.fingerprint(self.train_view)
        distributed.all_or_none(lambda: run_folder.claim(self.workdir, self.config, self.train_view, record))
        opened.enter_context(run_folder.noting_failure(self.workdir))
        notes = targets.keep(self.config, self.workdir, self.train_view)
        print(*notes, sep="\n", end="\n" if notes else "")
        distributed.wait_for_all("claimed")
        distributed.all_or_none(lambda: run_folder.check_shared(self.workdir))
        readers = distributed.all_or_none(self.readers)
        batches = loader.train_iterator(
            readers[0],
            self.config.train.batch_size,
            seed=self.config.seed,
            threads=self.config.data.threads,
            difficult=self.config.data.difficult,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        iterator = PlacedBatches(
            batches, lambda batch: sharding.put_for_jit(batch, self.mesh), self.config.train.prefetch
        )
        checkpoints = Checkpoints(self.workdir, self.config.eval.metric, keep_steps=self.keep_steps)
        opened.enter_context(contextlib.closing(checkpoints))
        # Where training starts: 1. the run folder's last checkpoint, 2. another run, 3. pretrained weights, 4. scratch.
        start = checkpoints.latest() or 0
        state = self.initial_state(restored=start > 0)
        if start:
            start, state = checkpoints.restore_latest(state, iterator, report=print)
        if distributed.is_main():
            run_folder.note_start(self.workdir, start)
        time_spent.start(start)
        trace = profile.Profile(profiled, self.workdir, start, active=distributed.is_main())
        opened.callback(trace.stop)
        tracked = None
        if distributed.is_main():
            tracked = opened.enter_context(contextlib.closing(trackers.Trackers(self.config, self.workdir, self.group)))
        log = opened.enter_context(
            contextlib.closing(metrics_log.MetricsLog(self.workdir, start, distributed.is_main(), tracked))
        )
        batch = self.step_examples
        # In a log the lines are those of `log_every`.
        bar = opened.enter_context(
            progress.Progress("train", self.total * batch, "img", done=start * batch, log_seconds=math.inf)
        )
        if start:
            bar.write(f"continuing {self.workdir} from step {start} of {self.total}")
        with distributed.Stop() as stop:
            work = _Work(iterator, readers[1], checkpoints, log, bar, stop, time_spent, trace)
            outcome = self._loop(state, start, work)
        if line := trace.stop():
            bar.write(line)
        with time_spent.span("saving"):
            checkpoints.wait()
        bar.write(f"time: {time_spent.text()}")
        if outcome.finished:
            best = checkpoints.best()
            storage.write_json(storage.to_path(self.workdir) / run_folder.RESULT_FILE, self.result(best))
            distributed.wait_for_all("result")
        return outcome

    def _loop(self, state: TrainState, step: int, work: "_Work") -> Outcome:
        pending, clock, clock_step = collections.deque(), time.monotonic(), step
        bar, log, time_spent, stop = work.bar, work.log, work.time_spent, work.stop
        stopped = stop.now()
        # A notice that came during an evaluation ended it, and the checkpoint has no score.
        unscored = step > 0 and self._evaluates(step, work) and not work.checkpoints.has_score(step)
        if (unscored or not self.total) and not stopped:  # without a step, what was begun with is the result
            stopped = unscored = not self._evaluate_and_save(step, state, work)
        while step < self.total and not stopped:
            work.trace.before(step)
            with time_spent.span("input"):
                batch = next(work.iterator)
            state, scalars = self.train_step(state, batch)
            pending.append(scalars)
            step += 1
            bar.advance(self.step_examples)
            if len(pending) > 2:  # let the host run two steps ahead, no further: batches wait in device memory
                jax.block_until_ready(pending[-3]["loss"])
            if line := work.trace.after(step, scalars):
                bar.write(line)
            end = step == self.total
            if step % self.every["log"] == 0 or end:
                seconds, clock = time.monotonic() - clock, time.monotonic()
                row = self._means(pending, step)
                row["img_per_s"] = (step - clock_step) * self.step_examples / seconds
                pending.clear()
                clock_step = step
                check_finite(state.guard, self.trainable)
                log.write(step, row | time_spent.row())
                bar.report(f"step {step}/{self.total}  epoch {row['epoch']:.2f}  loss {row['train/loss']:.4f}")
            if self._evaluates(step, work) or end or step % self.every["checkpoint"] == 0:
                unscored = not self._evaluate_and_save(step, state, work)
                clock, clock_step = time.monotonic(), step
            stopped = unscored or stop.now()
        if stopped:
            check_finite(state.guard, self.trainable)
            self._save(step, state, work, None)
            bar.write(
                f"stopped at step {step} by {signal.Signals(stop.signal).name}; saved. The same command continues"
            )
        return Outcome(step, step == self.total and not unscored, stop.signal)

    def _evaluates(self, step: int, work: "_Work") -> bool:
        """Whether the validation examples are scored after this step."""
        # The last regular evaluation is left out where the final one follows soon.
        due = step % self.every["eval"] == 0 and self.total - step > self.every["eval"] / 2
        return work.val_reader is not None and (due or step == self.total)

    def _evaluate_and_save(self, step: int, state: TrainState, work: "_Work") -> bool:
        """False where a notice ended the evaluation: nothing is saved then, and the score is missing."""
        check_finite(state.guard, self.trainable)
        scores = None
        if self._evaluates(step, work):
            with work.time_spent.span("evaluation"):
                scores = self.validate(state, work.val_reader, work.stop.now, work.bar)
            if scores is None:
                return False
            work.log.write(step, scores)
            work.bar.write(f"step {step}: validation {self._headline(scores)}")
        self._save(step, state, work, scores)
        return True

    def _save(self, step: int, state: TrainState, work: "_Work", scores: dict | None) -> None:
        metrics = None
        if scores is not None:
            name = self.config.eval.metric
            value = scores[f"val/{name}"]
            metrics = {name: value if np.isfinite(value) else -1.0}  # an undefined score never counts as best
        work.log.flush()  # before the save: a run that continues there has the rows up to there
        with work.time_spent.span("saving"):
            work.checkpoints.save(step, state, work.iterator, metrics)
        work.time_spent.save(step)

    def _means(self, pending: collections.deque, step: int) -> dict[str, float]:
        """Means since the last report. The only place where the loop waits for numbers from the device."""
        rows = jax.device_get(list(pending))
        means = {f"train/{name}": float(np.mean([row[name] for row in rows])) for name in rows[0]}
        epoch = step * self.step_examples / len(self.train_view)
        return {"epoch": epoch, **means, "train/lr": float(self.learning_rate(step - 1))}

    def _headline(self, scores: dict) -> str:
        name = self.config.eval.metric
        return f"{name} {100 * scores[f'val/{name}']:.2f} ({scores['val/protocol']}, {len(self.val_view)} images)"

    def result(self, best: int) -> dict:
        """What result.json says of the complete run, whose best checkpoint is of step `best`."""
        scored = [row for row in metrics_log.read(self.workdir) if row["step"] == best and "val/protocol" in row]
        return {"finished": True, "step": self.total, "best_step": best, **(scored[-1] if scored else {})}


def run(config: ConfigDict, workdir: str, profiled: tuple[int | None, int] | None = None, group: str = "") -> Outcome:
    """Trains `config` in `workdir`; a complete run is left as it is.

    profiled: as in `Trainer.fit`. group: what trackers put the run under.
    """
    trackers.check(config.train.trackers)
    sharding.use_cpu_devices(config.train.cpu_devices, config.train.batch_size)
    distributed.all_or_none(lambda: (config_lib.check_buckets(config), check_place(workdir)))
    trainer = distributed.all_or_none(lambda: Trainer(config, workdir, group=group))
    if run_folder.result(workdir) is not None:
        run_folder.claim(workdir, config, trainer.train_view, trainer.source.fingerprint(trainer.train_view))
        print(f"{workdir} is complete (step {trainer.total}); evaluate it with: jaxmlic evaluate --workdir={workdir}")
        return Outcome(trainer.total, True)
    outcome = trainer.fit(profiled)
    if outcome.finished:
        found = run_folder.result(workdir)
        name = f"val/{config.eval.metric}"
        scored = f", {name} {100 * found[name]:.2f} ({found['val/protocol']})" if found.get(name) is not None else ""
        print(f"{workdir}: {outcome.step} steps done; best checkpoint: step {found['best_step']}{scored}")
    return outcome
