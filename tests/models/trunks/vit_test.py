"""Vision transformers against timm from random weights: every form, features and gradients; files of other owners."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.trunks import pretrained, remat, vit
from jaxmlic.models.trunks.vit.forms import FORMS

TINY = {"width": 32, "depth": 2, "heads": 2, "patch": 4, "grid": 4}
# form, register tokens: what timm builds the same network from
FORMS_OF_TIMM = {
    ("augreg", 0): {},
    ("dinov2", 0): {"init_values": 1e-5},
    ("dinov2", 2): {"init_values": 1e-5, "reg_tokens": 2, "no_embed_class": True},
    ("clip", 0): {"pre_norm": True, "act_layer": "quick_gelu", "epsilon": 1e-5},
    ("clip_gelu", 0): {"pre_norm": True, "epsilon": 1e-5},
    ("siglip", 0): {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
    ("siglip_gap", 0): {"class_token": False, "global_pool": "avg", "fc_norm": False, "act_layer": "gelu_tanh"},
}


@pytest.fixture
def tiny(monkeypatch):
    """Names of tiny trunks; gives the name of a form with so many register tokens."""
    for form in FORMS:
        for registers in (0, 2):
            fields = TINY | {"form": form, "registers": registers}
            monkeypatch.setitem(vit.NAMES, f"vit_tiny_{form}_{registers}", fields)
            monkeypatch.setitem(vit.NAMES, f"vit_tiny_{form}_{registers}_pooled", fields | {"pooled": True})
    return lambda form, registers=0: f"vit_tiny_{form}_{registers}"


def timm_model(form, registers=0, size=16):
    pytest.importorskip("torch")
    pytest.importorskip("timm")
    from functools import partial

    import torch
    from timm.models.vision_transformer import VisionTransformer
    from timm_parity import randomize

    options = dict(FORMS_OF_TIMM[form, registers])
    norm = partial(torch.nn.LayerNorm, eps=options.pop("epsilon", 1e-6))
    model = VisionTransformer(
        img_size=TINY["grid"] * TINY["patch"],
        patch_size=TINY["patch"],
        embed_dim=TINY["width"],
        depth=TINY["depth"],
        num_heads=TINY["heads"],
        num_classes=5,
        norm_layer=norm,
        dynamic_img_size=True,
        **options,
    )
    return randomize(model)


def timm_outputs(model, x):
    """What the trunk gives, of timm's model."""
    kept = []
    hooks = [block.register_forward_hook(lambda _, __, y: kept.append(y)) for block in model.blocks]
    tokens = model.forward_features(x)
    for hook in hooks:
        hook.remove()
    rows, columns = (side // model.patch_embed.patch_size[0] for side in x.shape[2:])

    def as_map(y):
        return y[:, model.num_prefix_tokens :].reshape(len(y), rows, columns, -1)

    found = {"map": as_map(tokens)} | {f"stage{i}": as_map(kept[math.ceil(i * len(kept) / 4) - 1]) for i in (1, 4)}
    if model.attn_pool is not None:
        found["pooled"] = model.attn_pool(tokens).reshape(len(x), 1, 1, -1)
    elif model.cls_token is not None:
        found["pooled"] = tokens[:, :1, None]
    return found


@pytest.mark.parametrize(("form", "registers"), FORMS_OF_TIMM)
def test_it_is_that_of_timm(form, registers, tiny, tmp_path):
    """At another size than that of its position embeddings (one form at both), forward and gradients."""
    model = timm_model(form, registers)
    from timm_parity import compare

    for size in ((24, 12), (16, 16)) if registers else ((24, 12),):
        found = compare(model, timm_outputs, tiny(form, registers), tmp_path / "w.pth", size, FORMS[form].statistics)
        print(form, registers, size, found)
        assert len(found) == 3 and max(found.values()) < 3e-5, found


def test_position_embeddings_are_resampled_as_timm_does():
    """To more and to fewer patches, of either side."""
    torch = pytest.importorskip("torch")
    layers = pytest.importorskip("timm.layers")
    position = np.random.default_rng(0).normal(size=(7, 7, 5)).astype(np.float32)
    for size in ((14, 14), (3, 4), (16, 9), (8, 7), (37, 2)):
        expected = layers.resample_abs_pos_embed(
            torch.tensor(position.reshape(1, 49, 5)), list(size), [7, 7], num_prefix_tokens=0
        )
        got = vit.interpolated(jnp.asarray(position), *size)
        np.testing.assert_allclose(got, expected.numpy().reshape(*size, 5), atol=2e-6)


def random_variables(name, seed=0):
    module, fields = trunks.get(name)
    trunk, side = module.Trunk(**fields), fields["patch"]
    shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), False))
    rng = np.random.default_rng(seed)
    return trunk, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)


