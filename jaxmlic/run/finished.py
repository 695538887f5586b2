"""A finished run as an object: the door for commands, notebooks and services."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxmlic import metrics, sharding, storage
from jaxmlic.data import loader
from jaxmlic.errors import UserError
from jaxmlic.evaluation import scoring
from jaxmlic.run.predicted import ImagePrediction
from jaxmlic.run.restored import RestoredRun
from jaxmlic.run.scored import Evaluation, evaluation
from jaxmlic.training import restore
from jaxmlic.training.logs import metrics_log


def load(workdir: str | Path, data_dir: str | Path | None = None) -> "Run":
    """The run in a folder that `jaxmlic train` wrote, with its best checkpoint.

    Args:
      workdir: the run folder.
      data_dir: where the data sets are now, if not where the run found them.

    Raises:
      UserError: there is no run, no whole checkpoint, or one of another model.
    """
    return Run(restore.restore(workdir), data_dir)


class Run(RestoredRun):
    """A run with the variables of its best checkpoint; see `RestoredRun` for its attributes."""

    def __repr__(self) -> str:
        return f"Run({str(self.workdir)!r}, {self.config.head}, {len(self.class_names)} classes, step {self.step})"

    def history(self) -> list[dict]:
        """The rows of metrics.jsonl: `step` and what was logged there."""
        return metrics_log.read(self.workdir)

    def evaluate(self, split: str | None = None, protocol: str | None = None) -> Evaluation:
        """Scores a split under a protocol, by default the run's own test split and protocol.

        split: a split of the data set; "val" is the part that selected the checkpoint, where the run carved one.
        """
        config, name = self.config, split or self.config.data.test_split
        protocol = metrics.get_protocol(protocol or config.eval.protocol).name
        view = loader.find_view(config.data, self.dataset, config.seed, name)
        prediction, labels, ids = scoring.score(
            self._predict_step,
            self._restored.variables,
            self._restored.source.eval_reader(view),
            self._restored.mesh,
            batch_size=self._batch_size,
            threads=config.data.threads,
        )
        trained = self._trained_classes() if config.eval.trained_classes_only else None
        return evaluation(self._restored.record, self.step, (prediction, labels, ids), name, protocol, trained)

    def predict(
        self, paths: Sequence[str | Path], *, threshold: float = 0.0, trace: bool = False
    ) -> tuple[list[ImagePrediction], dict[Path, str]]:
        """Labels of photographs, in their order, and why files could not be read.

        Args:
          paths: image files.
          threshold: logit from which on a label is predicted, where no decoder chooses the labels.
          trace: whether the head's steps are wanted too.

        Raises:
          UserError: the run's inputs are no photographs; a trace of a head that has no steps.
        """
        self._restored.source.check_photographs(self.workdir)
        if trace and not self.decides_in_steps:
            raise UserError(f"the head {self.config.head!r} of {self.workdir} labels images in one step: no --trace")
        mesh, variables = self._restored.mesh, self._restored.variables
        batch_size = min(self._batch_size, -(-len(paths) // mesh.size) * mesh.size)
        found, unreadable = [], {}
        for names, batch in self._photographs(list(map(storage.to_path, paths)), batch_size, unreadable):
            pixels = sharding.place(batch, sharding.split(mesh))
            prediction = jax.tree.map(sharding.gather, self._predict_step(variables, pixels))
            steps = jax.tree.map(sharding.gather, self._trace_step(variables, pixels)) if trace else None
            for i, name in enumerate(names):
                scores = prediction.scores[i]
                chosen = scores >= threshold if prediction.chosen is None else prediction.chosen[i]
                path = None if prediction.path is None else prediction.path[i]
                own = jax.tree.map(lambda x, i=i: x[i], steps) if trace else None
                found.append(ImagePrediction(name, scores, chosen, path, own))
        return found, unreadable

    def label_embeddings(self) -> dict[str, np.ndarray]:
        """{name: float32 [C, D]}: the tables of label vectors that the head has; empty where it has none."""
        head = self._restored.head
        if not hasattr(head, "label_embeddings"):
            return {}
        return {name: np.asarray(table) for name, table in head.label_embeddings(self._restored.variables).items()}
