"""A finished run as an object: the door for commands, notebooks and services."""

import dataclasses
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic import metrics, sharding
from jaxmlic.data import loader
from jaxmlic.errors import UserError, unknown
from jaxmlic.evaluation import attribution, score_file, scoring
from jaxmlic.evaluation.decision import Decision
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.evaluation.thresholds import Thresholds
from jaxmlic.labels.neighbours import nearest
from jaxmlic.models.heads import contract
from jaxmlic.progress import Progress
from jaxmlic.run import steps
from jaxmlic.run.given import Images, as_given
from jaxmlic.run.predicted import Attention, Predictions, logit_of
from jaxmlic.run.restored import RestoredRun
from jaxmlic.run.scored import Evaluation, evaluation
from jaxmlic.training import restore, run_folder
from jaxmlic.training.logs import metrics_log

SPACES = ("image", "labels")
ATTENTION = ("weights", "steps", "grad_cam", "gradient")


def load(workdir: str | Path, data_dir: str | Path | None = None, step: int | None = None) -> "Run":
    """The run in a folder that `jaxmlic train` wrote, here or in a bucket, with its best checkpoint.

    Args:
      workdir: the run folder.
      data_dir: where the data sets are now, if not where the run found them.
      step: of another checkpoint that was kept, see `Run.steps`.

    Raises:
      UserError: there is no run, no whole checkpoint, or one of another model.
    """
    return Run(restore.restore(workdir, step=step), data_dir)


