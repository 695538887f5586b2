"""ConvNeXt and Swin against torchvision, timm and Hugging Face from random weights: features, gradients, odd sizes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.models import trunks
from jaxmlic.models.trunks import convnext, pretrained, remat, swin

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CONVNEXT = {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32)}
SWIN = {"width": 8, "depths": (2, 2, 1, 1), "heads": (1, 2, 2, 4), "window": 3}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(convnext.NAMES, "convnext_test", CONVNEXT)
    monkeypatch.setitem(convnext.NAMES, "convnext_test_pooled", CONVNEXT | {"pooled": True})
    monkeypatch.setitem(swin.NAMES, "swin_test", SWIN)


def as_map(x):
    return x.permute(0, 2, 3, 1)


def torchvision_convnext(model, x):
    found = {}
    for i, layer in enumerate(model.features):
        x = layer(x)
        if i % 2:
            found[f"stage{(i + 1) // 2}"] = as_map(x)
    return found | {"map": as_map(x), "pooled": as_map(model.classifier[0](model.avgpool(x)))}


def timm_convnext(model, x):
    x, found = model.stem(x), {}
    for i, stage in enumerate(model.stages):
        x = stage(x)
        found[f"stage{i + 1}"] = as_map(x)
    return found | {"map": as_map(x), "pooled": model.forward_head(x, pre_logits=True).reshape(len(x), 1, 1, -1)}


def torchvision_swin(model, x):
    found = {}
    for i, layer in enumerate(model.features):
        x = layer(x)
        if i % 2:
            found[f"stage{(i + 1) // 2}"] = x
    return found | {"map": model.norm(x)}


def timm_swin(model, x):
    x, found = model.patch_embed(x), {}
    for i, layer in enumerate(model.layers):
        x = layer(x)
        found[f"stage{i + 1}"] = x
    return found | {"map": model.norm(x)}


def hugging_face_convnext(model, x):
    found = model(pixel_values=x, output_hidden_states=True)
    stages = {f"stage{i}": as_map(state) for i, state in enumerate(found.hidden_states) if i}
    return stages | {"map": as_map(found.last_hidden_state), "pooled": found.pooler_output[:, None, None]}


def hugging_face_swin(model, x):
    """Stages are the last blocks' outputs; the model's own lists have the mergings behind them."""
    blocks, size = {}, [-(-side // 4) for side in x.shape[2:]]
    for i, stage in enumerate(model.encoder.layers):
        stage.blocks[-1].register_forward_hook(lambda _, __, output, i=i: blocks.update({i: output[0]}))
    tokens, found = model(pixel_values=x).last_hidden_state, {}
    for i, block in blocks.items():
        found[f"stage{i + 1}"] = block.unflatten(1, size)
        size = [-(-side // 2) for side in size] if i < 3 else size
    return found | {"map": tokens.unflatten(1, size)}


def hugging_face(name, form):
    """A model with random weights; form: "Model" or "ForImageClassification"."""
    transformers = pytest.importorskip("transformers")
    if name == "convnext":
        config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], num_labels=5)
        return getattr(transformers, f"ConvNext{form}")(config)
    options = {"embed_dim": 8, "depths": [2, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 3, "num_labels": 5}
    return getattr(transformers, f"Swin{form}")(transformers.SwinConfig(image_size=96, **options))


def library(kind):
    """(model with random weights, its outputs) of "torchvision", "timm" or "hugging_face"."""
    pytest.importorskip("torch")
    name, owner = kind.split()
    if owner == "hugging_face":
        return hugging_face(name, "Model"), hugging_face_convnext if name == "convnext" else hugging_face_swin
    if owner == "torchvision":
        models = pytest.importorskip("torchvision.models")
        if name == "convnext":
            rows = [
                (*pair, depth) for *pair, depth in zip((8, 16, 24, 32), (16, 24, 32, None), (1, 2, 1, 1), strict=True)
            ]
            settings = [models.convnext.CNBlockConfig(*row) for row in rows]
            return models.ConvNeXt(settings, num_classes=5), torchvision_convnext
        model = models.SwinTransformer([4, 4], 8, [2, 2, 1, 1], [1, 2, 2, 4], [3, 3], num_classes=5)
        return model, torchvision_swin
    models = pytest.importorskip("timm.models")
    if name == "convnext":
        return models.ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), num_classes=5), timm_convnext
    options = {"embed_dim": 8, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 3, "num_classes": 5}
    return models.SwinTransformer(img_size=96, **options), timm_swin


# Where windows divide no map, and mergings not all; Swin of timm pads otherwise, and is compared where none is padded.
SIZES = {
    "convnext torchvision": (75, 64),
    "convnext timm": (75, 64),
    "convnext hugging_face": (75, 64),
    "swin torchvision": (75, 100),
    "swin timm": (96, 96),
    "swin hugging_face": (100, 132),
}


@pytest.mark.parametrize("kind", SIZES)
def test_it_is_that_of_pytorch(kind, tmp_path):
    model, outputs = library(kind)
    from timm_parity import compare, randomize

    name = f"{kind.split()[0]}_test"
    found = compare(randomize(model), outputs, name, tmp_path / "w.pth", SIZES[kind], IMAGENET)
    print(kind, SIZES[kind], found)
    assert len(found) == (2 if "hugging_face" in kind else 3) and max(found.values()) < 3e-5, found


# From the names of Hugging Face's published files to those of the authors' (Meta's, Microsoft's).
AUTHORS = {
    "convnext": (
        (r"^embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
        (r"^embeddings\.layernorm\.", "downsample_layers.0.1."),
        (r"^encoder\.stages\.(\d)\.downsampling_layer\.", r"downsample_layers.\1."),
        (r"^encoder\.stages\.(\d)\.layers\.", r"stages.\1."),
        (r"layernorm\.", "norm."),
        (r"layer_scale_parameter$", "gamma"),
    ),
    "swin": (
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.norm\.", "patch_embed.norm."),
        (r"^encoder\.", ""),
        (r"layernorm_before\.", "norm1."),
        (r"layernorm_after\.", "norm2."),
        (r"^layernorm\.", "norm."),
        (r"attention\.self\.", "attn."),
        (r"attention\.output\.dense\.", "attn.proj."),
        (r"intermediate\.dense\.", "mlp.fc1."),
        (r"output\.dense\.", "mlp.fc2."),
    ),
}


def of_the_authors(name, state):
    """A published state dict as the authors' own file has it, with the buffers of theirs."""
    found = {}
    for key, array in state.items():
        key = key.removeprefix(f"{name}.").replace("classifier.", "head.")
        for pattern, new in AUTHORS[name]:
            key = re.sub(pattern, new, key)
        found[key] = array
    for key in [key for key in found if ".attn.query." in key]:
        parts = [found.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        found[key.replace("query", "qkv")] = np.concatenate(parts)
    if name == "swin":
        found["layers.0.blocks.1.attn_mask"] = np.zeros((64, 9, 9), np.float32)
        found["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((9, 9), np.int64)
    return found


@pytest.mark.parametrize("owner", ["hugging_face", "authors"])
@pytest.mark.parametrize("name", ["convnext", "swin"])
def test_published_classifiers_give_their_logits(name, owner, tmp_path):
    """Files as `save_pretrained` writes them, and the same arrays as the authors' checkpoints have them."""
    torch = pytest.importorskip("torch")
    model = hugging_face(name, "ForImageClassification")
    from safetensors.numpy import load_file, save_file
    from timm_parity import images, randomize, relative, theirs

    randomize(model).save_pretrained(tmp_path)
    path, state = tmp_path / "model.safetensors", load_file(tmp_path / "model.safetensors")
    if owner == "authors":
        state = {key: torch.tensor(array) for key, array in of_the_authors(name, state).items()}
        path = tmp_path / "w.pth"
        torch.save({"model": state, "epoch": 300}, path)
    elif name == "swin":  # published when it still was a buffer that is written
        state["swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = np.zeros((9, 9), np.int64)
        save_file(state, path)
    variables, image = pretrained.load(path, f"{name}_test", classifier=True), images(2, 96, 128)
    classifier = variables.pop("classifier")
    module, fields = trunks.get(f"{name}_test")
    feature_map, stages = jax.jit(lambda v, x: module.Trunk(**fields).apply(v, module.preprocess(x), False))(
        variables, image
    )
    vector = stages["pooled"][:, 0, 0] if name == "convnext" else feature_map.mean(axis=(1, 2))
    logits = vector @ classifier["kernel"] + classifier["bias"][None]
    expected = theirs(model, lambda model, x: {"logits": model(pixel_values=x).logits}, image, IMAGENET)[0]["logits"]
    print(name, owner, relative(logits, expected))
    assert relative(logits, expected) < 3e-5 and np.ptp(expected, axis=0).max() > 0.01


def random_variables(name):
    module, fields = trunks.get(name)
    trunk = module.Trunk(**fields)
    shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))
    rng = np.random.default_rng(0)
    return trunk, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize("name", ["convnext_test", "swin_test"])
def test_bfloat16_is_near_float32(name):
    trunk, variables = random_variables(name)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(1, 64, 64, 3)), jnp.float32)
    exact = jax.jit(lambda v, x: trunk.apply(v, x, False))(variables, image)
    rough = jax.jit(lambda v, x: trunk.clone(dtype=jnp.bfloat16).apply(v, x, False))(variables, image)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough)} == {jnp.dtype(jnp.bfloat16)}
    for got, expected in zip(jax.tree.leaves(rough), jax.tree.leaves(exact), strict=True):
        assert np.abs(got.astype(jnp.float32) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["convnext_test", "swin_test"])
