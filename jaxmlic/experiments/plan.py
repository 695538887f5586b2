"""What a run would take, from shapes alone: neither data nor weights are needed, and nothing is computed.

The model is initialised and its training step traced and lowered at the config's own image size, batch and trunk.
"""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import metrics, sharding, storage
from jaxmlic.data import benchmark_facts, datasets
from jaxmlic.errors import UserError
from jaxmlic.evaluation import scoring
from jaxmlic.experiments import step_costs
from jaxmlic.experiments.devices import UTILISATION, Device
from jaxmlic.inputs import DescriptorSource, Source, open_source
from jaxmlic.models import trunks
from jaxmlic.models.heads import contract
from jaxmlic.training import durations, optim, run_folder, starting_point, step
from jaxmlic.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one run takes.

    Attributes:
      labels, images: C, and the training examples.
      inputs: what the model reads, as text.
      batch, devices: the global batch and what it is divided over.
      parameters, trainable: numbers of values.
      state_bytes: parameters, statistics, optimizer state, averages and gradients that a device holds; where they are
        divided, its share of them and the gathered parameters.
      activation_bytes: the part of a batch on one device, what the backward pass keeps of the forward one, and twice
        the largest value, before XLA fuses anything: an upper bound.
      flops: of a training step over the global batch.
      collective_bytes: gradients and batch statistics that are summed over the devices in a step, once for each
        micro-batch.
      gathered_bytes: parameters that a step gathers from all devices, where the state is divided.
      collectives: {kind: (number, bytes)} of the compiled step, empty where it was not compiled.
      steps: of the whole training.
      needs: files and data that must be there, each with whether it is.
      problems: why training would fail or mean nothing.
      notes: what is worth knowing.
    """

    labels: int
    images: int
    inputs: str
    batch: int
    devices: int
    parameters: int
    trainable: int
    state_bytes: int
    activation_bytes: int
    flops: float
    collective_bytes: int
    gathered_bytes: int
    collectives: dict[str, tuple[int, int]]
    steps: int
    needs: tuple[tuple[str, bool], ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def memory(self) -> int:
        """Bytes that a device needs at most, beside the program itself."""
        return self.state_bytes + self.activation_bytes

    @property
    def utilisation(self) -> float:
        """The share of a device's peak by which arithmetic is turned into time."""
        return UTILISATION

    def seconds(self, device: Device, dtype: str) -> float:
        """Of the whole training on such devices at `utilisation` of their peak, without evaluation and input."""
        return self.steps * self.step_seconds(device, dtype)

    def step_seconds(self, device: Device, dtype: str) -> float:
        """Of a step's arithmetic."""
        return self.flops / (self.devices * self.utilisation * getattr(device, dtype))

    def link_seconds(self, device: Device) -> float:
        """Of a step's collectives, were none hidden behind the arithmetic."""
        # A gather is the second half of an all-reduce.
        return device.all_reduce_seconds(self.collective_bytes + self.gathered_bytes / 2, self.devices)


