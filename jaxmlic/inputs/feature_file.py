"""Features that were made elsewhere, in place of images: `config.data.source="file"` and `config.data.features_file`.

The file is an .npz with `features`, float [N, D] (or maps [N, h, w, D]), and `ids`, text [N], the ids of a prepared
data set's images in any order. Heads get them as `trunks.StoredMaps`, and `jaxmlic evaluate` reads the file again. The
model has no trunk: `jaxmlic predict` refuses such a run, unless the config names the trunk that made the file
(`config.data.features_trunk` and `features_weights`); photographs then go through that.
"""

import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic import sharding, storage
from jaxmlic.data import augment, datasets, loader
from jaxmlic.data.image import decode_image
from jaxmlic.errors import UserError
from jaxmlic.inputs.file_trunk import FileTrunk
from jaxmlic.inputs.source import VALUES, Source, eval_inputs
from jaxmlic.models import trunks

_APART = 0.1  # of a vector's length: room for float16, and for another library's way to resize


def load(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(features float32 [N, h, w, D], ids text [N]); vectors are maps of 1 x 1.

    Raises UserError for a file that cannot be read, and names the first row that is not finite, has no id or an id that
    came before.
    """
    try:
        local = storage.local_copy(path)
        stat = local.stat()
    except OSError as error:
        raise UserError(f"config.data.features_file: {path!r} cannot be read ({error.strerror})") from None
    return _load(path, str(local), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def _load(path: str, local: str, *_: int) -> tuple[np.ndarray, np.ndarray]:
    arrays = storage.load_npz(local, ("features", "ids"), (), what="file of features and ids")
    features, ids = arrays["features"], arrays["ids"]
    if features.dtype.kind not in "fiu" or features.ndim not in (2, 4) or 0 in features.shape:
        kind = f"{features.dtype} {list(features.shape)}"
        raise UserError(f"{path}: features are {kind}, and should be numbers [N, D] or [N, h, w, D]")
    if ids.ndim != 1 or ids.dtype.kind != "U":
        raise UserError(f"{path}: ids are {ids.dtype} {list(ids.shape)}, and should be text [N]")
    if len(ids) != len(features):
        row = min(len(ids), len(features))
        raise UserError(f"{path}: {len(features):,} rows of features and {len(ids):,} ids: row {row} has no partner")
    features = features.astype(np.float32)
    bad = ~np.isfinite(features.reshape(len(features), -1)).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{path}: row {row} ({str(ids[row])!r}) is not finite; {int(bad.sum()):,} such rows")
    first = np.unique(ids, return_index=True)[1]
    if len(first) < len(ids):
        row = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        raise UserError(f"{path}: row {row} has the id {str(ids[row])!r}, and so has one before it")
    return features.reshape(len(features), *(features.shape[1:] if features.ndim == 4 else (1, 1, -1))), ids


class FileSource(Source):
    """Features of `config.data.features_file`, read into memory."""

    reads_arrays = True
    _compared = False

    def check_photographs(self, workdir: str | os.PathLike) -> None:
        """UserError unless the config names the trunk that made the file."""
        if not self.config.data.features_trunk:
            raise UserError(
                f"{os.fspath(workdir)} was trained on {self.config.data.features_file}, so it cannot read photographs: "
                "name the trunk that made it in config.data.features_trunk and features_weights"
            )

    def check_pixels(self, workdir: str | os.PathLike) -> None:
        """Always a UserError: features are made outside the model."""
        raise UserError(
            f"{os.fspath(workdir)} was trained on {self.config.data.features_file}, which its model is given in place "
            "of pixels: it has no maps over pixels, and cannot be exported or served"
        )

    def photographs(self, images: Sequence[np.ndarray], count: int, mesh: jax.sharding.Mesh) -> trunks.StoredMaps:
        """Features of images uint8 [S, S, 3], made here by the trunk that the config names.

        UserError where that makes other features of an image of the data set than the file has.
        """
        if not self._compared:
            self._compare(mesh)
            self._compared = True
        return trunks.StoredMaps(self._made(images, count, mesh))

    def _made(self, images: Sequence[np.ndarray], count: int, mesh: jax.sharding.Mesh) -> jax.Array:
        return self._trunk(super().photographs(images, count, mesh), mesh)

    def _compare(self, mesh: jax.sharding.Mesh) -> None:
        data = self.config.data
        try:
            dataset = datasets.load(data.name, data.dir or None)
        except UserError:  # a run predicts without its data set, too
            return
        record = dataset.source(next(iter(dataset.splits)))[0]
        features, ids = load(data.features_file)
        wanted = features[ids == record["id"]]
        made = sharding.gather(self._made([decode_image(record["image"], self.side)], mesh.size, mesh))[:1]
        apart = np.linalg.norm(made - wanted) / np.linalg.norm(wanted) if len(wanted) else 0.0
        if not apart < _APART:
            raise UserError(
                f"{data.features_file}: {data.features_trunk} with the weights {data.features_weights} makes other "
                f"features of {record['id']!r} (they differ by {apart:.0%}): name the trunk, weights, pool and image "
                "size that made the file"
            )

    @functools.cached_property
    def _trunk(self) -> FileTrunk:
        return FileTrunk(self.config, load(self.config.data.features_file)[0].shape[1:])

    def fingerprint(self, view: loader.View) -> str:
        """Of the file's bytes."""
        return storage.sha256(storage.local_copy(self.config.data.features_file))

    def check(self) -> None:
        """UserError for fields that features from a file leave without a meaning."""
        config = self.config
        if not config.data.features_file:
            raise UserError("config.data.source = 'file' needs config.data.features_file=FILE.npz")
        if config.features.sets:
            raise UserError("config.features.sets is read with config.data.source='descriptors' alone: leave it out")
        if config.pretrained:
            raise UserError(
                "config.pretrained is for a trunk, and features from a file have none: leave it out (the weights of "
                "config.data.features_trunk are in config.data.features_weights)"
            )
        augment.check_no_pixels("features from a file", **config.augment)
        load(config.data.features_file)
        if config.data.features_trunk:
            _ = self._trunk
        elif config.data.features_weights:
            raise UserError("config.data.features_weights is for config.data.features_trunk: name that too")

    def example(self) -> trunks.StoredMaps:
        """Zeros of the features of one image."""
        shape = load(self.config.data.features_file)[0].shape[1:]
        return trunks.StoredMaps(jnp.zeros((1, *shape), jnp.float32))

    def record_shapes(self) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
        """One view of each image's features."""
        return {VALUES: ((1, *self.example().feature_map.shape[1:]), jnp.float32)}

    def eval_reader(self, view: loader.View) -> "FileReader":
        """The file's rows of the view's images."""
        return FileReader(view, self.config.data.features_file)

    train_reader = validation_reader = eval_reader

    def training_inputs(
        self, key: jax.Array, batch: dict[str, jax.Array], epoch: jax.Array
    ) -> tuple[trunks.StoredMaps, jax.Array]:
        """The features as they are."""
        return eval_inputs(batch), batch["labels"]


class FileReader(loader.RowReader):
    """As `ImageReader`, but a batch holds `features` float32 [B, 1, h, w, D] instead of images.

    Raises UserError for an image without a row, and for a row whose id the whole data set does not have.
    """

    def __init__(self, view: loader.View, path: str):
        super().__init__(view)
        self._features, ids = load(path)
        row_of = {name: row for row, name in enumerate(ids.tolist())}
        _refuse_unknown_ids(path, row_of, view.dataset)
        missing = [name for name in view.ids.tolist() if name not in row_of]
        if missing:
            raise UserError(
                f"{path}: no row for {missing[0]!r} of {view.where()}; {len(missing):,} of them are missing"
            )
        self._rows = np.array([row_of[name] for name in view.ids.tolist()], np.int64)
        self.stored = loader.Stored((path,), self._rows, self._read, lambda values: {VALUES: values})

    def __call__(self, rows: np.ndarray) -> loader.Batch:
        """int rows [B] of the view -> features, labels and an all-true mask."""
        return self.batch(rows, **{VALUES: self._read(self._rows[rows])})

    def hold(self) -> bool:
        """True: the file is in memory."""
        return True

    def _read(self, records: np.ndarray) -> np.ndarray:
        return self._features[records][:, None]


def _refuse_unknown_ids(path: str, row_of: dict[str, int], dataset: datasets.Dataset) -> None:
    known = {name for split in dataset.splits for name in dataset.ids(split).tolist()}
    for name, row in row_of.items():
        if name not in known:
            raise UserError(f"{path}: row {row} has the id {name!r}, which data set {dataset.name!r} does not have")
