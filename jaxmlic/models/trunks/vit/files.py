"""Files of vision transformers: timm's names, and those of torchvision, Hugging Face, OpenAI and Meta brought to them.

`convert_state` gives a file's arrays under timm's names: query, key and value in one array, the class token with its
position embedding added (they only ever occur as this sum), and position embeddings of the patches alone.
"""

import re
from typing import Any

import numpy as np

from jaxmlic.models.trunks.vit.forms import FORMS
from jaxmlic.models.weights.renaming import State, compiled, fuse_qkv, renamed

TORCH_CLASSIFIER = ("head", "heads.head", "classifier")
TORCH_LEFT_OUT = ("mask_token", "position_ids", "pooler", "proj", "attn_pool", "head_dist")
PROJECTION = "visual_projection.weight"  # [E, D]; Hugging Face's name

# Of a file with a text tower only what begins so is read; the first that occurs.
_TOWERS = ("visual.trunk.", "visual.", "vision_model.", "clip.vision_model.", "siglip.vision_model.")
# Every name goes through these in turn.
_RENAMED = compiled(
    (r"^(vit|dinov2|dinov2_with_registers)\.", ""),
    (r"^(embeddings\.cls_token|embeddings\.class_embedding|class_embedding|class_token)$", "cls_token"),
    (r"^(embeddings\.)?register_tokens$", "reg_token"),
    (r"^embeddings\.(mask_token|position_ids)$", r"\1"),
    (r"^(embeddings\.position_embeddings|embeddings\.position_embedding\.weight)$", "pos_embed"),
    (r"^(positional_embedding|encoder\.pos_embedding)$", "pos_embed"),
    (
        r"^(embeddings\.patch_embeddings\.projection|embeddings\.patch_embedding|conv1|conv_proj)\.",
        "patch_embed.proj.",
    ),
    (r"^(pre_layrnorm|ln_pre)\.", "norm_pre."),
    (r"^(layernorm|post_layernorm|ln_post|encoder\.ln)\.", "norm."),
    (r"^(encoder\.layers?|layers|transformer\.resblocks)\.(encoder_layer_)?(\d+)\.", r"blocks.\3."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_(weight|bias)$", r"attn_pool.in_proj.\1"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"(?<=\d\.)(layernorm_before|layer_norm1|ln_1)\.", "norm1."),
    (r"(?<=\d\.)(layernorm_after|layer_norm2|ln_2)\.", "norm2."),
    (r"(?<=\d\.)(attention\.attention|self_attn|attention)\.(q_proj|query)\.", "attn.q."),
    (r"(?<=\d\.)(attention\.attention|self_attn|attention)\.(k_proj|key)\.", "attn.k."),
    (r"(?<=\d\.)(attention\.attention|self_attn|attention)\.(v_proj|value)\.", "attn.v."),
    (r"(?<=\d\.)(attn|self_attention)\.in_proj_(weight|bias)$", r"attn.qkv.\2"),
    (
        r"(?<=\d\.)(attention\.output\.dense|self_attn\.out_proj|self_attention\.out_proj|attn\.out_proj)\.",
        "attn.proj.",
    ),
    (r"(?<=\d\.)attention\.o_proj\.", "attn.proj."),
    (r"(?<=\d\.)(intermediate\.dense|mlp\.c_fc|mlp\.linear_1|mlp\.0)\.", "mlp.fc1."),
    (r"(?<=\d\.)(output\.dense|mlp\.c_proj|mlp\.linear_2|mlp\.3)\.", "mlp.fc2."),
    (r"(?<=\d\.)layer_scale([12])\.lambda1$", r"ls\1.gamma"),
)


def convert_state(state: State, form: str = "augreg", projection: int = 0, **_: Any) -> State:
    """The arrays of a file under timm's names; a file of another network comes out as it may.

    projection: where it is not 0, the layer into the text's space comes as PROJECTION.
    """
    projected = _projection(state) if projection else {}
    for tower in _TOWERS:
        if any(name.startswith(tower) for name in state):
            state = {name.removeprefix(tower): array for name, array in state.items() if name.startswith(tower)}
            break
    found = fuse_qkv(renamed(state, _RENAMED))
    for leaf in ("weight", "bias"):  # of an attention pool: query, and key with value
        fused = found.pop(f"attn_pool.in_proj.{leaf}", None)
        if fused is not None:
            third = len(fused) // 3
            found[f"attn_pool.q.{leaf}"], found[f"attn_pool.kv.{leaf}"] = fused[:third], fused[third:]
    return _with_position_of_class(found, FORMS[form].class_token) | projected


def _projection(state: State) -> State:
    """{PROJECTION: [E, D]} of Hugging Face's, OpenAI's or timm's file; {} where there is none."""
    for name in (PROJECTION, f"clip.{PROJECTION}", "visual.head.proj.weight"):
        if name in state:
            return {PROJECTION: state[name]}
    for name in ("visual.proj", "proj"):  # OpenAI's multiplies from the right
        if name in state and state[name].ndim == 2:
            return {PROJECTION: state[name].T}
    bias = state.get("head.bias", np.zeros(1))  # timm writes zeros beside the projection; a classifier has others
    if "head.weight" in state and not bias.any():
        return {PROJECTION: state["head.weight"]}
    return {}


def _with_position_of_class(state: State, class_token: bool) -> State:
    position = state.get("pos_embed")
    if position is None or position.ndim not in (2, 3):
        return state
    rows = position.reshape(-1, position.shape[-1])
    token = state.get("cls_token")
    if class_token and token is not None and token.size == rows.shape[1] and len(rows) == _square(len(rows)) + 1:
        token = token.reshape(1, -1).astype(np.float32) + rows[:1].astype(np.float32)
        return state | {"cls_token": token, "pos_embed": rows[1:]}
    return state | {"pos_embed": rows}


def _square(count: int) -> int:
    """The largest square number below `count`."""
    return int((count - 1) ** 0.5 + 0.5) ** 2 if count > 1 else 0


def torch_names(
    depth: int = 12, form: str = "augreg", registers: int = 0, projection: int = 0, **_: Any
) -> dict[tuple[str, ...], str]:
    """Variable -> timm's name: ("params", "blocks_0", "attn", "qkv", "kernel") -> "blocks.0.attn.qkv.weight"."""
    rules, names = FORMS[form], {}

    def layer(path: str, prefix: str, leaf: str = "kernel", *, bias: bool = True) -> None:
        names["params", *path.split("/"), leaf] = f"{prefix}.weight"
        if bias:
            names["params", *path.split("/"), "bias"] = f"{prefix}.bias"

    names["params", "position"] = "pos_embed"
    layer("patches", "patch_embed.proj", bias=not rules.pre_norm)
    if rules.class_token:
        names["params", "class_token"] = "cls_token"
    if registers:
        names["params", "registers"] = "reg_token"
    if rules.pre_norm:
        layer("norm_pre", "norm_pre", "scale")
    for i in range(depth):
        ours, theirs = f"blocks_{i}", f"blocks.{i}"
        layer(f"{ours}/norm1", f"{theirs}.norm1", "scale"), layer(f"{ours}/norm2", f"{theirs}.norm2", "scale")
        layer(f"{ours}/attn/qkv", f"{theirs}.attn.qkv"), layer(f"{ours}/attn/proj", f"{theirs}.attn.proj")
        layer(f"{ours}/fc1", f"{theirs}.mlp.fc1"), layer(f"{ours}/fc2", f"{theirs}.mlp.fc2")
        if rules.layer_scale:
            names["params", ours, "gamma1"], names["params", ours, "gamma2"] = (
                f"{theirs}.ls1.gamma",
                f"{theirs}.ls2.gamma",
            )
    layer("norm", "norm", "scale")
    if projection:
        names["params", "projection", "kernel"] = PROJECTION
    if rules.pool:
        names["params", "pool", "latent"] = "attn_pool.latent"
        for ours in ("q", "kv", "proj"):
            layer(f"pool/{ours}", f"attn_pool.{ours}")
        layer("pool/norm", "attn_pool.norm", "scale")
        layer("pool/fc1", "attn_pool.mlp.fc1"), layer("pool/fc2", "attn_pool.mlp.fc2")
    return names


def differences(
    state: State,
    width: int,
    depth: int,
    patch: int,
    grid: int,
    form: str,
    registers: int,
    projection: int = 0,
    **_: Any,
) -> list[str]:
    """What the vision transformer of a file (its converted arrays) has otherwise than the trunk of these fields."""
    rules, kernel = FORMS[form], state.get("patch_embed.proj.weight")
    blocks = {int(found[1]) for found in (re.match(r"blocks\.(\d+)\.", name) for name in state) if found}
    if kernel is None or kernel.ndim != 4 or not blocks:
        return ["it holds no vision transformer"]
    found = []

    def compare(what: str, theirs: Any, ours: Any) -> None:
        if theirs != ours:
            found.append(f"{what} {theirs}, the trunk's {ours}")

    compare("its patches are", " x ".join(map(str, kernel.shape[2:])), f"{patch} x {patch}")
    compare("its width is", kernel.shape[0], width)
    compare("its blocks number", max(blocks) + 1, depth)
    if not found and "pos_embed" in state:
        count = len(state["pos_embed"])
        theirs = f"{count**0.5:g} x {count**0.5:g} patches" if count == round(count**0.5) ** 2 else f"{count} tokens"
        compare("its position embeddings are for", theirs, f"{grid} x {grid} patches")
    registered = state.get("reg_token", np.zeros((1, 0, 1))).shape[-2]
    compare("its register tokens number", registered, registers)
    parts = {
        "a class token": ("cls_token", rules.class_token),
        "layer scale": ("blocks.0.ls1.gamma", rules.layer_scale),
        "a norm before its blocks": ("norm_pre.weight", rules.pre_norm),
    }
    for what, (name, wanted) in parts.items():
        if (name in state) != wanted:
            found.append(f"it has {what}, the trunk has none" if name in state else f"it lacks {what}")
    if rules.pool and "attn_pool.latent" not in state:
        found.append("it lacks an attention pool")
    if projection and PROJECTION not in state:
        found.append("it lacks the projection into the text's space (visual_projection, visual.proj)")
    elif projection and not found:
        compare("its projection's outputs number", len(state[PROJECTION]), projection)
    return found
