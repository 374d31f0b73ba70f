"""Roofline of a compiled program: memory, FLOPs, traffic, communication, and lower bounds of its time.

A bound takes each resource alone and at its peak: all matrix products of the compiled program, with those that
rematerialization repeats, at the chip's bfloat16 rate; its HBM traffic at HBM bandwidth; the bytes that its collectives
bring to a device over all links of the chip that has the fewest. A step takes at least as long as the longest of them.
The MFU ceiling is the model FLOP utilisation (`clara_jax.training.throughput`) in that time.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from clara_jax.aot import hlo_cost
from clara_jax.aot.hlo import HloModule
from clara_jax.aot.lowering import LoweredProgram
from clara_jax.chips import Chip

GIB = 2**30
MOST_MOVED = 50  # operations whose traffic a report names


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
      memory: bytes of one device by kind: "arguments", "outputs" (those that do not take an argument's place),
        "temporaries", "program". None where it does not fit into memory.
      problem: the compiler's message then.
      text: optimised HLO; "" where it does not fit.
      seconds: of compilation.
    """

    memory: Mapping[str, int] | None
    problem: str
    text: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Report:
    """The costs of a compiled program; bytes, FLOPs and seconds are those of one device and one call.

    Attributes:
      program: its name.
      rows: see `LoweredProgram`.
      memory: see `Compiled`.
      problem: likewise.
      hbm: bytes of a device's HBM.
      model_flops: model FLOPs of one call; in decoding, of one token of every row.
      peak_flops: of a device, in a second.
      flops: of all matrix products that run. None, like the next two, where the program cannot be counted.
      traffic: bytes from and to HBM.
      moved: the largest parts of it, by the operation of the model that they come from.
      collectives: bytes that reach the device, by kind.
      bounds: lower bounds in seconds, by resource: "compute", "memory", "interconnect".
      compile_seconds: of compilation.
    """

    program: str
    rows: int
    memory: Mapping[str, int] | None
    problem: str
    hbm: float
    model_flops: float
    peak_flops: float
    flops: float | None
    traffic: float | None
    moved: Mapping[str, float] | None
    collectives: Mapping[str, float] | None
    bounds: Mapping[str, float]
    compile_seconds: float

    @property
    def total_memory(self) -> int | None:
        """Return the bytes that the program needs in all; None where it does not fit."""
        return None if self.memory is None else sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Return whether the program fits into the device's memory."""
        return self.total_memory is not None and self.total_memory <= self.hbm

    @property
    def binds(self) -> str | None:
        """Return the resource with the longest bound; None where there are none."""
        return max(self.bounds, key=self.bounds.__getitem__, default=None)

    @property
    def mfu_ceiling(self) -> float | None:
        """Return the highest model FLOP utilisation that the bounds allow; None where there are none."""
        return None if self.binds is None else self.model_flops / self.peak_flops / self.bounds[self.binds]

    def to_json(self) -> dict[str, Any]:
        """Return the fields with the derived values."""
        derived = ("total_memory", "fits", "binds", "mfu_ceiling")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


def report(program: LoweredProgram, chip: Chip, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> Report:
    """Compile a program for a mesh of the devices of a slice with ``shape`` chips along its axes, and report on it."""
    return analyze(program, compile_program(program.lowered), chip, shape, mesh)


def compile_program(lowered: jax.stages.Lowered) -> Compiled:
    """Compile for devices that need not be present."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        # The text of a wide model's program may not be available from the executable; the compiler's dump always is.
        options = {"xla_dump_to": directory, "xla_dump_hlo_as_text": True}
        try:
            stats = lowered.compile(compiler_options=options).memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            lines = str(error).splitlines()
            problem = next((line for line in lines if "hbm" in line.lower() and " of " in line), lines[0]).strip()
            return Compiled(None, problem, "", time.monotonic() - began)
        (text,) = (path.read_text() for path in Path(directory).glob("*.after_optimizations.txt"))
    assert stats is not None  # both CPU and TPU compilers give them
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    return Compiled(memory, "", text, time.monotonic() - began)


def analyze(
    program: LoweredProgram, compiled: Compiled, chip: Chip, shape: tuple[int, ...], mesh: jax.sharding.Mesh
) -> Report:
    """Return the report on a compiled program."""
    peak, bandwidth = chip.flops / chip.devices, chip.hbm_bandwidth / chip.devices
    model_flops = program.model_flops / mesh.size
    flops = traffic = received = moved = None
    bounds = {}
    if program.bytes_read is not None:
        bounds = {"compute": model_flops / peak, "memory": program.bytes_read / bandwidth}
    elif compiled.text:
        module = HloModule.parse(compiled.text)
        flops, moved = hlo_cost.flops(module), hlo_cost.traffic(module)
        traffic = sum(moved.values())
        received = hlo_cost.totals(hlo_cost.collectives(module, mesh.size))
        interconnect = sum(received.values()) / (chip.bandwidth_in(shape) / chip.devices)
        bounds = {"compute": flops / peak, "memory": traffic / bandwidth, "interconnect": interconnect}
    return Report(
        program=program.name,
        rows=program.rows,
        memory=compiled.memory,
        problem=compiled.problem,
        hbm=chip.hbm_bytes / chip.devices,
        model_flops=model_flops,
        peak_flops=peak,
        flops=flops,
        traffic=traffic,
        moved=None if moved is None else dict(sorted(moved.items(), key=lambda one: -one[1])[:MOST_MOVED]),
        collectives=received,
        bounds=bounds,
        compile_seconds=round(compiled.seconds, 1),
    )


HEAD = ("program", "rows", "GiB: arguments", "outputs", "temporaries", "program", "of HBM", "TFLOP: model", "executed")
HEAD += ("GB: HBM", "collectives", "ms: compute", "HBM", "interconnect", "bound by", "MFU ceiling")


def table(reports: Iterable[Report]) -> str:
    """Return a Markdown table with a line for each program; the problems of those that do not fit follow."""
    reports = list(reports)
    lines = [f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *map(_row, reports))]
    return "\n".join(lines + [f"\n{one.program} does not fit: {one.problem}" for one in reports if one.problem])


def _row(report: Report) -> list[str]:
    def number(value: float | None, unit: float, digits: int) -> str:
        return "" if value is None else f"{value / unit:,.{digits}f}"

    memory = report.memory or dict.fromkeys(("arguments", "outputs", "temporaries", "program"))
    share = "**does not fit**" if report.total_memory is None else f"{report.total_memory / report.hbm:.0%}"
    received = None if report.collectives is None else sum(report.collectives.values())
    return [
        report.program,
        str(report.rows),
        *(number(size, GIB, 2) for size in memory.values()),
        share + (", **does not fit**" if report.memory is not None and not report.fits else ""),
        number(report.model_flops, 1e12, 2),
        number(report.flops, 1e12, 2),
        number(report.traffic, 1e9, 0),
        number(received, 1e9, 2),
        *(number(report.bounds.get(kind), 1e-3, 1) for kind in ("compute", "memory", "interconnect")),
        "" if report.binds is None else {"memory": "HBM"}.get(report.binds, report.binds),
        "" if report.mfu_ceiling is None else f"{report.mfu_ceiling:.0%}",
    ]
