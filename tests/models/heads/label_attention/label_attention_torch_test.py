"""CSRA, ML-Decoder and Query2Label beside networks of PyTorch's own layers: logits, and gradients of everything.

A head's variables are loaded into the network, and so are JAX's gradients of them, which are compared with autograd's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlic.models import trunks
from jaxmlic.models.heads.label_attention import csra, ml_decoder, query2label

torch = pytest.importorskip("torch")
nn = torch.nn

BATCH, HEIGHT, WIDTH, CHANNELS, LABELS = 2, 3, 5, 16, 7
GRID = np.random.default_rng(0).normal(size=(BATCH, HEIGHT, WIDTH, CHANNELS)).astype(np.float32)
SMALL = {"hidden": 24, "num_heads": 4}
TOLERANCE = 1e-5


# What is loaded: names of PyTorch's layers, from trees of variables or of their gradients


def named(prefix, layer):
    """A linear layer, a layer norm, or an attention's three projections in one."""
    if "query" in layer:
        parts = [layer[name] for name in ("query", "key", "value")]
        fused = {
            f"{prefix}.in_proj_weight": np.concatenate([part["kernel"].T for part in parts]),
            f"{prefix}.in_proj_bias": np.concatenate([part["bias"] for part in parts]),
        }
        return fused | named(f"{prefix}.out_proj", layer["out"])
    weight = layer["scale"] if "scale" in layer else layer["kernel"].T
    return {f"{prefix}.weight": weight, f"{prefix}.bias": layer["bias"]}


def of_layer(prefix, layer, names):
    """A layer of an encoder or decoder; names: PyTorch's of its attentions and norms."""
    found = named(f"{prefix}.linear1", layer["feed_forward"]["hidden"])
    found |= named(f"{prefix}.linear2", layer["feed_forward"]["out"])
    for ours, theirs in names.items():
        if ours in layer:
            found |= named(f"{prefix}.{theirs}", layer[ours])
    return found


ENCODER = {"self_attention": "self_attn", "norm_self": "norm1", "norm_out": "norm2"}
DECODER = {
    "self_attention": "self_attn",
    "norm_self": "norm1",
    "cross_attention": "multihead_attn",
    "norm_cross": "norm2",
    "norm_out": "norm3",
}


def layers_of(params):
    found = {}
    for name in params:
        kind, _, number = name.partition("_")
        if kind in ("encoder", "decoder"):
            found |= of_layer(f"{kind}.{number}", params[name], ENCODER if kind == "encoder" else DECODER)
    return found


# The networks


class Csra(nn.Module):
    """A 1x1 convolution a head, with rows of length one; mean score, and mean weighted by a softmax or maximum."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.temperatures = [*model.temperatures, *([torch.inf] if model.max_head else [])]
        self.heads = nn.ModuleList(nn.Conv2d(CHANNELS, LABELS, 1, bias=False) for _ in self.temperatures)

    @staticmethod
    def state(params):
        return {f"heads.{name.split('_')[1]}.weight": kernel.T[:, :, None, None] for name, kernel in params.items()}

    def forward(self, x):
        logits = torch.zeros(len(x), LABELS)
        for temperature, head in zip(self.temperatures, self.heads, strict=True):
            scores = head(x)
            if self.model.unit_classifier:
                scores = scores / head.weight.norm(dim=1).reshape(1, LABELS, 1, 1)
            scores = scores.flatten(2)
            if temperature == torch.inf:
                attended = scores.max(dim=2).values
            else:
                attended = (scores * nn.functional.softmax(temperature * scores, dim=2)).sum(dim=2)
            logits = logits + scores.mean(dim=2) + self.model.attention_weight * attended
        return logits


class DecoderLayer(nn.TransformerDecoderLayer):
    """PyTorch's layer, with encodings of queries and positions; mixing: "attention", "doubled" or "none" before it."""

    def __init__(self, width, model, mixing):
        super().__init__(width, model.num_heads, model.hidden, dropout=0.0, batch_first=True)
        self.mixing = mixing
        if mixing != "attention":
            self.self_attn = None
        if mixing == "none":
            self.norm1 = None

    def forward(self, tgt, memory, query=0.0, pos=0.0):
        if self.mixing == "attention":
            asked = tgt + query
            tgt = self.norm1(tgt + self.self_attn(asked, asked, tgt)[0])
        elif self.mixing == "doubled":
            tgt = self.norm1(tgt + tgt)
        tgt = self.norm2(tgt + self.multihead_attn(tgt + query, memory + pos, memory)[0])
        return self.norm3(tgt + self.linear2(nn.functional.relu(self.linear1(tgt))))


