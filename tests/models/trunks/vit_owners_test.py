"""Vision transformers of Hugging Face and torchvision, random weights under their owners' names: the same features."""

import numpy as np
import pytest

from jaxmlic.models.trunks import vit
from jaxmlic.models.trunks.vit.forms import FORMS

FIELDS = {"width": 32, "depth": 2, "heads": 2, "patch": 4, "grid": 4, "registers": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


def grid(tokens):
    return tokens[:, -16:].reshape(len(tokens), 4, 4, -1)


def vector(x):
    return x.reshape(len(x), 1, 1, -1)


def hugging_face(kind):
    """(model, outputs, registers)"""
    library = pytest.importorskip("transformers")
    wide = {"intermediate_size": 128}
    if kind == "clip":
        model = library.CLIPVisionModel(library.CLIPVisionConfig(**SIZES, **wide))
        norm = getattr(model, "vision_model", model).post_layernorm

        def outputs(model, x):
            found = model(pixel_values=x)
            return {"map": grid(norm(found.last_hidden_state)), "pooled": vector(found.pooler_output)}

        return model, outputs, 0
    if kind == "siglip":
        model = library.SiglipVisionModel(library.SiglipVisionConfig(**SIZES, **wide))

        def outputs(model, x):
            found = model(pixel_values=x)
            return {"map": grid(found.last_hidden_state), "pooled": vector(found.pooler_output)}

        return model, outputs, 0

    def outputs(model, x):
        tokens = model(pixel_values=x).last_hidden_state
        return {"map": grid(tokens), "pooled": vector(tokens[:, 0])}

    if kind == "augreg":
        return library.ViTModel(library.ViTConfig(**SIZES, **wide, layer_norm_eps=1e-6)), outputs, 0
    if kind == "registers":
        config = library.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2)
        return library.Dinov2WithRegistersModel(config), outputs, 2
    return library.Dinov2Model(library.Dinov2Config(**SIZES)), outputs, 0


def torchvision():
    models = pytest.importorskip("torchvision.models")

    def outputs(model, x):
        import torch

        patches = model._process_input(x)
        tokens = model.encoder(torch.cat([model.class_token.expand(len(x), -1, -1), patches], dim=1))
        return {"map": grid(tokens), "pooled": vector(tokens[:, 0])}

    return models.VisionTransformer(16, 4, 2, 2, 32, 128, num_classes=5), outputs, 0


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "registers", "augreg", "torchvision"])
def test_features_are_those_of_the_owner(kind, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    model, outputs, registers = torchvision() if kind == "torchvision" else hugging_face(kind)
    from timm_parity import compare, randomize

    form = "dinov2" if kind == "registers" else kind
    monkeypatch.setitem(vit.NAMES, "vit_owner", FIELDS | {"form": form, "registers": registers})
    found = compare(randomize(model), outputs, "vit_owner", tmp_path / "w.pth", (16, 16), FORMS[form].statistics)
    print(kind, found)
    assert max(found.values()) < 3e-5, found


def test_openai_and_meta_names_become_those_of_timm():
    """Of a file with a text tower only the images' is read; fused arrays stay, the text's names go."""
    block = {"ln_1.weight", "ln_2.bias", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight"}
    names = {f"visual.transformer.resblocks.3.{name}" for name in block | {"mlp.c_fc.weight", "mlp.c_proj.bias"}}
    names |= {"visual.conv1.weight", "visual.ln_pre.weight", "visual.ln_post.bias", "visual.proj"}
    names |= {"transformer.resblocks.0.ln_1.weight", "text_projection", "logit_scale", "token_embedding.weight"}
    found = set(vit.convert_state({name: np.zeros((2, 2)) for name in names}, form="clip"))
    expected = {"norm1.weight", "norm2.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight"}
    expected = {f"blocks.3.{name}" for name in expected | {"mlp.fc1.weight", "mlp.fc2.bias"}}
    assert found == expected | {"patch_embed.proj.weight", "norm_pre.weight", "norm.bias", "proj"}
    meta = {
        "register_tokens": np.zeros((1, 4, 8)),
        "mask_token": np.zeros((1, 8)),
        "cls_token": np.full((1, 1, 8), 2.0),
    }
    meta = vit.convert_state(meta | {"pos_embed": np.arange(80.0).reshape(1, 10, 8)}, form="dinov2")
    np.testing.assert_array_equal(meta["cls_token"], np.arange(8.0)[None] + 2)
    np.testing.assert_array_equal(meta["pos_embed"], np.arange(8.0, 80.0).reshape(9, 8))
    assert meta["reg_token"].shape == (1, 4, 8)