def timm_state(name, seed=0):
    """A state dict with timm's names and shapes, by a name of ours."""
    module, fields = trunks.get(name)
    _, variables = random_variables(name, seed)
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        key, array = tuple(part.key for part in path), np.asarray(leaf)
        if key[-1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state[module.torch_names(**fields)[key]] = np.ascontiguousarray(array)
    return state


def save(path, state):
    np.savez(path, **state)
    return path


def equal(one, two):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), one, two))


def test_bfloat16_is_near_float32(tiny):
    name = tiny("dinov2", 2)
    trunk, variables = random_variables(name)
    image = trunks.preprocess_of(name)(np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8))
    exact = jax.jit(lambda v, x: trunk.apply(v, x, False))(variables, image)
    rough = jax.jit(lambda v, x: trunk.clone(dtype=jnp.bfloat16).apply(v, x, False))(variables, image)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough)} == {jnp.dtype(jnp.bfloat16)}
    for got, expected in zip(jax.tree.leaves(rough), jax.tree.leaves(exact), strict=True):
        assert np.abs(got.astype(jnp.float32) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("level", ["blocks", "full"])
def test_rematerialised_gradients_are_the_same(level, tiny):
    trunk, variables = random_variables(tiny("siglip"))
    image = jnp.asarray(np.random.default_rng(1).normal(size=(1, 16, 16, 3)), jnp.float32)

    def gradient(name):
        def scalar(variables):
            with remat.level(name):
                feature_map, stages = trunk.apply(variables, image, True)
            return jnp.sum(feature_map**2) + jnp.sum(stages["pooled"])

        return jax.jit(jax.grad(scalar))(variables)

    expected = gradient("none")
    top = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * top), gradient(level), expected)


def test_a_pooled_trunk_gives_the_vector_as_its_map(tiny):
    for form in ("clip", "siglip"):
        trunk, variables = random_variables(tiny(form))
        image = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 16, 3)), jnp.float32)
        run = jax.jit(lambda t, v, x: t.apply(v, x, False), static_argnums=0)
        feature_map, stages = run(trunk, variables, image)
        pooled, _ = run(trunk.clone(pooled=True), variables, image)
        assert feature_map.shape == (2, 4, 4, 32) and pooled.shape == (2, 1, 1, 32)
        np.testing.assert_array_equal(pooled, stages["pooled"])


def test_stages_number_the_blocks():
    modules = ("patches", "class_token", "position", "registers", "norm_pre", "blocks_0", "blocks_11", "norm", "pool")
    found = trunks.stage_numbers("vit_base_patch14_dinov2", modules)
    assert [found[name] for name in modules] == [0, 0, 0, 0, 0, 1, 12, 13, 13]


