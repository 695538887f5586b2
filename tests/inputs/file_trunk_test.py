"""A run trained on a file of features predicts on photographs by the trunk that made the file."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

import jaxmlic
from jaxmlic.cli import main as cli
from jaxmlic.data import datasets
from jaxmlic.data.image import decode_image
from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.trunks import vit
from jaxmlic.training import loop

SIDE = 16
FIELDS = {"width": 32, "depth": 2, "heads": 2, "patch": 4, "grid": 4, "form": "augreg", "registers": 0}


@pytest.fixture(scope="module")
def made(data_dir, tmp_path_factory):
    """The names of a random small vision transformer, its weights as timm would write them, features of all images."""
    folder = tmp_path_factory.mktemp("vit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.NAMES, "vit_small_random", FIELDS)
        patch.setitem(vit.NAMES, "vit_small_random_pooled", FIELDS | {"pooled": True})
        trunk, rng = vit.Trunk(**FIELDS), np.random.default_rng(0)
        shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)), False))
        variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes)
        for number in (0, 1):
            state = {}
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
                key, array = tuple(part.key for part in path), np.asarray(leaf) * (1 - 0.5 * number)
                if key[-1] == "kernel":
                    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
                state[vit.torch_names(**FIELDS)[key]] = array
            np.savez(folder / f"weights{number}.npz", **state)
        dataset = datasets.load("tiny", data_dir)
        ids = np.concatenate([dataset.ids(split) for split in dataset.splits])
        records = [record for split in dataset.splits for record in dataset.source(split)]
        assert [record["id"] for record in records] == ids.tolist()
        pixels = np.stack([decode_image(record["image"], SIDE) for record in records])
        forward = jax.jit(lambda x: trunk.apply(variables, trunks.preprocess_of("vit_small_random")(x), False))
        feature_map, stages = forward(pixels)
        np.savez(folder / "vectors.npz", features=np.float32(feature_map).mean((1, 2)), ids=ids)
        np.savez(folder / "pooled.npz", features=np.float16(stages["pooled"])[:, 0, 0], ids=ids)
        yield folder


def config_of(data_dir, folder, name="vit_small_random", features="vectors", **more):
    values = {"data.source": "file", "data.features_file": str(folder / f"{features}.npz"), "model.pool": "avg"}
    values |= {"data.features_trunk": name, "data.features_weights": str(folder / "weights0.npz")}
    return tiny_config(data_dir, **values | more)


@pytest.mark.parametrize(("name", "features"), [("vit_small_random", "vectors"), ("vit_small_random_pooled", "pooled")])
def test_photographs_give_the_scores_of_the_file(name, features, made, data_dir, tmp_path, capsys):
    config = config_of(data_dir, made, name, features)
    assert loop.run(config, str(tmp_path / "run")).finished
    run = jaxmlic.load(str(tmp_path / "run"))
    of_file = run.scores("test")
    dataset = datasets.load("tiny", data_dir)
    files = []
    for record in list(dataset.source("test"))[:5]:
        files.append(tmp_path / f"{record['id']}.png")
        files[-1].write_bytes(record["image"])
    found = run.predict([str(path) for path in files])
    np.testing.assert_allclose(found.scores, of_file.scores[:5], atol=2e-5 if features == "vectors" else 5e-3)
    capsys.readouterr()
    assert cli.run(["predict", f"--workdir={tmp_path / 'run'}", str(files[0])]) == 0
    with pytest.raises(UserError, match="has no maps over pixels"):
        run.pictures([str(files[0])])
    assert cli.run(["export", str(tmp_path / "run"), f"--out={tmp_path / 'bundle'}"]) == 2
    assert "cannot be exported" in capsys.readouterr().err and not (tmp_path / "bundle").exists()


def test_other_weights_than_those_of_the_file_are_refused(made, data_dir, tmp_path):
    config = config_of(data_dir, made, **{"data.features_weights": str(made / "weights1.npz")})
    assert loop.run(config, str(tmp_path / "run")).finished
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 20, 3), np.uint8))
    message = r"weights1\.npz makes other features of 'train-000' \(they differ by \d+%\): name the trunk, weights"
    with pytest.raises(UserError, match=message):
        jaxmlic.load(str(tmp_path / "run")).predict([str(tmp_path / "a.png")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.features_trunk": ""}, "features_weights is for config.data.features_trunk"),
        ({"data.features_weights": ""}, "needs config.data.features_weights=FILE"),
        ({"data.features_trunk": "vit_smal_random"}, "did you mean 'vit_small_random'"),
        ({"data.features_trunk": "small_cnn"}, "holds 1 x 1 x 32: name the trunk"),
        ({"data.image_size": 18}, "do not divide into this trunk's patches of 4 x 4: 16 or 20 in place of 18"),
        ({"data.features_pool": "gem"}, "data.features_pool"),
        ({"pretrained": "w.npz"}, "the weights of config.data.features_trunk are in config.data.features_weights"),
    ],
)
def test_mistakes(fields, message, made, data_dir):
    with pytest.raises(UserError, match=message):
        loop.Trainer(config_of(data_dir, made, **fields), "unused")
