"""CLIP and SigLIP zero-shot: logits of Hugging Face's models from random weights; projections of other owners."""

import jax
import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.models.heads import linear
from jaxmlic.models.trunks import pretrained, vit
from jaxmlic.models.trunks.vit.forms import FORMS
from jaxmlic.training import starting_point

FIELDS = {"width": 32, "depth": 2, "heads": 2, "patch": 4, "grid": 4, "registers": 0}
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
IMAGE = {"image_size": 16, "patch_size": 4}
LABELS = ["cat", "dog", "potted plant"]


def clip_model():
    library = pytest.importorskip("transformers")
    config = library.CLIPConfig(
        text_config={**TOWER, "vocab_size": 50, "max_position_embeddings": 7, "eos_token_id": 49},
        vision_config={**TOWER, **IMAGE},
        projection_dim=12,
    )
    return library.CLIPModel(config), {"form": "clip", "projection": 12}


def siglip_model():
    library = pytest.importorskip("transformers")
    config = library.SiglipConfig(
        text_config={**TOWER, "vocab_size": 50, "max_position_embeddings": 7, "projection_size": 32},
        vision_config={**TOWER, **IMAGE},
    )
    return library.SiglipModel(config), {"form": "siglip", "pooled": True}


@pytest.mark.parametrize("make", [clip_model, siglip_model])
def test_logits_are_logits_per_image(make, tmp_path, monkeypatch):
    """From the model's own file of weights and a file of its text vectors, through the linear head."""
    torch = pytest.importorskip("torch")
    from timm_parity import randomize

    model, fields = make()
    model = randomize(model)
    with torch.no_grad():
        model.logit_scale.fill_(3.1)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-4.5)
    torch.save(model.state_dict(), tmp_path / "both_towers.pth")
    tokens = torch.randint(1, 48, (3, 7), generator=torch.Generator().manual_seed(1))
    tokens[:, -1] = 49
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in FORMS[fields["form"]].statistics)
    pixels = (torch.tensor(image).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
    with torch.no_grad():
        found = model(input_ids=tokens, pixel_values=pixels)
        texts = 7.0 * found.text_embeds  # of any length
    numbers = {"logit_scale": model.logit_scale.detach().numpy()}
    if hasattr(model, "logit_bias"):
        numbers["logit_bias"] = model.logit_bias.detach().numpy()
    np.savez(tmp_path / "names.npz", names=np.array(LABELS), vectors=texts.numpy(), **numbers)

    monkeypatch.setitem(vit.NAMES, "vit_both", FIELDS | fields)
    trunk = pretrained.load(tmp_path / "both_towers.pth", "vit_both")["params"]
    width = fields.get("projection", 32)
    layer, note = starting_point.text_layer(
        str(tmp_path / "names.npz"), LABELS, width, pool="avg_unit", trunk="vit_both"
    )
    head = linear.Model(3, trunk="vit_both", pool="avg_unit")
    scores = jax.jit(head.apply)({"params": {"trunk": trunk, "classifier": layer}}, image)["logits"]
    expected = found.logits_per_image.numpy()
    print(note, np.abs(scores - expected).max() / np.abs(expected).max())
    np.testing.assert_allclose(scores, expected, atol=3e-6 * np.abs(expected).max())
    assert np.ptp(expected) > 1  # the images and texts differ


def file_of(owner, projection):
    """Names and arrays beside those of the tower, as the owners' files have them; projection [E, D]."""
    return {
        "hugging_face": ("vision_model.", {"visual_projection.weight": projection, "logit_scale": np.zeros(())}),
        "openai": ("visual.", {"visual.proj": projection.T, "text_projection": np.zeros((3, 5))}),
        "timm": ("", {"head.weight": projection, "head.bias": np.zeros(len(projection))}),
        "open_clip": ("visual.trunk.", {"visual.head.proj.weight": projection}),
    }[owner]


def tower():
    fields = FIELDS | {"form": "clip"}
    shapes = jax.eval_shape(lambda: vit.Trunk(**fields).init(jax.random.key(0), np.zeros((1, 4, 4, 3)), False))
    rng, state = np.random.default_rng(0), {}
    names = vit.torch_names(**fields)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        key = tuple(part.key for part in path)
        shape = leaf.shape
        if key[-1] == "kernel":
            shape = [shape[i] for i in (3, 2, 0, 1)] if len(shape) == 4 else shape[::-1]
        state[names[key]] = rng.normal(size=shape).astype(np.float32)
    return state


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setitem(vit.NAMES, "vit_tiny_clip", FIELDS | {"form": "clip"})
    monkeypatch.setitem(vit.NAMES, "vit_tiny_clip_projected", FIELDS | {"form": "clip", "projection": 5})


@pytest.mark.parametrize("owner", ["hugging_face", "openai", "timm", "open_clip"])
def test_the_projection_is_read_from_every_owners_file(owner, names, tmp_path):
    projection = np.random.default_rng(1).normal(size=(5, 32)).astype(np.float32)
    prefix, more = file_of(owner, projection)
    np.savez(tmp_path / "w.npz", **{f"{prefix}{name}": array for name, array in tower().items()}, **more)
    params = pretrained.load(tmp_path / "w.npz", "vit_tiny_clip_projected")["params"]
    np.testing.assert_array_equal(params["projection"]["kernel"], projection.T)
    assert "projection" not in pretrained.load(tmp_path / "w.npz", "vit_tiny_clip")["params"]


def test_a_projection_that_is_not_the_trunks_is_refused(names, tmp_path):
    def refusal(**more):
        np.savez(tmp_path / "w.npz", **tower(), **more)
        with pytest.raises(UserError) as caught:
            pretrained.load(tmp_path / "w.npz", "vit_tiny_clip_projected")
        return str(caught.value)

    assert "it lacks the projection into the text's space (visual_projection, visual.proj); they fit" in refusal()
    classifier = {"head.weight": np.ones((5, 32)), "head.bias": np.ones(5)}  # of a network that was trained further
    assert "it lacks the projection into the text's space" in refusal(**classifier)
    assert "its projection's outputs number 7, the trunk's 5" in refusal(**{"proj": np.ones((32, 7), np.float32)})


def test_published_projections_have_the_width_of_their_texts():
    widths = {
        "vit_base_patch32_clip": 512,
        "vit_base_patch16_clip": 512,
        "vit_large_patch14_clip": 768,
        "vit_large_patch14_clip_336": 768,
        "vit_base_patch16_clip_gelu": 512,
        "vit_large_patch14_clip_gelu": 768,
    }
    for name, width in widths.items():
        channels, stages = pretrained.channels(f"{name}_projected")
        assert (channels, stages["projected"]) == (width, width)
        assert stages["pooled"] == {512: 768, 768: 1024}[width]
    assert not [name for name in vit.NAMES if name.endswith("_projected") and "clip" not in name.split("_")]
