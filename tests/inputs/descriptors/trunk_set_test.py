"""What a trunk makes of images of several shapes, against numpy on the trunk's own maps and OpenCV's resizing."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxmlic.errors import UserError
from jaxmlic.inputs.descriptors import recipe
from jaxmlic.inputs.descriptors.trunk_set import TrunkSet
from jaxmlic.models import trunks
from jaxmlic.models.trunks import pretrained


@pytest.fixture(scope="module")
def variables():
    module, _ = trunks.get("small_cnn")
    return jax.jit(lambda: module.Trunk().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), False))()


@pytest.fixture(autouse=True)
def random_weights(monkeypatch, variables):
    """The small CNN has no published weights."""
    monkeypatch.setattr(pretrained, "find", lambda folder, trunk: f"{folder}/{trunk}.npz")
    monkeypatch.setattr(pretrained, "load", lambda path, trunk: variables)


def set_of(**more):
    rules = {"pools": ("avg", "stages"), "stages": ("stage1", "stage3"), "gem_power": 3.0, "aspect": "keep"}
    rules |= {"mirror": True, "weights": "folder"} | more
    return TrunkSet(ConfigDict({"features": rules, "model": {"dtype": "float32"}}), "small_cnn@24", "small_cnn", 24)


def images(*shapes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]


def maps_of(variables, image):
    """{stage: [h, w, D]} float64 of one image as it is."""
    module, _ = trunks.get("small_cnn")
    stages = module.Trunk().apply(variables, (image[None].astype(np.float32) - 127.5) / 64, False)[1]
    return {name: np.asarray(x[0], np.float64) for name, x in stages.items()}


def test_values(variables):
    """Mean, deviation, maximum and generalised mean over positions, averaged with the mirror image."""
    one = set_of(pools=("stages", "gem", "max", "avg"))
    image = images((48, 72))[0]
    small = cv2.resize(image, (36, 24), interpolation=cv2.INTER_AREA)
    wanted = []
    for view in (small, small[:, ::-1]):
        maps = maps_of(variables, view)
        flat = {name: x.reshape(-1, x.shape[-1]) for name, x in maps.items()}
        last = flat["stage3"]
        spread = [np.concatenate([flat[s].mean(0), flat[s].std(0)]) for s in ("stage1", "stage3")]
        gem = (np.maximum(last, 1e-6) ** 3).mean(0) ** (1 / 3)
        wanted.append(np.concatenate([*spread, gem, last.max(0), last.mean(0)]))
    found = one.describe(one.prepare(image)[None], 2)
    np.testing.assert_allclose(found, np.mean(wanted, axis=0)[None], rtol=1e-4, atol=1e-4)
    assert [(p.kind, p.group, p.size, p.standardise) for p in one.parts] == [
        ("stage1", "small_cnn@24 stages", 64, True),
        ("stage3", "small_cnn@24 stages", 192, True),
        ("gem3", "small_cnn@24 gem", 96, False),
        ("max", "small_cnn@24 max", 96, False),
        ("avg", "small_cnn@24 avg", 96, False),
    ]
    plain = set_of(pools=("stages", "gem", "max", "avg"), mirror=False)
    np.testing.assert_allclose(plain.describe(small[None], 1), wanted[:1], rtol=1e-4, atol=1e-4)
    turned = one.describe(np.ascontiguousarray(small[:, ::-1])[None], 2)
    np.testing.assert_allclose(turned, found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((256, 384), (24, 36)),
        ((384, 256), (36, 24)),
        ((375, 500), (24, 32)),
        ((500, 333), (36, 24)),
        ((50, 50), (24, 24)),
        ((100, 103), (24, 24)),
        ((1080, 1920), (24, 43)),
        ((100, 900), (24, 48)),
        ((7, 8), (24, 27)),
    ],
)
def test_the_aspect_is_kept(size, wanted):
    assert set_of().prepare(np.zeros((*size, 3), np.uint8)).shape == (*wanted, 3)
    assert set_of(aspect="square").prepare(np.zeros((*size, 3), np.uint8)).shape == (24, 24, 3)


def test_images_of_several_shapes_together_equal_one_by_one():
    one = set_of()
    several = images((30, 45), (45, 30), (30, 45), (30, 30), (30, 46), (45, 30), (31, 45))
    together = recipe.vectors([one], several, 3)
    alone = np.concatenate([recipe.vectors([one], [image], 1) for image in several])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 0.01


def test_few_shapes_are_compiled():
    """Every batch of one shape has one size, whatever the number of its images."""
    one = set_of()
    recipe.vectors([one], images(*[(30, 45)] * 5, (45, 30)), 4)
    assert one._program[1]._cache_size() == 2


def test_unknown_stage():
    with pytest.raises(
        UserError, match=r"features\.stages: 'small_cnn' has no 'stage4'.*it has stage1, stage2, stage3"
    ):
        set_of(stages=("stage4",))
    with pytest.raises(UserError, match=r"features\.pools = 'mean'"):
        set_of(pools=("mean",))
    assert [part.kind for part in set_of(stages=()).parts] == ["avg", "stage1", "stage2", "stage3"]
