"""The collectives of a compiled program: kind, size, and how often each runs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

from clara_jax.aot.hlo import HloModule, Instruction

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      shapes: of its result's arrays, on one device.
      dtypes: of the same.
      bytes: of its result, on one device.
      devices: the size of its groups.
      times: executions in a run of the program.
      source: the operation of the model that it comes from, as JAX names it.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    bytes: int
    devices: int
    times: int
    source: str

    @property
    def received(self) -> float:
        """Return the bytes that have to reach a device in one execution, whatever the algorithm.

        Of an all-gather's result that is all but the device's own part, of an all-reduce twice the part of the others,
        once for the sum and once for its broadcast.
        """
        others = (self.devices - 1) / self.devices
        return {
            "all-gather": self.bytes * others,
            "all-reduce": 2 * self.bytes * others,
            "reduce-scatter": self.bytes * (self.devices - 1),  # the result is one part
            "all-to-all": self.bytes * others,
        }.get(self.kind, self.bytes)


def collectives(program: HloModule, devices: int) -> list[Collective]:
    """Return all collectives of a program, as one of ``devices`` devices runs it.

    A TPU overlaps a collective with other work in pieces that are written as fusions: one with a start, any number in
    the middle and one with the end, each of which repeats the collective. The start counts. An all-reduce of which each
    device keeps a part, which TPUs write as a fusion, too, is a reduce-scatter.
    """
    found = []
    for computation, instruction, times in program.executed():
        kind = instruction.operation.removesuffix("-start")
        if kind not in KINDS or repeats(program, computation):
            continue
        arrays = instruction.arrays
        if instruction.operation.endswith("-start"):  # the result holds operands and results
            arrays = arrays[len(arrays) // 2 :] if kind != "collective-permute" else arrays[1:2]
        size = sum(array.bytes for array in arrays)
        members = _members(instruction, devices)
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind, size = "reduce-scatter", size // members
        if members > 1:
            shapes, dtypes = tuple(a.shape for a in arrays), tuple(a.dtype for a in arrays)
            source = re.search(r'op_name="([^"]*)"', instruction.rest)
            found.append(Collective(kind, shapes, dtypes, size, members, times, source[1] if source else ""))
    return found


def totals(found: Iterable[Collective]) -> dict[str, float]:
    """Return the bytes that a device receives in a run, by kind."""
    result: dict[str, float] = {}
    for collective in found:
        result[collective.kind] = result.get(collective.kind, 0) + collective.received * collective.times
    return result


def repeats(program: HloModule, computation: str) -> bool:
    """Return whether a computation is a piece of an asynchronous collective, which is counted where it starts."""
    if computation.startswith("async_collective_fusion"):
        return True
    return any("AsyncCollectiveDone" in i.rest for i in program.computations[computation].values())


def _members(instruction: Instruction, devices: int) -> int:
    """Return the number of devices of a group.

    Groups are written as lists of devices, as ``[groups,members]<=[...]``, or as axes of a mesh:
    ``mesh['a'=4,'b'=2] {'a'}``.
    """
    if instruction.operation.startswith("collective-permute"):
        return 2
    rest = instruction.rest
    if groups := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(groups[2])
    if groups := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", groups[1])}
        return math.prod(_axis(axis, sizes) for axis in re.findall(r"'\w+'(?::\(\d+\)\d+)?", groups[2]))
    if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(groups[1].split(","))
    return devices


def _axis(text: str, sizes: dict[str, int]) -> int:
    """Return the size of an axis, ``'a'``, or of a part of it, ``'a':(2)4``."""
    part = re.search(r"\)(\d+)$", text)
    return int(part[1]) if part else sizes[text.strip("'")]
