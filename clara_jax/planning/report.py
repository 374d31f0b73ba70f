"""Compiles a program and says what it takes: memory, operations, what it sends, and the time below which it cannot be.

The bounds take each resource alone and at its peak: all matrix products of the compiled program (what
rematerialization repeats among them) at the chip's bfloat16 rate; what it moves between HBM and the cores; what its
collectives bring to a device, over all links of the chip that has the fewest. A step takes at least as long as the
longest of them. The MFU ceiling is what model FLOPs (`clara_jax.training.throughput`) come to in that time.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from clara_jax.planning import work
from clara_jax.planning.chips import Chip
from clara_jax.planning.collectives import collectives, totals
from clara_jax.planning.hlo import Program as Text
from clara_jax.planning.programs import Program

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program, as it is read.

    Attributes:
      memory: bytes of one device by kind: "arguments", "outputs" (those that do not take an argument's place),
        "temporaries", "program". None where the compiler found no room for it.
      problem: what the compiler said then.
      text: the program; "" where it found no room.
    """

    memory: Mapping[str, int] | None
    problem: str
    text: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What a compiled program takes; bytes, FLOPs and seconds are those of one device and one call.

    Attributes:
      memory, problem: see `Compiled`.
      hbm: bytes that a device has.
      model_flops: what the mathematics needs, of one call; in decoding, of one token of every row.
      peak_flops: of a device, in a second.
      flops: of all matrix products that run. None, like the next two, where the program cannot be counted.
      traffic: bytes from and to HBM.
      collectives: by kind, bytes that reach the device.
      sent: the same counted with pencil and paper, by what it belongs to; None where it is not.
      bounds: seconds, by what takes them: "compute", "memory", "interconnect".
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
    collectives: Mapping[str, float] | None
    sent: Mapping[str, float] | None
    bounds: Mapping[str, float]
    compile_seconds: float

    @property
    def total_memory(self) -> int | None:
        return None if self.memory is None else sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.total_memory <= self.hbm

    @property
    def binds(self) -> str | None:
        """Which bound is the longest; None where there are none."""
        return max(self.bounds, key=self.bounds.__getitem__, default=None)

    @property
    def mfu_ceiling(self) -> float | None:
        return self.model_flops / self.peak_flops / self.bounds[self.binds] if self.bounds else None

    def to_json(self) -> dict[str, Any]:
        derived = ("total_memory", "fits", "binds", "mfu_ceiling")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


def report(program: Program, chip: Chip, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> Report:
    """Compiles a program for a mesh of the devices of a slice with ``shape`` chips along its axes."""
    return read(program, compile_program(program.lowered), chip, shape, mesh)


def compile_program(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles for devices that need not be there."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        # Asked for its text, the program of a wide model may fail to give it; what the compiler writes down is whole.
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
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    return Compiled(memory, "", text, time.monotonic() - began)


def read(program: Program, compiled: Compiled, chip: Chip, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> Report:
    """The report on a compiled program."""
    peak, bandwidth = chip.flops / chip.devices, chip.hbm_bandwidth / chip.devices
    model_flops = program.model_flops / mesh.size
    flops = traffic = received = None
    bounds = {}
    if program.read is not None:
        bounds = {"compute": model_flops / peak, "memory": program.read / bandwidth}
    elif compiled.text:
        text = Text.parse(compiled.text)
        flops, traffic, received = work.flops(text), work.traffic(text), totals(collectives(text, mesh.size))
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
        collectives=received,
        sent=program.sent,
        bounds=bounds,
        compile_seconds=round(compiled.seconds, 1),
    )


HEAD = ("program", "rows", "GiB: arguments", "outputs", "temporaries", "program", "of HBM", "TFLOP: model", "executed")
HEAD += ("GB: HBM", "collectives", "counted", "ms: compute", "HBM", "interconnect", "bound by", "MFU ceiling")


def table(reports: Iterable[Report]) -> str:
    """A Markdown table, a line for each program; one that does not fit has a line below it."""
    reports = list(reports)
    lines = [f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *map(_row, reports))]
    return "\n".join(lines + [f"\n{own.program} does not fit: {own.problem}" for own in reports if own.problem])


def _row(own: Report) -> list[str]:
    def number(value: float | None, unit: float, digits: int) -> str:
        return "" if value is None else f"{value / unit:,.{digits}f}"

    memory = own.memory or dict.fromkeys(("arguments", "outputs", "temporaries", "program"))
    share = "**does not fit**" if own.memory is None else f"{own.total_memory / own.hbm:.0%}"
    gathered, counted = (None if x is None else sum(x.values()) for x in (own.collectives, own.sent))
    return [
        own.program,
        str(own.rows),
        *(number(size, GIB, 2) for size in memory.values()),
        share + (", **does not fit**" if own.memory is not None and not own.fits else ""),
        number(own.model_flops, 1e12, 2),
        number(own.flops, 1e12, 2),
        number(own.traffic, 1e9, 0),
        number(gathered, 1e9, 2),
        number(counted, 1e9, 2),
        *(number(own.bounds.get(kind), 1e-3, 1) for kind in ("compute", "memory", "interconnect")),
        {"memory": "HBM", None: ""}.get(own.binds, own.binds),
        "" if own.mfu_ceiling is None else f"{own.mfu_ceiling:.0%}",
    ]