class EncoderLayer(nn.TransformerEncoderLayer):
    """PyTorch's layer, with encodings of positions."""

    def __init__(self, width, model):
        super().__init__(width, model.num_heads, model.hidden, dropout=0.0, batch_first=True)

    def forward(self, src, pos):
        if not isinstance(pos, torch.Tensor):
            return super().forward(src)
        src = self.norm1(src + self.self_attn(src + pos, src + pos, src)[0])
        return self.norm2(src + self.linear2(nn.functional.relu(self.linear1(src))))


class MlDecoder(nn.Module):
    """Embedded positions, queries that do not see each other, and a linear layer for each query's group of labels."""

    def __init__(self, model):
        super().__init__()
        count = min(model.groups or LABELS, LABELS)
        size = int(np.ceil(LABELS / count))
        self.project = nn.Linear(CHANNELS, model.embedding)
        self.queries = nn.Embedding(count, model.embedding)
        self.queries.requires_grad_(model.queries == "learned")
        self.decoder = nn.ModuleList(DecoderLayer(model.embedding, model, "doubled") for _ in range(model.layers))
        self.groups = nn.ParameterList(torch.zeros(model.embedding, size) for _ in range(count))
        self.bias = nn.Parameter(torch.zeros(LABELS))

    @staticmethod
    def state(params):
        found = {f"groups.{i}": kernel for i, kernel in enumerate(params["group_kernel"])}
        if "query_embedding" in params:
            found["queries.weight"] = params["query_embedding"]
        return found | {"bias": params["group_bias"]} | named("project", params["project"]) | layers_of(params)

    def forward(self, x):
        memory = nn.functional.relu(self.project(x.flatten(2).transpose(1, 2)))
        tgt = self.queries.weight.expand(len(x), -1, -1)
        for layer in self.decoder:
            tgt = layer(tgt, memory)
        divided = [query @ group for query, group in zip(tgt.unbind(dim=1), self.groups, strict=True)]
        return torch.cat(divided, dim=1)[:, :LABELS] + self.bias


def sines(height, width, channels):
    """DETR's encodings [height * width, channels]: half of the channels for the row, half for the column."""
    half = channels // 2
    rates = 10000.0 ** -(torch.arange(0, half, 2, dtype=torch.float64) / half)

    def along(count):
        angles = 2 * torch.pi * torch.arange(1, count + 1)[:, None] / (count + 1e-6) * rates
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)

    rows = along(height)[:, None].expand(-1, width, -1)
    columns = along(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).float()


