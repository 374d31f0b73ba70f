"""Report what a training run needs on TPUs, without one: compiles its real programs for a slice that is not there.

    python -m clara_jax.aot --config configs/mistral7b_end_to_end.py --topology v5e:4x4

Nothing of the model's size is allocated; a 7B model takes some minutes and gigabytes to compile. Needs libtpu
(pip install -r requirements-aot.txt). How to read the table: docs/aot.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence

from clara_jax import command
from clara_jax.arguments import parse
from clara_jax.errors import ClaraError

PROGRAMS = ("train", "compress", "decode")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, but for the configuration."""
    parser = command.make_parser("aot", __doc__)
    add = parser.add_argument
    add("--topology", metavar="CHIP:SHAPE", help="chips along each axis: v4:2x2x2, v5e:4x4, v5p:4x4x4, tpu7x:2x2x1")
    add("--mesh", metavar="SIZES", help="data,model or replica,data,model, instead of the configuration's")
    add(
        "--batch", type=int, metavar="N", help="examples of a step, instead of the configuration's; at least one a part"
    )
    add("--programs", metavar="NAMES", help=f"those to compile, of {','.join(PROGRAMS)} (train)")
    add("--text", type=int, metavar="N", help="tokens of a prompt besides memories and target; documents are full")
    add("--target", type=int, metavar="N", help="tokens of a target")
    add("--base-config", metavar="FILE", help="the config.json of a base model that is not here")
    command.add_option(parser, "--output", "all numbers, as JSON")
    command.add_renamed_option(parser, "--json", "--output")
    return parser


def main() -> None:
    """Run the command."""
    arguments = parse(parser(), sys.argv)
    if arguments.config is None or not arguments.topology:
        missing = "--topology" if arguments.config is not None else "--config"
        raise ClaraError(f"{missing} is missing, e.g. --config configs/mistral7b_scp.py --topology v5e:4x4")
    names = (arguments.programs or "train").split(",")
    if set(names) - set(PROGRAMS):
        raise ClaraError(f"--programs: {arguments.programs!r} must name some of {', '.join(PROGRAMS)}")
    # The host computes nothing, and must not initialise its accelerators.
    os.environ["JAX_PLATFORMS"] = "cpu"
    _plan(arguments, names)


def _plan(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    from clara_jax import chips
    from clara_jax.aot import lowering
    from clara_jax.aot.roofline import report, table
    from clara_jax.aot.workload import base_config, stage_shapes
    from clara_jax.method.clara import ClaraModel
    from clara_jax.model.config import ModelConfig
    from clara_jax.model.precision import resolve as resolve_precision
    from clara_jax.model.sharding import batch_shards, check_batch, make_mesh
    from clara_jax.training.config_parsing import resolve
    from clara_jax.training.run_directory import write_json

    if arguments.mesh:
        try:
            arguments.config.mesh = tuple(map(int, arguments.mesh.split(",")))
        except ValueError:
            rule = "must be whole numbers, data,model or replica,data,model"
            raise ClaraError(f"--mesh: {arguments.mesh!r} {rule}") from None
    config = resolve(arguments.config)
    chip, shape = chips.parse_topology(arguments.topology)
    base = base_config(config.model.base, arguments.base_config)
    sizes = ModelConfig.from_hf(base, arguments.base_config or config.model.base)
    precision = resolve_precision(config.model.precision, "tpu")
    quantization = config.model.quantization
    model = ClaraModel(sizes, config.clara, precision, config.model.remat, config.model.attention, quantization)
    mesh = make_mesh(**config.mesh_sizes, devices=chips.topology_devices(arguments.topology))
    where = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    how = f"{precision}, remat {config.model.remat}, quantization {quantization}"
    print(f"{arguments.topology}: {mesh.size} devices, mesh {where}; {how}")
    reports = []
    for stage in config.stages:
        optimizer = stage.optimizer
        smallest = batch_shards(mesh) * optimizer.accumulate
        batch = arguments.batch or max(optimizer.batch_size, smallest)
        if batch != optimizer.batch_size:
            print(f"{stage.name}: batch of {batch} instead of {optimizer.batch_size}")
        check_batch(batch // optimizer.accumulate, mesh, "--batch / accumulate")
        stage = dataclasses.replace(stage, optimizer=dataclasses.replace(optimizer, batch_size=batch))
        shapes = stage_shapes(stage, config.clara, arguments.text, arguments.target)
        print(f"{stage.name}: {batch} rows in {optimizer.accumulate} part(s), {shapes}", flush=True)
        chosen = [lowering.train_step(model, stage, shapes, mesh)] if "train" in names else []
        if {"compress", "decode"} & set(names):
            chosen += [one for one in lowering.inference(model, stage, shapes, mesh) if one.name in names]
        for program in chosen:
            print(f"{program.name}: compiling", file=sys.stderr, flush=True)
            reports.append(report(program, chip, shape, mesh))
            print(f"{program.name}: {reports[-1].compile_seconds} s", file=sys.stderr, flush=True)
    print(table(reports))
    if arguments.output:
        about = {"topology": arguments.topology, "mesh": dict(mesh.shape), "chip": dataclasses.asdict(chip)}
        write_json(arguments.output, about | {"programs": [one.to_json() for one in reports]})


if __name__ == "__main__":
    command.run(main, compiles=False)