def test_rematerialised_gradients_are_the_same(name):
    trunk, variables = random_variables(name)
    image = jnp.asarray(np.random.default_rng(1).normal(size=(1, 32, 32, 3)), jnp.float32)

    def gradient(level):
        def scalar(variables):
            with remat.level(level):
                return jnp.sum(trunk.apply(variables, image, True)[0] ** 2)

        return jax.jit(jax.grad(scalar))(variables)

    expected = gradient("none")
    top = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * top), gradient("full"), expected)


# Parameters of the published networks less their classifiers.
PUBLISHED = {
    "convnext_tiny": 28_589_128 - 769_000,
    "convnext_small": 50_223_688 - 769_000,
    "convnext_base": 88_591_464 - 1_025_000,
    "swin_tiny_patch4_window7": 28_288_354 - 769_000,
    "swin_s": 49_606_258 - 769_000,
    "swin_base_patch4_window7": 87_768_224 - 1_025_000,
    # Wider windows have 23^2 rows in the bias table of each head in place of 13^2.
    "swin_base_patch4_window12": 87_768_224 - 1_025_000 + 360 * (2 * 4 + 2 * 8 + 18 * 16 + 2 * 32),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_have_their_published_size(name):
    """Shapes alone: nothing is computed."""
    module, fields = trunks.get(name)
    trunk = module.Trunk(**fields, dtype=jnp.bfloat16)
    (feature_map, stages), variables = jax.eval_shape(
        lambda: trunk.init_with_output(jax.random.key(0), jnp.zeros((1, 224, 160, 3)), True)
    )
    width = fields["widths"][-1] if "widths" in fields else 8 * fields["width"]
    assert feature_map.shape == (1, 7, 5, width)
    assert [stages[f"stage{i}"].shape[1] for i in (1, 2, 3, 4)] == [56, 28, 14, 7]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == PUBLISHED[name]
    for convention in (module.torch_names, module.timm_names):
        names = convention(**fields)
        assert set(names) == {tuple(p.key for p in path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
        assert len(set(names.values())) == len(names)
    modules = list(variables["params"])
    assert set(trunks.stage_numbers(name, modules).values()) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("name", ["convnext_base_pooled", "swin_base_patch4_window12"])
def test_a_training_step_lowers_at_full_size(name):
    """Shapes alone, through the gradient: nothing is computed."""
    module, fields = trunks.get(name)
    trunk, images = module.Trunk(**fields, dtype=jnp.bfloat16), jax.ShapeDtypeStruct((2, 384, 384, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda x: trunk.init(jax.random.key(0), module.preprocess(x), True), images)

    def loss(variables, images):
        return trunk.apply(variables, module.preprocess(images), True)[0].astype(jnp.float32).mean()

    lowered = jax.jit(jax.grad(loss)).lower(shapes, images)
    assert jax.tree.map(lambda x: x.shape, lowered.out_info) == jax.tree.map(lambda x: x.shape, shapes)


def test_weights_of_another_size_are_refused_by_name(tmp_path, monkeypatch):
    """Another size of the family, and another family."""
    monkeypatch.setitem(convnext.NAMES, "convnext_other", CONVNEXT | {"depths": (1, 3, 1, 1)})

    def saved(module, fields):
        trunk, state = module.Trunk(**fields), {}
        shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            key = tuple(part.key for part in path)
            shape = leaf.shape
            if key[-1] == "kernel":
                shape = [shape[i] for i in (3, 2, 0, 1)] if len(shape) == 4 else shape[::-1]
            state[module.timm_names(**fields)[key]] = np.zeros(shape, np.float32)
        np.savez(tmp_path / "w.npz", **state)
        return tmp_path / "w.npz"

    path = saved(convnext, CONVNEXT)
    with pytest.raises(UserError, match=r"weights of convnext_other; missing in the file.*; they fit convnext_test$"):
        pretrained.load(path, "convnext_other")
    with pytest.raises(
        UserError, match=r"not the weights of swin_test; missing in the file.*; they fit convnext_test$"
    ):
        pretrained.load(path, "swin_test")
    path = saved(swin, SWIN)
    with pytest.raises(
        UserError, match=r"not the weights of convnext_other; missing in the file.*; they fit swin_test$"
    ):
        pretrained.load(path, "convnext_other")


def test_images_below_the_stride_are_refused():
    for name in ("convnext_test", "swin_test"):
        trunk, variables = random_variables(name)
        with pytest.raises(UserError, match="images of 31 x 64 pixels are too small for this trunk; it needs 32 x 32"):
            jax.eval_shape(lambda v, t=trunk: t.apply(v, jnp.zeros((1, 31, 64, 3)), False), variables)


def test_merging_reads_the_authors_files_at_the_end_of_a_stage():
    state = {f"layers.{i}.downsample.reduction.weight": np.full(1, i) for i in range(3)}
    found = swin.convert_state(state | {"layers.0.blocks.1.attn_mask": np.zeros(1)})
    assert found == {f"layers.{i + 1}.downsample.reduction.weight": np.full(1, i) for i in range(3)}


def test_names_of_hugging_face_become_those_of_timm():
    """Of published files, and of the state dicts of transformers 5."""
    table, block = "relative_position_bias_table", "encoder.layers.2.blocks.3."
    published = [f"attention.self.{name}" for name in ("query.bias", "key.bias", "value.bias", table)]
    published += ["attention.output.dense.bias", "intermediate.dense.bias", "output.dense.bias"]
    recent = [f"attention.{name}_proj.bias" for name in "qkv"] + [f"attention.relative_position_bias.{table}"]
    recent += ["attention.o_proj.bias", "mlp.fc1.bias", "mlp.fc2.bias"]
    for names in (published, recent):
        found = swin.convert_state({f"swin.{block}{name}": np.full(1, i) for i, name in enumerate(names)})
        expected = {"attn.qkv.bias": [0, 1, 2], f"attn.{table}": [3], "attn.proj.bias": [4]}
        expected |= {"mlp.fc1.bias": [5], "mlp.fc2.bias": [6]}
        expected = {f"layers.2.blocks.3.{name}": values for name, values in expected.items()}
        assert {name: array.tolist() for name, array in found.items()} == expected
