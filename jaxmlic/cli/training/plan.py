"""`jaxmlic plan`."""

import jax

from jaxmlic import config as config_lib
from jaxmlic import sharding
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError, check_least
from jaxmlic.experiments import plan, sweep
from jaxmlic.experiments.devices import DEVICES
from jaxmlic.reports import plan_table


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="jaxmlic plan",
        description="What training would take, from shapes alone: the model is initialised and its step lowered at the "
        "config's own size, without data, weights or accelerator. Ends with status 2 where training would fail or mean "
        "nothing.",
        epilog="Config fields can be set: --config.train.batch_size=256.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="experiment file")
    parser.add_argument(
        "--devices",
        default="1",
        metavar="N,...",
        help="devices that a batch is divided over (1); several numbers: growth with as many images a "
        "device as with the first",
    )
    parser.add_argument("--device", choices=sorted(DEVICES), help="estimate for this device alone")
    parser.add_argument("--sweep", action="store_true", help="a line for every entry of the experiment's sweep()")
    parser.add_argument("--only", default="", metavar="NAME,...", help="with --sweep: these entries")
    parser.add_argument("--weights", metavar="DIR", help="with --sweep: folder with a weight file for each trunk")
    parser.add_argument("--labels", type=int, metavar="C", help="number of labels, for a data set that is not known")
    parser.add_argument("--images", type=int, metavar="N", help="number of training images, likewise")
    parser.add_argument(
        "--compile", action="store_true", help="also compile the step, and count its collectives (minutes)"
    )
    options, overrides = parser.parse_known_args(argv)
    counts = _device_counts(options.devices)
    if len(counts) > 1 and (options.sweep or options.compile):
        raise UserError(f"--{'sweep' if options.sweep else 'compile'} goes with one number of --devices")
    for name in ("only", "weights"):
        if getattr(options, name) and not options.sweep:
            raise UserError(f"--{name} goes with --sweep")
    devices = [DEVICES[options.device]] if options.device else list(DEVICES.values())
    if jax.config.jax_num_cpu_devices < max(counts):
        jax.config.update("jax_num_cpu_devices", max(counts))
    mesh, *larger = (sharding.make_mesh(jax.devices("cpu")[:count]) for count in counts)
    sizes = {"labels": options.labels, "images": options.images, "compile_step": options.compile}
    config = config_lib.load(options.config, overrides)
    if larger:
        plans = [plan.make(config, mesh, **sizes)]
        for wide in larger:
            batch = config.train.batch_size * wide.size // mesh.size
            plans.append(plan.make(config_lib.override(config, {"train.batch_size": batch}), wide, **sizes))
        print(plan_table.growth_text(plans, config, devices))
        return 2 if any(found.problems for found in plans) else 0
    if not options.sweep:
        found = plan.make(config, mesh, **sizes)
        print(plan_table.text(found, config, devices))
        return 2 if found.problems else 0
    chosen = sweep.entries(options.config, [name for name in options.only.split(",") if name])
    everything = {entry.name: entry for entry in sweep.entries(options.config)}

    def config_of(entry: config_lib.Entry):
        return sweep.config_of(options.config, config, entry, overrides, options.weights)

    plans, unplanned = {}, []
    for number, entry in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {entry.name}", flush=True)
        own = config_of(entry)
        first = config_of(everything[entry.start_from]) if entry.start_from and not own.start_from else None
        try:
            plans[entry.name] = (plan.make(own, mesh, first_stage=first, **sizes), own)
        except UserError as error:  # such as a data set of which nothing is known: the others are shown
            unplanned.append(f"{entry.name}: {error}")
    print(plan_table.sweep_text(plans, devices))
    if unplanned:
        raise UserError(f"{len(unplanned)} of {len(chosen)} entries cannot be planned: {'; '.join(unplanned)}")
    return 2 if any(found.problems for found, _ in plans.values()) else 0


def _device_counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--devices={text!r}: expected a number, or several with commas between them") from None
    for count in counts:
        check_least("--devices", count, 1)
    return counts