# Parameters of timm's models without classifier. Where there are no register tokens, the class token's own position
# embedding is among them; here it is added to the token when a file is read.
PUBLISHED = {
    "vit_base_patch16": 85_798_656,
    "vit_large_patch16": 303_301_632,
    "vit_small_patch14_dinov2": 22_056_192,
    "vit_base_patch14_dinov2": 86_579_712,
    "vit_large_patch14_reg4_dinov2": 304_370_688,
    "vit_base_patch16_clip": 85_799_424,
    "vit_large_patch14_clip": 303_179_776,
    "vit_base_patch16_siglip_224": 92_884_224,
    "vit_large_patch16_siglip_384": 316_283_904,
    "vit_b_16": 85_798_656,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_have_their_published_size(name):
    """Shapes alone: nothing is computed."""
    module, fields = trunks.get(name)
    assert module is vit
    trunk, side = module.Trunk(**fields, dtype=jnp.bfloat16), fields["patch"] * fields["grid"]
    (feature_map, stages), variables = jax.eval_shape(
        lambda: trunk.init_with_output(jax.random.key(0), jnp.zeros((1, side, side, 3)), True)
    )
    rows, width = fields["grid"], fields["width"]
    assert feature_map.shape == (1, rows, rows, width)
    assert {stages[f"stage{i}"].shape for i in (1, 2, 3, 4)} == {feature_map.shape}
    assert stages["pooled"].shape == (1, 1, 1, width)
    folded = width if FORMS[fields["form"]].class_token and not fields["registers"] else 0
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == PUBLISHED[name] - folded
    names = module.torch_names(**fields)
    assert set(names) == {tuple(p.key for p in path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("name", ["vit_large_patch14_reg4_dinov2", "vit_base_patch16_siglip_224_pooled"])
def test_a_training_step_lowers_at_full_size(name):
    """Shapes alone, through the gradient: nothing is computed."""
    module, fields = trunks.get(name)
    trunk, preprocess = module.Trunk(**fields, dtype=jnp.bfloat16), trunks.preprocess_of(name)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda x: trunk.init(jax.random.key(0), preprocess(x), True), images)

    def loss(variables, images):
        return trunk.apply(variables, preprocess(images), True)[0].astype(jnp.float32).mean()

    lowered = jax.jit(jax.grad(loss)).lower(shapes, images)
    assert jax.tree.map(lambda x: x.shape, lowered.out_info) == jax.tree.map(lambda x: x.shape, shapes)


def test_every_name_has_a_preprocessing_of_its_own():
    grey = jnp.full((1, 1, 1, 3), 255, jnp.uint8)
    expected = {
        "vit_base_patch16": [1, 1, 1],
        "vit_b_16": [(1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)],
        "vit_base_patch16_clip": [
            (1 - 0.48145466) / 0.26862954,
            (1 - 0.4578275) / 0.26130258,
            (1 - 0.40821073) / 0.27577711,
        ],
        "vit_base_patch16_siglip_224_pooled": [1, 1, 1],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(trunks.preprocess_of(name)(grey)[0, 0, 0], values, rtol=1e-6)


# Mistakes


def refusal(path, trunk):
    with pytest.raises(UserError) as caught:
        pretrained.load(path, trunk)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    return line


def test_weights_of_another_network_are_refused_by_what_differs(tiny, tmp_path, monkeypatch):
    def saved(**fields):
        monkeypatch.setitem(vit.NAMES, "vit_other", TINY | {"form": "augreg", "registers": 0} | fields)
        path = save(tmp_path / "other.npz", timm_state("vit_other"))
        monkeypatch.delitem(vit.NAMES, "vit_other")
        return path

    name = tiny("augreg")
    assert "its patches are 2 x 2, the trunk's 4 x 4" in refusal(saved(patch=2, grid=8), name)
    line = refusal(saved(width=48, depth=3), name)
    assert "its width is 48, the trunk's 32; its blocks number 3, the trunk's 2" in line
    line = refusal(saved(grid=8), name)
    assert "its position embeddings are for 8 x 8 patches, the trunk's 4 x 4 patches" in line
    line = refusal(saved(form="dinov2", registers=2), name)
    assert "its register tokens number 2, the trunk's 0; it has layer scale, the trunk has none" in line
    assert line.endswith("; they fit vit_tiny_dinov2_2")
    assert "it lacks a norm before its blocks" in refusal(saved(), tiny("clip"))
    assert "it lacks a class token" in refusal(saved(form="siglip"), name)
    assert "it lacks an attention pool" in refusal(saved(form="siglip_gap"), tiny("siglip"))


def test_weights_of_another_family_are_refused_by_their_name(tiny, tmp_path):
    from jaxmlic.models.trunks import resnet

    shapes = jax.eval_shape(lambda: resnet.Trunk(18).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))
    names, state = resnet.torch_names(18), {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        key = tuple(part.key for part in path)
        shape = [leaf.shape[i] for i in (3, 2, 0, 1)] if len(leaf.shape) == 4 else leaf.shape
        state[names[key]] = np.zeros(shape, np.float32)
    line = refusal(save(tmp_path / "resnet.npz", state), tiny("augreg"))
    assert line.endswith("not the weights of vit_tiny_augreg_0: it holds no vision transformer; they fit resnet18")
    line = refusal(save(tmp_path / "vit.npz", timm_state(tiny("clip"))), "resnet18")
    assert "missing in the file" in line and line.endswith("; they fit vit_tiny_clip_0")


@pytest.mark.parametrize(("size", "words"), [((18, 16), "16 or 20 in place of 18"), ((16, 3), "4 in place of 3")])
def test_images_that_patches_do_not_divide_are_refused(size, words, tiny):
    trunk, variables = random_variables(tiny("augreg"))
    with pytest.raises(UserError, match="do not divide into this trunk's patches of 4 x 4") as caught:
        jax.eval_shape(lambda v: trunk.apply(v, jnp.zeros((1, *size, 3)), False), variables)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_weights_gives_a_pooled_trunk_its_networks_file(tmp_path):
    for name in ("vit_base_patch16_clip_224.openai.safetensors", "vit_base_patch16_224.augreg.safetensors"):
        (tmp_path / name).touch()
    assert pretrained.find(tmp_path, "vit_base_patch16_clip_pooled").name.startswith("vit_base_patch16_clip_224")
    assert pretrained.find(tmp_path, "vit_base_patch16").name == "vit_base_patch16_224.augreg.safetensors"
    with pytest.raises(UserError, match="no file with the weights of vit_base_patch16_384"):
        pretrained.find(tmp_path, "vit_base_patch16_384")