def make(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    *,
    labels: int | None = None,
    images: int | None = None,
    first_stage: ConfigDict | None = None,
    compile_step: bool = False,
) -> Plan:
    """The plan of a run over the devices of `mesh`.

    Args:
      config: of the run.
      mesh: CPU devices stand for any others.
      labels: C, for a data set that is neither a known benchmark nor prepared here.
      images: training examples, likewise.
      first_stage: config of the run that this one starts from, where that is not there yet.
      compile_step: also compile the step, to count the collectives of the program.

    Raises:
      UserError: a config that cannot be built: unknown names, groups that match nothing, a batch that the devices do
        not divide, a data set of which nothing is known.
    """
    step.check_batch(config, mesh.size)
    scoring.check_rules(config)
    labels, images = _sizes(config, labels, images)
    source, notes = _source(config)
    head = contract.find(config.head)
    if contract.has_closed_form(head):
        raise UserError(f"config.head = {config.head!r} is fitted at once: there are no steps to plan")
    model = contract.make_model(head, config, labels, images)
    tx, multipliers, _, total = state_lib.optimizer(config, model, source.example(), images)
    state = state_lib.abstract(config, model, source.example(), images, mesh, config.train.shard_state)
    batch = _batch(config, source, labels, mesh)
    place = jax.tree.map(lambda x: x.sharding, state)

    def lower(config: ConfigDict) -> jax.stages.Lowered:
        return jax.jit(
            step.make_step_fn(head, model, config, source, tx, multipliers, images, mesh),
            in_shardings=(place, sharding.split(mesh)),
            out_shardings=(place, sharding.replicated(mesh)),
            donate_argnums=0,
            compiler_options=step.compiler_options(config),
        ).lower(state, batch)

    lowered, parts = lower(config), config.train.accumulate
    # XLA counts the body of a loop once.
    counted = lowered if parts == 1 else lower(config_lib.override(config, {"train.accumulate": 1}))
    part = {
        name: jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]), x.dtype, sharding=x.sharding)
        for name, x in batch.items()
    }
    trainable, _ = state_lib.partition(state.params, multipliers)
    kept, largest = step_costs.activations(head, model, config, source, multipliers, state, part)
    prediction = jax.eval_shape(
        lambda variables, inputs: head.predict_fn(model, variables, inputs),
        state_lib.eval_variables(state),
        source.example(),
    )
    problems = [
        *_protocol_problems(config, prediction),
        *_frozen_problems(config, model, source, multipliers, first_stage),
    ]
    needs = _needs(config, first_stage)
    if not config.pretrained and not config.start_from and trunks.has_pretrained(config.model.trunk):
        notes.append("config.pretrained is empty: the trunk starts at random values")
    divided = {k: x for k, x in optim.flatten(state.params).items() if not x.sharding.is_fully_replicated}
    gathered = step_costs.bytes_of(divided)
    moving = {} if config.model.get("batch_norm") == "frozen" else state.batch_stats
    return Plan(
        labels=labels,
        images=images,
        inputs=_describe(source, config),
        batch=config.train.batch_size,
        devices=mesh.size,
        parameters=step_costs.values(state.params),
        trainable=step_costs.values(trainable),
        state_bytes=step_costs.bytes_on_a_device((state, trainable)) + gathered,
        activation_bytes=(kept + 2 * largest + step_costs.bytes_of(batch)) // mesh.size,
        flops=float((counted.cost_analysis() or {}).get("flops", float("nan"))),
        collective_bytes=parts * (step_costs.bytes_of(trainable) + step_costs.bytes_of(moving)) if mesh.size > 1 else 0,
        gathered_bytes=gathered,
        collectives=step_costs.collectives(lowered.compile().as_text()) if compile_step else {},
        steps=total,
        needs=tuple(needs),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _sizes(config: ConfigDict, labels: int | None, images: int | None) -> tuple[int, int]:
    """C and the training examples: as given, of a prepared data set, or as known of a benchmark."""
    name, split = config.data.name, config.data.train_split
    if name in datasets.prepared(config.data.dir or None):
        dataset = datasets.load(name, config.data.dir or None)
        labels = labels or len(dataset.class_names)
        if images is None and split in dataset.split_names():
            truth = dataset.labels(split)
            images = int((truth == 1).any(1).sum()) if config.data.drop_empty else len(truth)
    if labels is None and name in benchmark_facts.FACTS:
        labels = benchmark_facts.FACTS[name].labels
    if images is None:
        images = benchmark_facts.images(name, split, drop_empty=config.data.drop_empty)
    missing = [f"--{what}" for what, value in (("labels", labels), ("images", images)) if value is None]
    if missing:
        raise UserError(
            f"nothing is known of {split!r} of data set {name!r}: prepare it, or give {' and '.join(missing)}"
        )
    if config.data.limit:
        images = min(images, config.data.limit)
    if not config.data.val_split:
        images -= round(config.data.val_fraction * images)
    return labels, images


def _source(config: ConfigDict) -> tuple[Source, list[str]]:
    source = open_source(config)
    if not source.is_stored or isinstance(source, DescriptorSource):
        return source, []
    note = "from stored features a step costs the head alone; what is shown is the step with the frozen trunk"
    return open_source(config_lib.override(config, {"data.source": "images"})), [note]


def _batch(config: ConfigDict, source: Source, labels: int, mesh: jax.sharding.Mesh) -> dict:
    """Shapes of a training batch."""
    size, place = config.train.batch_size, sharding.split(mesh)
    arrays = {name: ((size, *shape), dtype) for name, (shape, dtype) in source.record_shapes().items()}
    arrays |= {"labels": ((size, labels), jnp.int8), "mask": ((size,), jnp.bool_)}
    if config.data.pseudo_labels:
        arrays["weight"] = ((size,), jnp.float32)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=place) for name, (shape, dtype) in arrays.items()}