class Query2Label(nn.Module):
    """DETR's transformer, post-norm, whose queries are the labels', and a linear unit for each of them."""

    def __init__(self, model):
        super().__init__()
        width = model.embedding or CHANNELS
        self.project = nn.Conv2d(CHANNELS, width, 1) if model.embedding else nn.Identity()
        self.pos = sines(HEIGHT, WIDTH, width) if model.positions == "sine" else 0.0
        self.query = nn.Embedding(LABELS, width)
        self.encoder = nn.ModuleList(EncoderLayer(width, model) for _ in range(model.encoder_layers))
        mixings = {"none": [], "all": range(model.decoder_layers), "later": range(1, model.decoder_layers)}
        self.decoder = nn.ModuleList(
            DecoderLayer(width, model, "attention" if i in mixings[model.self_attention] else "none")
            for i in range(model.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.units = nn.ModuleList(nn.Linear(width, 1) for _ in range(LABELS))

    @staticmethod
    def state(params):
        found = {"query.weight": params["query_embedding"]} | named("norm", params["norm_out"]) | layers_of(params)
        for i in range(LABELS):
            found[f"units.{i}.weight"] = params["classifier_kernel"][i][None]
            found[f"units.{i}.bias"] = params["classifier_bias"][i][None]
        if "project" in params:
            found |= named("project", params["project"])
            found["project.weight"] = found["project.weight"][:, :, None, None]
        return found

    def forward(self, x):
        memory = self.project(x).flatten(2).transpose(1, 2)
        for layer in self.encoder:
            memory = layer(memory, self.pos)
        query = self.query.weight
        tgt = torch.zeros(len(x), *query.shape)
        for layer in self.decoder:
            tgt = layer(tgt, memory, query, self.pos)
        return torch.cat([unit(self.norm(tgt)[:, i]) for i, unit in enumerate(self.units)], dim=1)


CASES = {
    "csra": (csra, {}, Csra),
    "csra four heads": (csra, {"temperatures": (1.0, 2.0, 4.0), "max_head": True, "attention_weight": 0.3}, Csra),
    "csra as printed": (csra, {"temperatures": (2.0,), "unit_classifier": False}, Csra),
    "ml_decoder full": (ml_decoder, {"groups": 0, "embedding": 12, "queries": "learned", **SMALL}, MlDecoder),
    "ml_decoder groups": (ml_decoder, {"groups": 3, "embedding": 12, "queries": "learned", **SMALL}, MlDecoder),
    "ml_decoder fixed": (ml_decoder, {"groups": 4, "embedding": 12, "layers": 2, **SMALL}, MlDecoder),
    "query2label": (query2label, SMALL, Query2Label),
    "query2label later": (query2label, {"embedding": 12, "self_attention": "later", **SMALL}, Query2Label),
    "query2label all": (query2label, {"self_attention": "all", "encoder_layers": 2, **SMALL}, Query2Label),
    "query2label no positions": (query2label, {"positions": "none", "self_attention": "all", **SMALL}, Query2Label),
    "query2label decoder alone": (query2label, {"encoder_layers": 0, "decoder_layers": 1, **SMALL}, Query2Label),
}


def drawn(name):
    """A case's head, its variables of random numbers, and the network of PyTorch that has them."""
    head, fields, network = CASES[name]
    model, rng = head.Model(LABELS, **fields), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), trunks.StoredMaps(jnp.asarray(GRID))))

    def draw(path, leaf):
        around = 1.0 if path[-1].key == "scale" else 0.0
        return (around + 0.4 * rng.normal(size=leaf.shape)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    state = network.state(variables["params"])
    if "constants" in variables:
        state["queries.weight"] = variables["constants"]["queries"]
    network = network(model).eval()
    network.load_state_dict({key: torch.tensor(np.ascontiguousarray(value)) for key, value in state.items()})
    return model, variables, network


def difference(got, expected, name="logits"):
    """The largest, over the largest value (or 1, where all are smaller); below the tolerance."""
    got, expected = np.asarray(got), expected.detach().numpy()
    assert got.shape == expected.shape and got.dtype == expected.dtype == np.float32, name
    worst = np.abs(got - expected).max() / max(np.abs(expected).max(), 1)
    assert worst < TOLERANCE, (name, worst)
    return worst


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_pytorch(name):
    model, variables, network = drawn(name)
    found = jax.jit(model.apply)(variables, trunks.StoredMaps(jnp.asarray(GRID)))["logits"]
    with torch.no_grad():
        expected = network(torch.tensor(GRID).permute(0, 3, 1, 2))
    print(name, difference(found, expected))
    assert np.abs(found[0] - found[1]).max() > 0.1  # the logits are the image's, not those of biases alone


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd(name):
    """Of the logits weighted at random, by the feature map and by every parameter."""
    model, variables, network = drawn(name)
    weights = np.random.default_rng(2).normal(size=(BATCH, LABELS)).astype(np.float32)

    def total(params, grid):
        return jnp.sum(model.apply({**variables, "params": params}, trunks.StoredMaps(grid))["logits"] * weights)

    by_params, by_grid = jax.jit(jax.grad(total, argnums=(0, 1)))(variables["params"], jnp.asarray(GRID))
    grid = torch.tensor(GRID, requires_grad=True)
    (network(grid.permute(0, 3, 1, 2)) * torch.tensor(weights)).sum().backward()
    worst = {"feature map": difference(by_grid, grid.grad)}
    found = network.state(by_params)
    expected = {key: value.grad for key, value in network.named_parameters() if value.requires_grad}
    assert found.keys() == expected.keys()
    worst |= {key: difference(found[key], expected[key], key) for key in found}
    print(name, max(worst.values()))
    idle = {key for key in found if np.abs(found[key]).max() < 1e-3}
    assert idle <= {"decoder.0.self_attn.in_proj_weight"}  # there all states are zero