class Run(RestoredRun):
    """A run with the variables of its best checkpoint.

    Attributes:
      workdir: its folder.
      config: its config, locked.
      class_names: C names, in the order of scores, labels and label vectors.
      step: of the checkpoint.
      steps: of all checkpoints that were kept; `jaxmlic.load(workdir, step=...)` opens any of them.
    """

    def __repr__(self) -> str:
        return f"Run({str(self.workdir)!r}, {self.config.head}, {len(self.class_names)} classes, step {self.step})"

    def history(self) -> list[dict]:
        """The rows of metrics.jsonl: `step` and what was logged there."""
        return metrics_log.read(self.workdir)

    def scores(self, split: str | None = None) -> ScoreFile:
        """Scores float32 [N, C], labels and ids of a split, by default the test split.

        What `jaxmlic evaluate` stored in the run folder of this checkpoint, otherwise computed. Nothing is written.
        """
        name = split or self.config.data.test_split
        path = run_folder.scores_file(self.workdir, name)
        if path.is_file():
            found = score_file.load(path)
            if found.extra.get("step") == self.step and found.class_names == self.class_names and found.split == name:
                return found
        return self.evaluate(name).scores

    def evaluate(
        self, split: str | None = None, protocol: str | None = None, *, fitted: bool = False, progress: bool = False
    ) -> Evaluation:
        """Scores a split under a protocol, by default the run's own test split and protocol.

        Args:
          split: a split of the data set; "selection" is the part that selected the checkpoint, and "val" too, where the
            run carved one.
          protocol: a name that `metrics.get_protocol` knows. A learned one takes the rule of `jaxmlic thresholds`.
          fitted: decide by what `jaxmlic thresholds` fitted: thresholds in place of the logit 0, or the rule under its
            own protocol. UserError without any.
          progress: show it on stderr.
        """
        config, name = self.config, split or self.config.data.test_split
        rule = self.learned_decision()[0] if fitted and protocol is None else None
        rules = metrics.get_protocol(protocol or (rule.protocol if rule else config.eval.protocol))
        rule = self._required_rule(rules.name) if rules.by_rule else None
        thresholds = self._required_thresholds(rules.name) if fitted and rule is None else None
        view = loader.find_view(config.data, self.dataset, config.seed, name)
        label = f"evaluating {view.dataset.name}/{name}"
        with Progress(label, len(view), transient=True, shown=progress) as bar:
            scored = scoring.score(
                self._predict_step,
                self._restored.variables,
                self._restored.source.eval_reader(view),
                self._restored.mesh,
                batch_size=self._batch_size,
                threads=config.data.threads,
                bar=bar,
            )
        trained = self._trained_classes() if config.eval.trained_classes_only else None
        assert scored is not None  # nothing stops it
        if rule is not None:
            chosen = rule.choose_for(rules.name, np.asarray(scored[0].scores))
            scored = dataclasses.replace(scored[0], chosen=jnp.asarray(chosen), path=None), *scored[1:]
        return evaluation(self._restored.record, self.step, scored, name, rules.name, trained, thresholds, rule)

    def predict(
        self,
        images: Images,
        *,
        threshold: float | np.ndarray | None = None,
        logit: float | np.ndarray | None = None,
        fitted: bool = True,
        trace: bool = False,
        skip_unreadable: bool = False,
        progress: bool = False,
    ) -> Predictions:
        """Labels of images, in their order.

        Args:
          images: a file, a folder of them, encoded bytes, a PIL image, an array, or any number of these. Arrays are RGB
            of any size: uint8 [H, W, 3] in 0..255, float [H, W, 3] in 0..1, or [N, H, W, 3]. All are resized as in
            evaluation.
          threshold: probability from which on a label is predicted, or one for each class [C], where no decoder chooses
            the labels.
          logit: the same as a logit.
          fitted: without both of them, decide by what `jaxmlic thresholds` fitted, thresholds or a rule, where it did,
            and give calibrated probabilities; a warning where that belongs to another checkpoint. Otherwise
            0.5, the logit 0.
          trace: whether the head's steps are wanted too.
          skip_unreadable: files that cannot be read are left out and listed in `unreadable`, and are no error.
          progress: show it on stderr.

        Raises:
          UserError: files that cannot be read, all of them named; arrays that are no pixels; a run whose inputs are no
            photographs; a threshold that is no probability; a trace of a head that has no steps.
        """
        self._restored.source.check_photographs(self.workdir)
        if trace and not self.decides_in_steps:
            raise UserError(f"the head {self.config.head!r} of {self.workdir} labels images in one step: no trace")
        wanted = fitted and threshold is None and logit is None
        rule, stale = self.learned_decision() if wanted else (None, "")
        own, why = self.fitted_thresholds() if wanted and rule is None else (None, "")
        why = why or stale
        if why:
            warnings.warn(f"{why}. Not used: labels are predicted from 0.5 up", stacklevel=2)
        bound = self._bound(threshold, logit) if own is None else own.values
        files: list[str] = []
        unreadable: dict[str, str] = {}
        found: list[contract.Prediction] = []
        traces: list[contract.Trace] = []
        given = as_given(images)
        with Progress("predicting", len(given), transient=True, shown=progress) as bar:
            for names, pixels in self._batches(given, unreadable):
                prediction = jax.tree.map(sharding.gather, self._predict_step(self._restored.variables, pixels))
                count = len(names)
                found.append(jax.tree.map(lambda x, n=count: x[:n], prediction))
                if trace:
                    gathered = jax.tree.map(sharding.gather, self._trace_step(self._restored.variables, pixels))
                    traces += [jax.tree.map(lambda x, i=i: x[i], gathered) for i in range(count)]
                files += names
                bar.advance(len(files) + len(unreadable) - bar.done)
        if unreadable and not skip_unreadable:
            listed = ", ".join(f"{path} ({why})" for path, why in unreadable.items())
            raise UserError(
                f"{len(unreadable)} of {len(given)} images could not be read: {listed}; "
                "skip_unreadable=True labels the others"
            )
        if not found:
            found.append(jax.tree.map(lambda x: np.zeros((0, *x.shape[1:]), x.dtype), self._prediction_shapes))
        whole = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
        decoded = whole.chosen is not None
        limit, calibrated = None, None if own is None else own.calibrated(whole.scores)
        if decoded:
            chosen = whole.chosen
        elif rule is not None:
            chosen, calibrated = rule.choose(whole.scores), rule.calibration.logits(whole.scores)
        else:
            chosen, limit = whole.scores >= np.float32(bound), bound
        steps = traces if trace else None
        return Predictions(
            files, self.class_names, whole.scores, chosen, whole.path, unreadable, limit, steps, calibrated
        )

    def trace(self, image: Images) -> dict:
        """The steps that led to the labels of one image, and the paths found (see `steps.describe`).

        UserError for a head that labels images in one step.
        """
        found = self.predict(self._one(image), trace=True)
        assert found.traces is not None
        return steps.describe(found.traces[0], found.chosen[0], self.class_names)

    def label_embeddings(self) -> dict[str, np.ndarray]:
        """{name: float32 [C, D]}: the tables of label vectors that the head learned or was given; {} without any.

        Rows are in the order of `class_names`; rows of END and START are tables of their own, [1, D], NAME_end and
        NAME_start.
        """
        head = self._restored.head
        if not hasattr(head, "label_embeddings"):
            return {}
        return {name: np.asarray(table) for name, table in head.label_embeddings(self._restored.variables).items()}

    def label_table(self, table: str | None = None) -> np.ndarray:
        """One of `label_embeddings`, float32 [C, D]; None for "label_embedding", else the first."""
        count = len(self.class_names)
        tables = {name: rows for name, rows in self.label_embeddings().items() if len(rows) == count}
        if not tables:
            raise UserError(f"the head {self.config.head!r} of {self.workdir} has no vectors of labels")
        if table is None:
            table = "label_embedding" if "label_embedding" in tables else next(iter(tables))
        if table not in tables:
            raise unknown("table", table, tables)
        return tables[table]

    def nearest(self, label: str, k: int = 5, table: str | None = None) -> list[tuple[str, float]]:
        """The k labels with the highest cosine to a label's vector, and the cosines (Table 5 of CNN-RNN).

        table: one of `label_embeddings`; None for "label_embedding", else the first.
        """
        own = np.array([self._index(label)])
        vectors = self.label_table(table)
        order, cosines = nearest(vectors[own], vectors, k, own)
        return self._named(order[0], cosines[0])

    def nearest_to(self, image: Images, k: int = 5) -> list[tuple[str, float]]:
        """The k labels whose vectors are nearest to one image's in the space that both share (Fig. 9 of CNN-RNN).

        UserError for a head without such a space.
        """
        images, labels = self.joint_embedding(self._one(image))
        order, cosines = nearest(images, labels, k)
        return self._named(order[0], cosines[0])

    def image_embeddings(self, images: Images, space: str = "image") -> np.ndarray:
        """float32 [N, D]: the vectors of images.

        space: "image", the trunk's pooled output that the head reads; "labels", the space shared with label vectors.

        Raises UserError as `predict` does, and for a head without such a vector.
        """
        if space not in SPACES:
            raise unknown("space", space, SPACES)
        self._restored.source.check_photographs(self.workdir)
        if space == "labels":
            return self.joint_embedding(self.pictures(images).pixels)[0]
        unreadable: dict[str, str] = {}
        parts = []
        for names, pixels in self._batches(as_given(images), unreadable):
            parts.append(sharding.gather(self._pooled_step(self._restored.variables, pixels))[: len(names)])
        for path, why in unreadable.items():
            raise UserError(f"image {path} cannot be read ({why})")
        if not parts:
            raise UserError("no images")
        return np.concatenate(parts)

    def attention(self, image: Images, form: str | None = None, labels: list[str] | None = None) -> Attention:
        """Where the model looks in one image.

        Args:
          image: one, in any form of `predict`.
          form: "weights" over positions, which some heads compute; "steps", what each step of a path depends on;
            "grad_cam" and "gradient", what labels' scores depend on. None for the first that the head has.
          labels: for the last two; None for the predicted ones, or the best one where none is.
        """
        if form is not None and form not in ATTENTION:
            raise unknown("form", form, ATTENTION)
        pixels = self._one(image)
        form = form or self.attention_forms[0]
        if form == "weights":
            return Attention(pixels[0], {name: maps[0] for name, maps in self.attention_maps(pixels).items()}, form)
        if form == "steps":
            found = self.step_attention(pixels)
            tokens = [*self.class_names, steps.END]
            taken = found.taken[0].tolist()
            count = next((i + 1 for i, token in enumerate(taken) if token == len(self.class_names)), len(taken))
            names = [f"{i + 1} {tokens[token]}" for i, token in enumerate(taken[:count])]
            return Attention(pixels[0], dict(zip(names, found.maps[0], strict=False)), form)
        shown = labels if labels is not None else self._best(image)
        column = np.array([self._index(label) for label in shown])
        repeated = np.repeat(pixels, len(shown), axis=0)
        if form == "grad_cam":
            maps = self.grad_cam(repeated, column)
        else:
            maps = np.asarray(attribution.strength(self.saliency(repeated, column)))
        return Attention(pixels[0], dict(zip(shown, maps, strict=True)), form)

    def _required_thresholds(self, protocol: str) -> Thresholds:
        """The fitted ones; UserError where there are none for this checkpoint, or where no threshold decides."""
        if metrics.get_protocol(protocol).decision not in ("threshold", "thresholded"):
            raise UserError(f"protocol {protocol} decides without a threshold: fitted ones change nothing there")
        found, why = self.fitted_thresholds()
        if found is None:
            make = f"make them with jaxmlic thresholds --workdir={self.workdir}"
            raise UserError(why or f"{self.workdir} has no fitted thresholds: {make}")
        return found

    def _required_rule(self, protocol: str) -> Decision:
        """The learned one; UserError where there is none for this checkpoint."""
        found, why = self.learned_decision()
        if found is None:
            k = metrics.get_protocol(protocol).k
            make = f"jaxmlic thresholds --workdir={self.workdir} --for={'cf1' if k is None else f'cf1_at={k}'}"
            raise UserError(why or f"protocol {protocol}: {self.workdir} has no learned rule: make one with {make}")
        return found

    def _bound(self, threshold: float | np.ndarray | None, logit: float | np.ndarray | None) -> float | np.ndarray:
        """The logit, or the logits [C], that the arguments of `predict` stand for."""
        if threshold is not None and logit is not None:
            raise UserError("threshold and logit are the same in two units: give one of them")
        bound = logit_of(threshold) if threshold is not None else 0.0 if logit is None else logit
        if np.ndim(bound) and np.shape(bound) != (len(self.class_names),):
            raise UserError(f"{np.shape(bound)} thresholds for {len(self.class_names)} classes")
        return bound

    def _one(self, image: Images) -> np.ndarray:
        """One image's pixels, uint8 [1, S, S, 3]."""
        given = as_given(image)
        if len(given) != 1:
            raise UserError(f"one image is looked at, and {len(given)} are given")
        return self.pictures(image).pixels

    def _best(self, image: Images) -> list[str]:
        """The labels predicted for one image, or the best one where none is."""
        found = self.predict(image)
        return found.labels[0] or [self.class_names[int(np.argmax(found.scores[0]))]]

    def _index(self, label: str) -> int:
        if label not in self.class_names:
            raise unknown("label", label, self.class_names)
        return self.class_names.index(label)

    def _named(self, order: np.ndarray, values: np.ndarray) -> list[tuple[str, float]]:
        return [(self.class_names[i], float(value)) for i, value in zip(order, values, strict=True)]
