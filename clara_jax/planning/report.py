"""Compiles a program and says what it takes: memory, operations, what it sends, and the time below which it cannot be.

The bounds take each resource alone and at its peak: all matrix products of the compiled program (what
rematerialization repeats among them) at the chip's bfloat16 rate; the least that moves in memory, see
`clara_jax.planning.counts`; what the compiled collectives send, over all links at once. A step takes at least as long
as the longest of them. The MFU ceiling is what model FLOPs (`clara_jax.training.throughput`) come to in that time.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from clara_jax.planning import hlo
from clara_jax.planning.chips import Chip
from clara_jax.planning.programs import Program

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Report:
    """What a compiled program takes; bytes and FLOPs are those of one device.

    Attributes:
      memory: bytes by kind: "arguments", "outputs" (those that do not take an argument's place), "temporaries",
        "program".
      hbm: bytes that a device has.
      flops: of matrix products, one call; None where loops have no known length.
      model_flops: of one call.
      collectives: by kind, how often a device takes part in one in a call, and the bytes it sends; None as ``flops``.
      sent: the same counted with pencil and paper, by what it belongs to; None where it is not.
      seconds: the bounds, "compute", "memory" and "interconnect".
    """

    program: str
    rows: int
    memory: dict[str, int]
    hbm: float
    flops: float | None
    model_flops: float
    collectives: dict[str, dict[str, float]] | None
    sent: dict[str, float] | None
    seconds: dict[str, float]
    compile_seconds: float

    @property
    def total_memory(self) -> int:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total_memory <= self.hbm

    @property
    def bound(self) -> str:
        """Which bound is the longest."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def mfu_ceiling(self) -> float:
        return self.model_flops / self.flops_a_second / self.seconds[self.bound]

    flops_a_second: float = 0.0

    def to_json(self) -> dict[str, Any]:
        derived = ("total_memory", "fits", "bound", "mfu_ceiling")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


def report(program: Program, chip: Chip, mesh: jax.sharding.Mesh) -> Report:
    """Compiles a program for a mesh of the chip's devices."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        options = {"xla_dump_to": directory, "xla_dump_hlo_as_text": True} if program.counted else {}
        compiled = program.lowered.compile(compiler_options=options)
        seconds = time.monotonic() - began
        text = hlo.dumped(Path(directory)) if program.counted else None
    stats, peak = compiled.memory_analysis(), chip.flops / chip.devices
    model_flops = program.model_flops / mesh.size
    flops, collectives, bounds = None, None, {"compute": model_flops / peak}
    if text is not None:
        flops = hlo.matmul_flops(text)
        collectives = _by_kind(hlo.collectives(text))
        bounds["compute"] = max(flops, model_flops) / peak
        sent = sum(entry["bytes"] for entry in collectives.values())
        bounds["interconnect"] = sent / (chip.ici_bandwidth / chip.devices)
    bounds["memory"] = program.moved / (chip.hbm_bandwidth / chip.devices)
    return Report(
        program=program.name,
        rows=program.rows,
        memory={
            "arguments": stats.argument_size_in_bytes,
            "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
            "temporaries": stats.temp_size_in_bytes,
            "program": stats.generated_code_size_in_bytes,
        },
        hbm=chip.hbm_bytes / chip.devices,
        flops=flops,
        model_flops=model_flops,
        collectives=collectives,
        sent=program.sent,
        seconds=bounds,
        compile_seconds=round(seconds, 1),
        flops_a_second=peak,
    )


def table(reports: Iterable[Report]) -> str:
    """A Markdown table, a line for each program."""
    head = (
        "| program | rows | arguments | outputs | temporaries | program | of HBM | TFLOPs | sent GB | counted GB | "
        "bound ms | by | MFU ceiling |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for own in reports:
        memory = " | ".join(f"{size / GIB:.2f}" for size in own.memory.values())
        share = f"{own.total_memory / own.hbm:.0%}" + ("" if own.fits else ", **does not fit**")
        sent = "" if own.collectives is None else f"{sum(e['bytes'] for e in own.collectives.values()) / 1e9:.2f}"
        counted = "" if own.sent is None else f"{sum(own.sent.values()) / 1e9:.2f}"
        flops = own.model_flops if own.flops is None else own.flops
        lines.append(
            f"| {own.program} | {own.rows} | {memory} | {share} | {flops / 1e12:.2f} | {sent} | {counted} | "
            f"{1e3 * own.seconds[own.bound]:.1f} | {own.bound} | {own.mfu_ceiling:.0%} |"
        )
    return "\n".join(lines)


def _by_kind(found: Iterable[hlo.Collective]) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = {}
    for collective in found:
        entry = kinds.setdefault(collective.kind, {"times": 0, "bytes": 0.0})
        entry["times"] += collective.times
        entry["bytes"] += collective.bytes * collective.times
    return kinds
