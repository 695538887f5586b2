"""The text of plans: what runs would take."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from jaxmlic.reports import tables


def text(plan, config: ConfigDict, devices: Sequence) -> str:
    """One plan, a fact a line, and an estimate for each device.

    Args:
      plan: an `experiments.plan.Plan`.
      config: of the run.
      devices: `experiments.devices.Device`s.
    """
    dtype = config.model.get("dtype", "float32")
    rows = [
        ("head, trunk", f"{config.head}, {config.model.get('trunk', 'none')} ({dtype})"),
        ("data", f"{config.data.name}, {config.data.train_split}: {plan.images:,} images, {plan.labels} labels"),
        ("inputs", plan.inputs),
        ("batch", f"{plan.batch} over {plan.devices} device{'s' * (plan.devices > 1)}; {plan.steps:,} steps"),
        ("optimizer", f"{config.optim.name}, {config.optim.lr:g}, {config.optim.schedule}; {config.train.duration}"),
        ("protocol", f"{config.eval.protocol} on {config.data.test_split}"),
        ("parameters", f"{plan.parameters:,}, of which {plan.trainable:,} learn"),
        ("memory a device", _memory(plan)),
        ("FLOPs a step", f"{plan.flops:.3g}"),
        ("collectives a step", _collectives(plan)),
    ]
    parts = [tables.table(rows)]
    estimates = [
        [d.title, f"{getattr(d, dtype) / 1e12:g} TFLOP/s", _fits(plan, d), _time(plan.seconds(d, dtype))]
        for d in devices
    ]
    header = [
        "device",
        f"peak, {dtype}",
        "memory",
        f"training at {100 * plan.utilisation:.0f} % of the peak, input not counted",
    ]
    parts.append(tables.table(estimates, header=header))
    parts.append(_list("needs", [f"[{'there' if there else 'missing'}] {need}" for need, there in plan.needs]))
    parts.append(_list("notes", plan.notes))
    parts.append(_list("problems", plan.problems))
    return "\n\n".join(part for part in parts if part)


def sweep_text(plans: Mapping, devices: Sequence) -> str:
    """A line for each entry, then what is missing and the problems. plans: {entry: (Plan, config)}."""
    rows = []
    for name, (plan, config) in plans.items():
        dtype = config.model.get("dtype", "float32")
        rows.append(
            [
                name,
                config.model.get("trunk", "none"),
                str(config.data.image_size),
                str(plan.batch),
                f"{plan.parameters / 1e6:.1f}",
                f"{plan.trainable / 1e6:.1f}",
                f"{plan.memory / 1e9:.1f}",
                f"{plan.flops / 1e12:.2f}",
                f"{plan.steps:,}",
                *(_time(plan.seconds(d, dtype)) for d in devices),
            ]
        )
    header = ["entry", "trunk", "px", "batch", "M param", "learn", "GB/device", "TFLOP/step", "steps"]
    parts = [tables.table(rows, "<<>", header=[*header, *(d.title for d in devices)])]
    missing: dict[str, int] = {}
    for plan, _ in plans.values():
        for need, there in plan.needs:
            if not there:
                missing[need] = missing.get(need, 0) + 1
    parts.append(_list("missing", [f"{need} ({count} of {len(plans)} entries)" for need, count in missing.items()]))
    problems = [f"{name}: {problem}" for name, (plan, _) in plans.items() for problem in plan.problems]
    parts.append(_list("problems", problems))
    return "\n\n".join(part for part in parts if part)


def growth_text(plans: Sequence, config: ConfigDict, devices: Sequence) -> str:
    """Plans of one run on more and more devices, a table for each kind of device.

    Args:
      plans: `experiments.plan.Plan`s, of equal batches a device.
      config: of the run on the fewest.
      devices: `experiments.devices.Device`s.
    """
    dtype = config.model.get("dtype", "float32")
    share = f"{100 * plans[0].utilisation:.0f} %"
    parts = [
        f"{config.head}, {config.model.get('trunk', 'none')} ({dtype}), {plans[0].inputs}; {config.train.duration}; "
        f"{plans[0].batch // plans[0].devices} images a device; arithmetic at {share} of the peak"
    ]
    header = ["devices", "batch", "steps", "TFLOP/step", "GB/device", "summed MB"]
    header += ["arithmetic ms", "links ms", "img/s a device", "binds", "training"]
    for device in devices:
        rows = []
        for plan in plans:
            arithmetic, links = plan.step_seconds(device, dtype), plan.link_seconds(device)
            moved = plan.collective_bytes + plan.gathered_bytes
            rows.append(
                [
                    f"{plan.devices:,}",
                    f"{plan.batch:,}",
                    f"{plan.steps:,}",
                    f"{plan.flops / 1e12:,.1f}",
                    f"{plan.memory / 1e9:.1f}",
                    f"{moved / 1e6:.1f}",
                    f"{1000 * arithmetic:.1f}",
                    f"{1000 * links:.1f}",
                    f"{plan.batch / plan.devices / max(arithmetic, links):,.0f}",
                    "memory" if plan.memory > device.memory else "arithmetic" if arithmetic >= links else "links",
                    _time(plan.steps * max(arithmetic, links)),
                ]
            )
        parts.append(f"{device.title}\n{tables.table(rows, header=header)}")
    parts.append(_list("problems", [f"{p.devices} devices: {problem}" for p in plans for problem in p.problems]))
    return "\n\n".join(part for part in parts if part)


def _memory(plan) -> str:
    return (
        f"{plan.memory / 1e9:.2f} GB at most: parameters, optimizer and gradients {plan.state_bytes / 1e9:.2f}, "
        f"batch and activations {plan.activation_bytes / 1e9:.2f} before fusion"
    )


def _collectives(plan) -> str:
    if plan.devices == 1:
        return "none: one device"
    computed = f"all-reduce of gradients and batch statistics, {plan.collective_bytes / 1e6:.1f} MB"
    if plan.gathered_bytes:
        computed += f"; all-gather of parameters, {plan.gathered_bytes / 1e6:.1f} MB"
    counted = ", ".join(f"{kind} {number} ({size / 1e6:.1f} MB)" for kind, (number, size) in plan.collectives.items())
    return computed + (f"; compiled: {counted}" if counted else "")


def _fits(plan, device) -> str:
    return f"{100 * plan.memory / device.memory:.0f} % of {device.memory / 1e9:.0f} GB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.{int(seconds < 2)}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _list(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines)]) if lines else ""
