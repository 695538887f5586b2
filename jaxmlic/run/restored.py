"""A restored run: its model, its data, and what goes through them."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import sharding
from jaxmlic.data import datasets, loader
from jaxmlic.data.image import ImageError, decode_image
from jaxmlic.errors import UserError
from jaxmlic.evaluation import attribution, decision, scoring, thresholds
from jaxmlic.inputs import Inputs, eval_inputs
from jaxmlic.labels.names import check_same_classes
from jaxmlic.models.heads import contract
from jaxmlic.progress import Progress
from jaxmlic.run.given import Given, Images, as_given
from jaxmlic.run.predicted import Pictures
from jaxmlic.training import restore, targets


class RestoredRun:
    """A run with the variables of its best checkpoint: what commands and figures ask of it.

    Attributes:
      workdir: its folder.
      config: its config, locked.
      class_names: C names, in the order of scores and labels.
      step: of the checkpoint.
      steps: of all checkpoints that were kept; `jaxmlic.load(workdir, step=...)` opens any of them.
    """

    def __init__(self, restored: restore.Restored, data_dir: str | Path | None = None):
        self.workdir: Path = restored.record.workdir
        self.config: ConfigDict = restored.record.config
        self.class_names: list[str] = restored.record.class_names
        self.step: int = restored.step
        self.steps: list[int] = restored.steps
        self._restored = restored
        self._data_dir = data_dir

    @functools.cached_property
    def dataset(self) -> datasets.Dataset:
        """The data set that the run was trained on; UserError where it is gone or has other classes.

        Classes that were added to the run may be missing there: they are unknown.
        """
        data_dir = str(self._data_dir) if self._data_dir else self.config.data.dir or None
        dataset = datasets.load(self.config.data.name, data_dir)
        if self._restored.record.added:
            return datasets.WithAdded(dataset, self.class_names, self._restored.record.added)
        check_same_classes(self.class_names, dataset.class_names, str(self.workdir), f"data set {dataset.name!r}")
        return dataset

    def fitted_thresholds(self) -> tuple[thresholds.Thresholds | None, str]:
        """What `jaxmlic thresholds` fitted for this checkpoint; else None, and why ("" where it fitted nothing)."""
        return thresholds.find(self.workdir, self.step, self.model_digest, self.class_names)

    def learned_decision(self) -> tuple[decision.Decision | None, str]:
        """The rule that `jaxmlic thresholds` learned for this checkpoint; else None, and why ("" if none)."""
        return decision.find(self.workdir, self.step, self.model_digest, self.class_names)

    @functools.cached_property
    def model_digest(self) -> str:
        """Changes with the variables."""
        return thresholds.digest_of_model(self._restored.variables)

    @property
    def decides_in_steps(self) -> bool:
        """Whether the head can show the steps that led to its labels."""
        return hasattr(self._restored.head, "trace_fn")

    @property
    def has_joint_embedding(self) -> bool:
        """Whether images have a place among the label vectors."""
        return hasattr(self._restored.head, "joint_embedding_fn")

    @property
    def chooses_labels(self) -> bool:
        """Whether the head's decoder chooses the labels, so that no threshold does."""
        return self._prediction_shapes.chosen is not None

    @functools.cached_property
    def attention_forms(self) -> list[str]:
        """What `Run.attention` can show of the head: its own "weights" and "steps" first."""
        head, model, variables = self._parts
        example = self._restored.source.example()
        outputs = jax.eval_shape(lambda v: model.apply(v, example, train=False), variables)
        weights = any(name.startswith(attribution.ATTENTION) for name in outputs)
        steps = hasattr(head, "step_logits_fn")
        return [*(["weights"] if weights else []), *(["steps"] if steps else []), "grad_cam", "gradient"]

    def check_pixel_model(self) -> None:
        """UserError for a run whose model is not given pixels: features from a file, or descriptors of images."""
        self._restored.source.check_pixels(self.workdir)

    def predict_function(self) -> tuple[Callable[[dict, jax.Array], contract.Prediction], dict]:
        """The head's (variables, images) -> Prediction, to be traced, and the variables."""
        head, model, variables = self._parts
        return functools.partial(head.predict_fn, model), variables

    def report(self, prediction: contract.Prediction, labels: np.ndarray, protocol: str) -> dict:
        """The metrics of a prediction, numpy, of images with labels int8 [N, C], by the run's rules and a protocol."""
        trained = self._trained_classes() if self.config.eval.trained_classes_only else None
        return scoring.report(self.config, prediction, labels, trained, protocol=protocol)

    def predict_pixels(self, pixels: np.ndarray, batch_size: int | None = None) -> contract.Prediction:
        """The prediction, numpy, of images uint8 [N, S, S, 3].

        batch_size: of the one program, rounded up to a multiple of the devices; None for that of evaluation.
        """
        parts, mesh = [], self._restored.mesh
        size = -(-batch_size // mesh.size) * mesh.size if batch_size else self._batch_size
        for start in range(0, len(pixels), size):
            part = pixels[start : start + size]
            padded = np.resize(part, (size, *part.shape[1:]))
            found = self._predict_step(self._restored.variables, sharding.place(padded, sharding.split(mesh)))
            parts.append(jax.tree.map(sharding.gather, found))
        return jax.tree.map(lambda *xs: np.concatenate(xs)[: len(pixels)], *parts)

    def image_features(self, view: loader.View, progress: bool = False) -> np.ndarray:
        """float32 [N, D]: the pooled vectors of a view's images. UserError for a head without such an output.

        progress: show it on stderr.
        """
        mesh = self._restored.mesh
        reader, parts = self._restored.source.eval_reader(view), []
        batches = loader.eval_batches(
            reader,
            self._batch_size,
            threads=self.config.data.threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        label = f"features of {view.dataset.name}/{view.split}"
        with Progress(label, len(view), transient=True, shown=progress) as bar:
            for batch in batches:
                arrays = sharding.put(batch, mesh)
                found = self._pooled_step(self._restored.variables, eval_inputs(arrays))
                parts.append(sharding.gather(found)[sharding.gather(arrays["mask"])])
                bar.advance(len(parts[-1]))
        return np.concatenate(parts)

    def photograph_features(self, images: Images) -> np.ndarray:
        """float32 [N, D]: the pooled vectors of images, given as for `predict`. UserError where one cannot be read."""
        self._restored.source.check_photographs(self.workdir)
        unreadable: dict[str, str] = {}
        parts = []
        for names, inputs in self._batches(as_given(images), unreadable):
            parts.append(sharding.gather(self._pooled_step(self._restored.variables, inputs))[: len(names)])
        if unreadable:
            name, why = next(iter(unreadable.items()))
            raise UserError(f"{len(unreadable)} images could not be read, such as {name} ({why})")
        return np.concatenate(parts)

    def pictures(
        self,
        images: Images = (),
        *,
        split: str | None = None,
        count: int = 4,
        rows: np.ndarray | None = None,
    ) -> Pictures:
        """Images that are given, or without them images of a split.

        Args:
          images: as for `predict`.
          split: of the data set, where no images are given; None for the test split.
          count: its first images with two labels or more.
          rows: int [N], these images of the split in their place.

        UserError for a file that cannot be read, and for a run whose inputs are no photographs.
        """
        self._restored.source.check_pixels(self.workdir)
        side, given = self.config.data.image_size, as_given(images)
        if given:
            found = []
            for one in given:
                try:
                    found.append(one.read(side))
                except ImageError as error:
                    raise UserError(f"image {one.name} cannot be read ({error})") from None
            return Pictures([one.name.rpartition("/")[2] for one in given], np.stack(found))
        view = loader.find_view(self.config.data, self.dataset, self.config.seed, split or self.config.data.test_split)
        if rows is None:
            several = (view.labels == 1).sum(axis=1) > 1
            rows = np.sort(np.argsort(~several, kind="stable")[:count])
        source = view.dataset.source(view.split)
        pixels = np.stack([decode_image(source[int(view.indices[row])]["image"], side) for row in rows])
        return Pictures(view.ids[rows].tolist(), pixels, view.labels[rows])

    def boxes(self, split: str) -> list[dict[str, np.ndarray]]:
        """The boxes of each image that `evaluate(split)` scores (see `RecordSource`); UserError without boxes."""
        view = loader.find_view(self.config.data, self.dataset, self.config.seed, split)
        source = view.dataset.source(view.split, boxes=True)
        return [source[int(index)]["boxes"] for index in view.indices]

    def saliency(self, pixels: np.ndarray, labels: np.ndarray, form: str = "gradient", reduce=None) -> np.ndarray:
        """See `attribution.saliency`."""
        return attribution.saliency(*self._parts, pixels, labels, form, reduce)

    def grad_cam(self, pixels: np.ndarray, labels: np.ndarray, stage: str = "", reduce=None) -> np.ndarray:
        """See `attribution.grad_cam`."""
        return attribution.grad_cam(*self._parts, pixels, labels, stage, reduce)

    def step_attention(self, pixels: np.ndarray, form: str = "gradient", reduce=None) -> attribution.Steps:
        """See `attribution.step_attention`."""
        return attribution.step_attention(*self._parts, pixels, form, reduce)

    def attention_maps(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """See `attribution.attention_maps`."""
        return attribution.attention_maps(*self._parts, pixels)

    def trunk_maps(self, pixels: np.ndarray, stage: str = "") -> tuple[str, np.ndarray]:
        """See `attribution.trunk_maps`."""
        return attribution.trunk_maps(*self._parts[1:], pixels, stage)

    def joint_embedding(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `attribution.joint_embedding`."""
        return attribution.joint_embedding(*self._parts, pixels)

    @property
    def _parts(self) -> tuple[ModuleType, nn.Module, dict]:
        """(head, model, variables)."""
        return self._restored.head, self._restored.model, self._restored.variables

    @functools.cached_property
    def _prediction_shapes(self) -> contract.Prediction:
        """Shapes and dtypes of the prediction of one image."""
        head, model, variables = self._parts
        example = self._restored.source.example()
        return jax.eval_shape(lambda v: head.predict_fn(model, v, example), variables)

    @functools.cached_property
    def _predict_step(self) -> scoring.PredictStep:
        return scoring.make_predict_step(self._restored.head, self._restored.model, self._restored.mesh)

    @functools.cached_property
    def _pooled_step(self):
        """Jitted (variables, inputs) -> the images' pooled vectors, float32 [B, D]."""
        model, mesh = self._restored.model, self._restored.mesh

        def forward(variables: dict, inputs: Inputs) -> jax.Array:
            outputs = model.apply(variables, inputs, train=False)
            if "pooled" not in outputs:
                raise UserError(f"the head {self.config.head!r} has no output 'pooled', the image's vector")
            return outputs["pooled"].astype("float32")

        split = sharding.split(mesh)
        return jax.jit(forward, in_shardings=(sharding.replicated(mesh), split), out_shardings=split)

    @functools.cached_property
    def _trace_step(self):
        head, model = self._restored.head, self._restored.model
        return jax.jit(lambda variables, images: head.trace_fn(model, variables, images))

    @property
    def _batch_size(self) -> int:
        return scoring.batch_size_for(self.config, self._restored.mesh)

    def _trained_classes(self) -> np.ndarray:
        """bool [C]. Older folders do not name them; there they come from the data set."""
        names = self._restored.record.trained_classes
        if names is not None:
            return np.isin(self.class_names, names)
        train, _ = targets.training_views(self.config, self.dataset, self.workdir, restored=True)
        return targets.trained_classes(train)

    def _batches(self, given: Sequence[Given], unreadable: dict[str, str]) -> Iterator[tuple[list[str], Inputs]]:
        """Batches (names, inputs on the devices, zero-padded).

        unreadable: gets the reason for each image that cannot be read. B is one of few numbers, so that predicting one
        image and then two compiles little.
        """
        source, mesh = self._restored.source, self._restored.mesh
        size = mesh.size
        while size < min(len(given), self._batch_size):
            size = min(2 * size, self._batch_size)
        names: list[str] = []
        images: list[np.ndarray] = []
        for number, one in enumerate(given, 1):
            try:
                images.append(one.read(source.side))
                names.append(one.name)
            except ImageError as error:
                unreadable[one.name] = str(error)
            if len(names) == size or (names and number == len(given)):
                yield names, source.photographs(images, size, mesh)
                names, images = [], []
