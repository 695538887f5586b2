"""The one trainer: a jitted, donated step over a mesh, one loop for every system, `jaxmlic train`."""

import collections
import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxmlic import metrics, progress, sharding
from jaxmlic.data import augment, datasets, label_noise, loader
from jaxmlic.errors import UserError
from jaxmlic.evaluation import scoring
from jaxmlic.inputs import cache as cache_lib
from jaxmlic.inputs import feature_file
from jaxmlic.inputs.images import ImageReader
from jaxmlic.models.heads import contract
from jaxmlic.propagation import label_file
from jaxmlic.training import metrics_log, optim, run_folder
from jaxmlic.training import state as state_lib
from jaxmlic.training.checkpoint import Checkpoints
from jaxmlic.training.state import Guard, TrainState

Step = Callable[[TrainState, dict], tuple[TrainState, dict]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `fit` ended: at which step, whether that is the end, and the signal that stopped it, if any."""

    step: int
    finished: bool
    stopped_by: int | None = None


def loss_and_grads(
    head: ModuleType, model: nn.Module, config: ConfigDict, paces: dict, state: TrainState, batch: dict, key: jax.Array
) -> tuple[jax.Array, dict, dict, dict]:
    """Mean loss over the examples that are not padding, scalars to log, new batch statistics, gradients by name.

    `batch["weight"]` float32 [B], where there is one, multiplies the examples' losses and not the number they are
    divided by, so that a batch of doubtful examples takes a small step.
    Only the trainable parameters are differentiated, so a frozen trunk costs its forward pass alone.
    """
    trainable, frozen = state_lib.partition(state.params, paces)
    counted = batch["mask"].astype(jnp.float32)
    # Unknown, so that a loss that counts over the batch does not count padding.
    labels = jnp.where(batch["mask"][:, None], batch["labels"], jnp.int8(-1))

    def loss_fn(trainable: dict) -> tuple[jax.Array, tuple[dict, dict]]:
        variables = {
            "params": optim.unflatten({**frozen, **trainable}),
            "batch_stats": state.batch_stats,
            "constants": state.constants,
        }
        outputs, updates = model.apply(
            variables,
            batch["image"],
            train=True,
            labels=labels,
            frozen_trunk=not any(name.startswith("trunk/") for name in trainable),
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        per_example, scalars = head.loss_fn(outputs, labels, **config.loss)
        mean = jnp.sum(per_example * counted * batch.get("weight", 1.0)) / jnp.maximum(jnp.sum(counted), 1.0)
        return mean, (scalars, updates.get("batch_stats", state.batch_stats))

    (loss, (scalars, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
    return loss, scalars, batch_stats, grads


def make_step_fn(
    head: ModuleType,
    model: nn.Module,
    config: ConfigDict,
    tx: optax.GradientTransformation,
    paces: dict,
    examples: int,
) -> Step:
    """The pure step (state, batch) -> (state, scalars); jit it, or wrap it as you like.

    Randomness is folded from config.seed and the state's step, so the step alone decides it. `examples`, the size of
    the training split, tells the epoch of a step.
    """
    augment.check_mixup(config.augment.mixup)  # before the data are read

    def step_fn(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
        if config.data.source != "images":
            images, labels = cache_lib.draw(augment_key, batch, config), batch["labels"]
        else:
            images, labels = augment.augment(
                augment_key,
                batch["image"],
                batch["labels"],
                config.data.image_size,
                epoch_of(state.step, config.train.batch_size, examples),
                **config.augment,
            )
        loss, scalars, batch_stats, grads = loss_and_grads(
            head, model, config, paces, state, {**batch, "image": images, "labels": labels}, dropout_key
        )
        return apply_gradients(config, tx, paces, state, loss, batch_stats, grads, scalars)

    return step_fn


def epoch_of(step: jax.Array, batch_size: int, examples: int) -> jax.Array:
    """The epoch, from 0, of the first example of step `step` (int32 []): batches run over the ends of epochs.

    In two parts, because `step * batch_size` would leave int32 after 2 billion examples.
    """
    return step // examples * batch_size + step % examples * batch_size // examples


def apply_gradients(
    config: ConfigDict,
    tx: optax.GradientTransformation,
    paces: dict,
    state: TrainState,
    loss: jax.Array,
    batch_stats: dict,
    grads: dict,
    scalars: dict,
) -> tuple[TrainState, dict]:
    """The optimizer's update, the moving average and the guard."""
    trainable, frozen = state_lib.partition(state.params, paces)
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    squares = jnp.stack([jnp.sum(jnp.square(grads[name].astype(jnp.float32))) for name in sorted(grads)])
    new = state.replace(
        step=state.step + 1,
        params=optim.unflatten({**frozen, **trainable}),
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=optim.average(state.ema, trainable, config.optim.ema, state.step) if state.ema else {},
        guard=watch(state.guard, state.step, loss, squares),
    )
    return new, {"loss": loss, "grad_norm": jnp.sqrt(jnp.sum(squares)), **scalars}


def watch(guard: Guard, step: jax.Array, loss: jax.Array, squares: jax.Array) -> Guard:
    """Remembers the first step at which the loss or a gradient (`squares` [P], sums of squares) was not finite."""
    bad_loss, bad = ~jnp.isfinite(loss), ~jnp.isfinite(squares)
    first = (guard.step < 0) & (bad_loss | jnp.any(bad))
    return Guard(
        step=jnp.where(first, step, guard.step),
        loss=jnp.where(first, bad_loss, guard.loss),
        gradients=jnp.where(first, bad, guard.gradients),
    )


def check_guard(guard: Guard, names: list[str]) -> None:
    """Raises UserError naming the step and the parameters if training met a value that is not finite."""
    if int(guard.step) < 0:
        return
    bad = [name for name, flag in zip(sorted(names), np.asarray(guard.gradients), strict=True) if flag]
    where = f"the gradients of {len(bad)} of {len(names)} parameters (first: {bad[0]})" if bad else "the loss"
    also = "the loss and " if bad and bool(guard.loss) else ""
    raise UserError(
        f"training stopped: at step {int(guard.step)} {also}{where} became NaN or infinite; none since was saved, so "
        "the last checkpoint is good. Lower config.optim.lr, set config.optim.clip_norm or config.model.dtype='float32'"
    )


@dataclasses.dataclass
class Trainer:
    """Everything a run needs, built once: data, model, step, checkpoints."""

    config: ConfigDict
    workdir: str
    mesh: jax.sharding.Mesh = dataclasses.field(default_factory=sharding.make_mesh)

    def __post_init__(self):
        config = self.config
        if config.train.batch_size % self.mesh.size:
            raise UserError(
                f"config.train.batch_size = {config.train.batch_size} cannot be divided over {self.mesh.size} devices"
            )
        scoring.check_rules(config)
        cache_lib.check_source(config)
        self.dataset = datasets.load(config.data.name, config.data.dir or None)
        train, self.val_view = label_file.training_views(config, self.dataset, self.workdir)
        self.train_view = label_noise.add(config.data, train, config.seed)
        self.head = contract.find(config.head)
        self.model = self.head.Model(len(self.dataset.class_names), **config.model)
        self.tx, self.paces, self.learning_rate, self.total = state_lib.optimizer(
            config, self.model, len(self.train_view)
        )
        if config.data.source == "features":
            cache_lib.check(config, self.paces)
        self.trainable = [name for name, pace in self.paces.items() if pace is not None]
        convert = optim.steps_of(config, len(self.train_view), self.total)
        self.every = {
            name: max(1, convert(config.train[f"{name}_every"], f"train.{name}_every"))
            for name in ("eval", "checkpoint", "log")
        }
        place = sharding.replicated(self.mesh)
        self.train_step = jax.jit(
            make_step_fn(self.head, self.model, config, self.tx, self.paces, len(self.train_view)),
            in_shardings=(place, sharding.split(self.mesh)),
            out_shardings=(place, place),
            donate_argnums=0,
        )
        self.predict_step = scoring.make_predict_step(self.head, self.model, self.mesh)

    def initial_state(self, restored: bool = False) -> TrainState:
        """A state from scratch, with the trunk's pretrained weights or from another run, as the config says.

        restored: a checkpoint will replace all of it, so the files that the config names are not needed any more.
        """
        # It runs once: on the CPU, optimising the unrolled random bits would take longer than everything else.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        init = jax.jit(
            lambda: state_lib.create(self.config, self.model, self.tx, self.paces, jax.random.key(self.config.seed)),
            out_shardings=sharding.replicated(self.mesh),
            compiler_options=options,
        )
        state = init()
        if restored:
            return state
        if state.constants:
            statistics = contract.LabelStatistics(self.train_view.labels, list(self.dataset.class_names))
            constants, notes = self.head.constants(self.config, statistics)
            print(*notes, sep="\n", end="\n" if notes else "")
            state = state_lib.load_constants(state, constants)
        if self.config.pretrained:
            state = state_lib.load_trunk(state, self.config.pretrained, self.config.model.trunk)
        return self._started_from(state, self.config.start_from) if self.config.start_from else state

    def _started_from(self, state: TrainState, workdir: str) -> TrainState:
        """The state with what the best checkpoint of another run has in common with it."""
        try:
            found = run_folder.load(workdir)
            model = contract.find(found.config.head).Model(len(found.class_names), **found.config.model)
            variables, step = scoring.restore_variables(found, model, self.mesh)
        except UserError as error:
            raise UserError(f"config.start_from: {error}") from None
        only = "" if found.class_names == list(self.dataset.class_names) else "trunk/"
        state, taken = state_lib.take_over(state, variables, only)
        if not taken:
            raise UserError(f"config.start_from: the run in {workdir} has no parameter in common with this one")
        total = len(jax.tree.leaves((state.params, state.batch_stats)))
        print(f"starting from {workdir} at step {step}: {len(taken)} of {total} arrays")
        return state

    def readers(self) -> tuple[loader.RowReader, loader.RowReader | None]:
        """Of the training and the validation examples."""
        data = self.config.data
        if data.source == "file":
            val = feature_file.Reader(self.val_view, self.config) if self.val_view else None
            return feature_file.Reader(self.train_view, self.config), val
        if data.source == "features":
            key = cache_lib.key_fields(self.config, self.dataset)
            train = cache_lib.Reader(self.train_view, self.config, train=True, fields=key)
            if self.val_view is None:
                return train, None
            return train, cache_lib.Reader(self.val_view, self.config, train=False, fields=key)
        kw = {"cache": data.cache, "threads": data.threads}
        train = ImageReader(self.train_view, data.resize or data.image_size, **kw)
        return train, ImageReader(self.val_view, data.image_size, **kw) if self.val_view else None

    def validate(self, state: TrainState, reader: ImageReader) -> dict[str, float | str]:
        """Metrics on the validation examples, and the threshold that suits them best."""
        prediction, labels, _ = scoring.score(
            self.predict_step,
            state_lib.eval_variables(state),
            reader,
            self.mesh,
            batch_size=scoring.batch_size_for(self.config, self.mesh),
            threads=self.config.data.threads,
        )
        numbers = scoring.report(self.config, prediction, labels, self.train_view)
        threshold, _ = metrics.best_threshold(prediction.scores, labels)
        plain = {f"val/{k}": float(v) for k, v in numbers.items() if isinstance(v, float | np.floating)}
        return {**plain, "val/protocol": numbers["protocol"], "val/best_threshold": float(threshold)}

    def fit(self) -> Outcome:
        """Trains to the end, or until SIGTERM or Ctrl-C, which save first; continues what the run folder holds."""
        run_folder.claim(self.workdir, self.config, self.train_view)
        if jax.process_index() == 0:
            label_file.keep(self.config, self.workdir)
            if self.config.data.noise_rate:
                label_noise.save(self.workdir, self.train_view)
                print(label_noise.describe(self.train_view, self.config.data))
        readers = self.readers()
        iterator = loader.train_iterator(
            readers[0],
            self.config.train.batch_size,
            seed=self.config.seed,
            threads=self.config.data.threads,
            difficult=self.config.data.difficult,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        checkpoints = Checkpoints(self.workdir, self.config.eval.metric)
        # Where training starts: 1. the run folder's last checkpoint, 2. another run, 3. pretrained weights, 4. scratch.
        start = checkpoints.latest() or 0
        state = self.initial_state(restored=start > 0)
        if start:
            state = checkpoints.restore(start, state, iterator)
        log = metrics_log.MetricsLog(self.workdir, start, active=jax.process_index() == 0)
        bar = progress.Bar(self.total, self.config.train.batch_size, start)
        if start:
            bar.write(f"continuing {self.workdir} from step {start} of {self.total}")
        try:
            with stop_signals() as stop:
                state, outcome = self._loop(state, start, iterator, readers[1], checkpoints, log, bar, stop)
            checkpoints.wait()
            if outcome.finished:
                best = checkpoints.best()
                run_folder.write_json(run_folder.Path(self.workdir) / run_folder.RESULT_FILE, self._result(best))
        finally:
            bar.close()
            log.close()
            checkpoints.close()
        return outcome

    def _loop(
        self,
        state: TrainState,
        step: int,
        iterator: Iterator[loader.Batch],
        val_reader: ImageReader | None,
        checkpoints: Checkpoints,
        log: metrics_log.MetricsLog,
        bar: progress.Bar,
        stop: list[int],
    ) -> tuple[TrainState, Outcome]:
        pending, clock, clock_step = collections.deque(), time.monotonic(), step
        while step < self.total and not stop:
            state, scalars = self.train_step(state, sharding.put(next(iterator), self.mesh))
            pending.append(scalars)
            step += 1
            bar.advance(1)
            if len(pending) > 2:  # let the host run two steps ahead, no further: batches wait in device memory
                jax.block_until_ready(pending[-3])
            end = step == self.total
            if step % self.every["log"] == 0 or end:
                seconds, clock = time.monotonic() - clock, time.monotonic()
                row = self._means(pending, step)
                row["img_per_s"] = (step - clock_step) * self.config.train.batch_size / seconds
                pending.clear()
                clock_step = step
                check_guard(state.guard, self.trainable)
                log.write(step, row)
                bar.report(step, f"epoch {row['epoch']:.2f}  loss {row['train/loss']:.4f}")
            # The last regular evaluation is left out where the final one follows soon.
            due = step % self.every["eval"] == 0 and self.total - step > self.every["eval"] / 2
            evaluates = val_reader is not None and (due or end)
            if evaluates or end or step % self.every["checkpoint"] == 0:
                check_guard(state.guard, self.trainable)
                scores = self.validate(state, val_reader) if evaluates else None
                if scores:
                    log.write(step, scores)
                    bar.write(f"step {step}: validation {self._headline(scores)}")
                    clock, clock_step = time.monotonic(), step
                self._save(checkpoints, step, state, iterator, scores)
        if stop:
            check_guard(state.guard, self.trainable)
            self._save(checkpoints, step, state, iterator, None)
            bar.write(f"stopped at step {step} by {signal.Signals(stop[0]).name}; saved. The same command continues")
        return state, Outcome(step, step == self.total, stop[0] if stop else None)

    def _save(self, checkpoints: Checkpoints, step: int, state: TrainState, iterator: Iterator, scores: dict | None):
        name = self.config.eval.metric
        if scores is None:
            checkpoints.save(step, state, iterator)
        else:
            value = scores[f"val/{name}"]
            # An undefined score never counts as best.
            checkpoints.save(step, state, iterator, {name: value if np.isfinite(value) else -1.0})

    def _means(self, pending: collections.deque, step: int) -> dict[str, float]:
        """Means since the last report. The only place where the loop waits for numbers from the device."""
        rows = jax.device_get(list(pending))
        means = {f"train/{name}": float(np.mean([row[name] for row in rows])) for name in rows[0]}
        epoch = step * self.config.train.batch_size / len(self.train_view)
        return {"epoch": epoch, **means, "train/lr": float(self.learning_rate(step - 1))}

    def _headline(self, scores: dict) -> str:
        name = self.config.eval.metric
        return f"{name} {100 * scores[f'val/{name}']:.2f} ({scores['val/protocol']}, {len(self.val_view)} images)"

    def _result(self, best: int) -> dict:
        scored = [row for row in metrics_log.read(self.workdir) if row["step"] == best and "val/protocol" in row]
        return {"finished": True, "step": self.total, "best_step": best, **(scored[-1] if scored else {})}


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that fills with the SIGTERM or SIGINT received meanwhile; a second one acts as usual."""
    received: list[int] = []
    old = {}

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, old[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: no handlers, as under a notebook's executor
        pass
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def run(config: ConfigDict, workdir: str) -> Outcome:
    """Trains `config` in `workdir`; a complete run is left as it is."""
    sharding.use_cpu_devices(config.train.cpu_devices, config.train.batch_size)
    trainer = Trainer(config, workdir)
    if run_folder.result(workdir) is not None:
        run_folder.claim(workdir, config, trainer.train_view)
        print(f"{workdir} is complete (step {trainer.total}); evaluate it with: jaxmlic evaluate --workdir={workdir}")
        return Outcome(trainer.total, True)
    outcome = trainer.fit()
    if outcome.finished:
        found = run_folder.result(workdir)
        name = f"val/{config.eval.metric}"
        scored = f", {name} {100 * found[name]:.2f} ({found['val/protocol']})" if found.get(name) is not None else ""
        print(f"{workdir}: {outcome.step} steps done; best checkpoint: step {found['best_step']}{scored}")
    return outcome