def _describe(source: Source, config: ConfigDict) -> str:
    shapes = [f"{name} {'x'.join(map(str, shape))}" for name, (shape, _) in source.record_shapes().items()]
    read = f", {config.data.image_size} px in the model" if "image" in source.record_shapes() else ""
    return ", ".join(shapes) + read


def _protocol_problems(config: ConfigDict, prediction: contract.Prediction) -> list[str]:
    protocol = metrics.get_protocol(config.eval.protocol)
    facts = benchmark_facts.FACTS.get(config.data.name)
    problems = []
    if protocol.decision == "path" and prediction.chosen is None:
        problems.append(f"config.eval.protocol = {protocol.name!r}: head {config.head!r} emits no labels of its own")
    held_out = config.data.val_split or config.data.val_fraction or contract.has_closed_form(contract.find(config.head))
    if protocol.by_rule and not held_out:
        problems.append(
            f"config.eval.protocol = {protocol.name!r}: its rule is learned on held-out images, and this run has none: "
            "set config.data.val_fraction"
        )
    if config.eval.metric == "accuracy" and facts and not facts.single_label:
        problems.append(f"config.eval.metric = 'accuracy': {config.data.name} has several labels an image")
    return problems


def _frozen_problems(config, model, source, multipliers, first_stage: ConfigDict | None) -> list[str]:
    nothing = durations.is_zero(config.train.duration)
    frozen = [name for name, rate in multipliers.items() if rate is None or nothing]
    mine = state_lib.parameter_shapes(model, source.example())
    before = first_stage
    if before is None and config.start_from and storage.to_path(config.start_from).is_dir():
        before = run_folder.load(config.start_from).config
    copied = set()
    if before is not None:
        head = contract.find(before.head)
        theirs = state_lib.parameter_shapes(contract.make_model(head, before, model.num_labels, 1), source.example())
        copied = {name for name, shape in mine.items() if theirs.get(name) == shape}
        if hasattr(head, "linear_layer") and before.model.pool == config.model.pool:
            copied |= {name for name in mine if name.startswith("classifier/")}
    if config.text.vectors:
        copied |= {name for name in mine if name.startswith("classifier/")}
    has_trunk_weights = bool(config.pretrained) or not trunks.has_pretrained(config.model.trunk)
    mistake, warning = starting_point.without_values(frozen, has_trunk_weights, copied, config.train.duration)
    return [text for text in (mistake, warning) if text]


def _needs(config: ConfigDict, first_stage: ConfigDict | None) -> list[tuple[str, bool]]:
    name = config.data.name
    facts = benchmark_facts.FACTS.get(name)
    prepared = name in datasets.prepared(config.data.dir or None)
    source = f" from {', '.join(facts.source)}" if facts and facts.source else ""
    command = f"jaxmlic data prepare {name}" + (" --source=..." if source else "")
    needs = [(f"data set {name}{source}: {command}", prepared)]
    known = datasets.load(name, config.data.dir or None).split_names() if prepared else ()
    for split in dict.fromkeys((config.data.train_split, config.data.val_split, config.data.test_split)):
        if split and "/" in split and not (facts and split in facts.images and not prepared):
            made = benchmark_facts.made_split(name, split)
            needs.append((f"split {split}" + (f": {made[1]}" if made else ""), split in known))
        elif split and prepared and split not in known:
            needs.append((f"split {split}", False))
    for field in ("pretrained", "text.vectors", "data.pseudo_labels"):
        path = config_lib.flatten(config)[field]
        if path:
            needs.append((f"config.{field}: {path}", storage.to_path(path).is_file()))
    if config.start_from:
        there = run_folder.result(config.start_from) is not None
        needs.append((f"config.start_from: the run in {config.start_from}", there))
    elif first_stage is not None:
        needs.append(("the run of the entry that this one starts from", False))
    return needs
