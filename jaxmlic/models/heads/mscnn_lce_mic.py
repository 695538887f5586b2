"""MSCNN-LCE-MIC: stages of a trunk with attention, label embeddings from a graph, and their fusion (James and Lakshmi).

Each module can be switched off alone, as in Table IV; with `attention=False, fusion="dot"`, one stage and max pooling
it is ML-GCN (Chen et al., 2019), with `fusion="none"` and one stage the plain trunk with a linear classifier.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic.errors import UserError, check_choice, check_least
from jaxmlic.labels import graph as label_graph
from jaxmlic.labels.word_vectors import word_vectors
from jaxmlic.losses.named import named
from jaxmlic.models import trunks
from jaxmlic.models.heads.contract import LabelStatistics, Prediction, Reads
from jaxmlic.models.layers import attention, fusion, graph_convolution
from jaxmlic.models.layers.norm import Dropout
from jaxmlic.models.layers.pooling import POOLS

GRAPHS = ("gcn", "none")
FUSIONS = ("mfb", "dot", "none")
STAGE_LOGITS = ("off", "add")


class Model(nn.Module):
    """Images to label logits.

    Attributes:
      num_labels: C.
      trunk: name of a trunk (see jaxmlic.models.trunks).
      stages: the trunk's stages that are read; empty for its LEVELS (of VGG16 the 7th, 10th and 13th layer).
      map_size: maps with more rows or columns are averaged to so many; 0 leaves them as they are.
      stage_norm: whether each stage's vector is brought to the length sqrt(D), as ParseNet (Liu, Rabinovich and Berg,
        2016) does, so that none outweighs the others by its scale; the paper says nothing of scales.
      attention: True for the attended vector of each stage, with a global vector of all stages' pooled ones (eq 2)
        projected to `global_dim`; False for the pooled vectors themselves.
      pool: how a map becomes a vector where no attention does it: as in the linear head.
      graph: "gcn", label embeddings from word vectors by `gcn_layers` graph convolutions of `gcn_hidden` units, the
        last of `gcn_dim` (0: as wide as the image's vector); or "none", a free vector for each label.
      adjacency, threshold, reweight: style, phi and lambda of `label_graph.adjacency`, on the training split's labels.
      word_vectors, word_dim: source of `word_vectors`, and its width (0: that of "glove100", or C for "one_hot").
      fusion: "mfb" with `mfb_dim` units summed in groups of `mfb_groups`, and the normalisation `mfb_norm` (see
        `fusion.FactorizedBilinear`); "dot", the product of the image's vector and the label's; "none", a linear
        classifier for each stage, averaged (step 4), without label embeddings.
      stage_logits: "add", step 4's classifiers stay beside the fusion, and the logits are the mean of theirs and the
        fused ones; "off", the fused ones alone.
      dropout: rate on the vectors of the stages.
      batch_norm: "train" or "frozen", for trunks that have batch norm.
      dtype: compute dtype of the trunk; all else works in float32.
    """

    num_labels: int
    trunk: str = "vgg16"
    stages: Sequence[str] = ()
    map_size: int = 0
    stage_norm: bool = False
    attention: bool = True
    global_dim: int = 512
    pool: str = "avg"
    graph: str = "gcn"
    gcn_layers: int = 2
    gcn_hidden: int = 1024
    gcn_dim: int = 2048
    adjacency: str = "paper"
    threshold: float = 0.4
    reweight: float = 0.25
    word_vectors: str = "glove100"
    word_dim: int = 0
    fusion: str = "mfb"
    mfb_dim: int = 358
    mfb_groups: int = 2
    mfb_norm: str = "power_l2"
    stage_logits: str = "off"
    dropout: float = 0.0
    batch_norm: str = "train"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, labels: jax.Array | None = None, frozen_trunk: bool = False
    ) -> dict[str, jax.Array]:
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.StoredMaps` with stages, to label logits.

        Returns logits float32 [B, C], pooled [B, sum of D], the stages' vectors side by side (F in Section E), and
        where they exist: attention_STAGE [B, h, w], weights that sum to one; logits_STAGE [B, C]; label_embeddings
        [C, gcn_dim].
        """
        self._check()
        maps = trunks.stages(
            images,
            train,
            self.stages,
            name=self.trunk,
            dtype=self.dtype,
            batch_norm=self.batch_norm,
            map_size=self.map_size,
            frozen=frozen_trunk,
        )
        vectors, outputs = self._vectors({stage: x.astype(jnp.float32) for stage, x in maps.items()})
        if self.stage_norm:
            vectors = {stage: fusion.unit_scale(vector) for stage, vector in vectors.items()}
        outputs["pooled"] = jnp.concatenate(list(vectors.values()), axis=-1)  # [B, sum of D]
        dropout = Dropout(self.dropout, deterministic=not train)
        step_4 = None
        if self.fusion == "none" or self.stage_logits == "add":
            for stage, vector in vectors.items():
                classifier = nn.Dense(self.num_labels, name=f"classifier_{stage}")
                outputs[f"logits_{stage}"] = classifier(dropout(vector))
            step_4 = sum(outputs[f"logits_{stage}"] for stage in vectors) / len(vectors)
        if self.fusion == "none":
            return outputs | {"logits": step_4}
        pooled = dropout(outputs["pooled"])
        embeddings = self._label_embeddings(pooled.shape[-1])
        if self.fusion == "mfb":
            mfb = fusion.FactorizedBilinear(self.mfb_dim, self.mfb_groups, self.mfb_norm, name="fusion")
            logits = mfb(pooled, embeddings)
        else:
            logits = pooled @ embeddings.T
        if step_4 is not None:
            logits = (step_4 + logits) / 2
        return outputs | {"label_embeddings": embeddings, "logits": logits}

    def _vectors(self, maps: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The vector [B, D] of each stage, attended or pooled, and the attention maps."""
        pooled = {stage: POOLS[self.pool](x) for stage, x in maps.items()}
        if not self.attention:
            return pooled, {}
        joined = jnp.concatenate(list(pooled.values()), axis=-1)  # eq 2
        whole = nn.Dense(self.global_dim, name="global")(joined)  # [B, global_dim]
        attended, weights = {}, {}
        for stage, x in maps.items():
            attend = attention.SpatialAttention(name=f"attention_{stage}")
            attended[stage], weights[f"attention_{stage}"] = attend(x, whole)
        return attended, weights

    def _label_embeddings(self, width: int) -> jax.Array:
        """[C, gcn_dim], where `width` is the image vector's."""
        dim = self.gcn_dim or width
        if self.fusion == "dot" and dim != width:
            raise UserError(
                f"config.model.gcn_dim = {dim}, but the image's vector has {width} entries, and config.model.fusion = "
                f"'dot' needs as many: set config.model.gcn_dim=0"
            )
        if self.graph == "none":
            return self.param("label_embedding", nn.initializers.normal(dim**-0.5), (self.num_labels, dim))
        shape = (self.num_labels, word_dim(self.word_vectors, self.word_dim, self.num_labels))
        adjacency = self.variable("constants", "adjacency", jnp.zeros, (self.num_labels,) * 2, jnp.float32)
        vectors = self.variable("constants", "word_vectors", jnp.zeros, shape, jnp.float32)
        widths = (self.gcn_hidden,) * (self.gcn_layers - 1) + (dim,)
        return graph_convolution.GraphConvolutions(widths, name="gcn")(adjacency.value, vectors.value)

    def _check(self) -> None:
        """UserError for values that do not exist or do not go together."""
        choices = {"pool": POOLS, "graph": GRAPHS, "fusion": FUSIONS, "adjacency": label_graph.STYLES}
        choices |= {"mfb_norm": fusion.NORMS, "stage_logits": STAGE_LOGITS}
        for field, known in choices.items():
            check_choice(f"model.{field}", getattr(self, field), known)
        for field, least in (("gcn_layers", 1), ("gcn_hidden", 1), ("gcn_dim", 0), ("global_dim", 1), ("map_size", 0)):
            check_least(f"model.{field}", getattr(self, field), least)
        if self.fusion == "none" and self.graph != "none":
            raise UserError(
                f"config.model.graph = {self.graph!r} makes label embeddings that config.model.fusion = 'none' does "
                "not use: set graph='none' too, or fusion='mfb' or 'dot'"
            )
        if self.fusion == "none" and self.stage_logits == "add":
            raise UserError(
                "config.model.stage_logits = 'add' has nothing to be added to: config.model.fusion = 'none' is the "
                "stages' classifiers alone; set stage_logits='off'"
            )
        if self.fusion == "mfb":
            fusion.check_groups(self.mfb_dim, self.mfb_groups)


def word_dim(source: str, dim: int, num_labels: int) -> int:
    """Width of the word vectors; UserError where neither `dim` nor the source has one, or both have different ones."""
    own = {"glove100": 100, "one_hot": num_labels}.get(source)
    if own is None and dim < 1:
        raise UserError(f"config.model.word_dim = {dim}: set it to the width of the vectors of {source!r}")
    if own is not None and dim not in (0, own):
        raise UserError(f"config.model.word_dim = {dim}, but the vectors of {source!r} have {own} numbers")
    return own or dim


def reads(model: ConfigDict) -> Reads:
    """Stages of the trunk."""
    return Reads(stages=tuple(model.stages), map_size=model.map_size)


def loss_fn(
    outputs: dict[str, jax.Array], labels: jax.Array, *, name: str, options: tuple = (), key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The named loss on the logits (see `losses.named`), per example [B]; nothing further to log."""
    return named(name, options, outputs["logits"], labels, key), {}


def predict_fn(model: Model, variables: dict, images: jax.Array) -> Prediction:
    """Scores are the float32 logits; which labels count as predicted is a threshold's matter."""
    return Prediction(scores=model.apply(variables, images, train=False)["logits"])


def label_embeddings(variables: dict) -> dict[str, jax.Array]:
    """float32 [C, gcn_dim], of the graph or free, and with a graph its word_vectors [C, W].

    And where stages have classifiers of their own, classifier_STAGE [C, D], the weights of each label.
    """
    params, values = variables["params"], variables.get("constants", {})
    stages = {name: layer["kernel"].T for name, layer in params.items() if name.startswith("classifier_")}
    if "label_embedding" in params:
        return {"label_embedding": params["label_embedding"], **stages}
    if "gcn" not in params:
        return stages
    widths = tuple(params["gcn"][f"kernel_{layer}"].shape[1] for layer in range(len(params["gcn"])))
    layers = graph_convolution.GraphConvolutions(widths)
    embeddings = layers.apply({"params": params["gcn"]}, values["adjacency"], values["word_vectors"])
    return {"label_embedding": embeddings, "word_vectors": values["word_vectors"], **stages}


def constants(config: ConfigDict, statistics: LabelStatistics) -> tuple[dict[str, np.ndarray], list[str]]:
    """adjacency float32 [C, C] from the training labels and word_vectors float32 [C, W] (eqs 6 to 8, Section D).

    And a note on the words that have no vector. Nothing without a graph. Raises UserError for a threshold or weight out
    of range and as `word_vectors` does.
    """
    model = config.model
    if model.graph == "none":
        return {}, []
    try:
        adjacency = label_graph.adjacency(
            *label_graph.cooccurrence(statistics.labels), model.threshold, model.reweight, model.adjacency
        )
    except ValueError as error:
        raise UserError(f"config.model.threshold, config.model.reweight: {error}") from None
    dim = word_dim(model.word_vectors, model.word_dim, len(statistics.class_names))
    vectors, lookup = word_vectors(statistics.class_names, model.word_vectors, dim=dim, seed=config.seed)
    if vectors.shape[1] != dim:
        raise UserError(
            f"config.model.word_dim = {dim}, but the vectors of {model.word_vectors!r} have {vectors.shape[1]} numbers"
        )
    return {"adjacency": adjacency, "word_vectors": vectors}, [str(lookup)]
