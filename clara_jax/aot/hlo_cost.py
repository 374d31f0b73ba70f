"""Costs of a compiled program on one device: FLOPs of its matrix products, HBM traffic, and collectives."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

from clara_jax.aot.hlo import Array, Computation, HloModule, Instruction, matched
from clara_jax.model.attention import blocks

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Matrix products of a kernel for each pair of blocks that it computes: scores and values; the same scores again with
# two products for the queries' gradient, with three for that of keys and values.
KERNELS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
# These move nothing, or are counted with instructions that they call or come with.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"}
_FREE |= {"after-all", "partition-id", "replica-id", "optimization-barrier", "domain"}


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


def flops(program: HloModule) -> float:
    """Return the FLOPs of all matrix products of a run, two for a multiply-add, without products with padding.

    TPUs write matrix products as convolutions. Attention's kernels are counted by their shapes: the blocks that the
    causal mask leaves. Everything else is left out: it runs on other units.
    """
    total = 0.0
    for computation, instruction, times in program.executed():
        operands = program.computations[computation]
        if instruction.operation == "dot":
            total += times * _dot(instruction, operands)
        elif instruction.operation == "convolution":
            total += times * _convolution(instruction, operands)
        elif instruction.operation == "custom-call":
            total += times * _kernel(instruction)
    return total


def traffic(program: HloModule) -> dict[str, float]:
    """Return the bytes that a run reads from HBM and writes to it, by the operation of the model that they come from.

    They are the operands and results of instructions and fusions. Of an operand of which only slices are read the
    slices count, and of one that is updated in place the update. A fusion has the name of its last operation.
    """
    fused = {
        called
        for _, i, _ in program.executed()
        if i.operation not in ("while", "conditional", "call", "async-start")
        for called in i.called
    }
    found: dict[str, float] = {}
    for computation, instruction, times in program.executed():
        operation = instruction.operation
        if "AllocateBuffer" in instruction.rest or operation in _FREE or operation.endswith(("-done", "-update")):
            continue
        if computation not in fused:
            source = _source_of(instruction) or operation
            moved = times * _moved(program, program.computations[computation], instruction)
            found[source] = found.get(source, 0.0) + moved
    return found


def collectives(program: HloModule, devices: int) -> list[Collective]:
    """Return all collectives of a program, as one of ``devices`` devices runs it.

    A TPU overlaps a collective with other work in pieces that are written as fusions: one with a start, any number in
    the middle and one with the end, each of which repeats the collective. The start counts. An all-reduce of which each
    device keeps a part, which TPUs write as a fusion, too, is a reduce-scatter.
    """
    found = []
    for computation, instruction, times in program.executed():
        kind = instruction.operation.removesuffix("-start")
        if kind not in KINDS or _repeats(program, computation):
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
            found.append(Collective(kind, shapes, dtypes, size, members, times, _source_of(instruction)))
    return found


def _source_of(instruction: Instruction) -> str:
    """Return the operation of the model that an instruction comes from, as JAX names it; "" where nothing says it."""
    source = re.search(r'op_name="([^"]*)"', instruction.rest)
    return source[1] if source else ""


def totals(found: Iterable[Collective]) -> dict[str, float]:
    """Return the bytes that a device receives in a run, by kind."""
    result: dict[str, float] = {}
    for collective in found:
        result[collective.kind] = result.get(collective.kind, 0) + collective.received * collective.times
    return result


def _dot(instruction: Instruction, operands: Computation) -> float:
    left = operands[instruction.operands[0]].arrays[0].shape
    contracted = matched(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[1]
    inner = math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
    return 2.0 * math.prod(instruction.arrays[0].shape) * inner


def _convolution(instruction: Instruction, operands: Computation) -> float:
    """Return 2 x outputs x input features x the window's positions that fall on an input, summed over the outputs."""
    image, kernel = (operands[name].arrays[0].shape for name in instruction.operands[:2])
    ins, weights, outs = matched(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest).groups()
    window = _window(instruction.rest)
    result = instruction.arrays[0].shape
    total = 2.0 * result[outs.index("b")] * result[outs.index("f")] * kernel[weights.index("i")]
    for axis, label in enumerate(sorted(c for c in ins if c.isdigit())):
        sizes = image[ins.index(label)], kernel[weights.index(label)], result[outs.index(label)]
        total *= _positions(*sizes, {name: values[axis] for name, values in window.items()})
    groups = re.search(r"batch_group_count=(\d+)", instruction.rest)
    return total / int(groups[1]) if groups else total


def _window(rest: str) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", rest)
    fields = (field.split("=") for field in (found[1].split() if found else ()))
    return {name: text.split("x") for name, text in fields}


def _positions(size: int, width: int, outputs: int, window: dict[str, str]) -> int:
    """Return the pairs (output, position in the window) along one axis that read an input and no padding or hole."""
    stride, holes, step = (int(window.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(window.get("pad", "0_0").split("_")[0])
    count = 0
    for position in range(width):
        # Inputs are at multiples of ``holes``, the first at 0, the last at (size - 1) * holes.
        offset = position * step - before
        if holes == 1:
            first, last = max(0, (stride - 1 - offset) // stride), min(outputs - 1, (size - 1 - offset) // stride)
            count += max(0, last - first + 1)
        else:
            at = range(offset, offset + outputs * stride, stride)
            count += sum(0 <= place <= (size - 1) * holes and place % holes == 0 for place in at)
    return count


def _kernel(instruction: Instruction) -> float:
    products = next((count for name, count in KERNELS.items() if name in instruction.name), None)
    if products is None:
        return 0.0
    layouts = matched(r"operand_layout_constraints=\{(.*?\})\}", instruction.rest)[1]
    # Queries [..., H, T, C] are the first operand that is no index.
    queries = next(a for a in Instruction("", layouts, "", "").arrays if len(a.shape) > 2 and a.dtype[0] in "bf")
    length = queries.shape[-2]
    count = blocks(length)[1]
    return products * 2.0 * math.prod(queries.shape) * length * (count + 1) / (2 * count)


def _moved(program: HloModule, operands: Computation, instruction: Instruction) -> float:
    read = [operands[name].arrays for name in instruction.operands if name in operands]
    written, operation = instruction.arrays, instruction.operation
    if operation == "fusion":
        return sum(_fused(program, instruction, operands))
    if operation == "copy-start":  # (where to, where from, flags)
        return _in_hbm(written[:2])
    if operation == "slice-start":  # ((where from), slice, flags)
        source, taken = written[:2]
        return taken.bytes * (source.in_hbm + taken.in_hbm)
    if operation == "async-start":  # its computation is counted
        return 0.0
    if operation.endswith("-start"):  # (where from, where to, flags)
        return _in_hbm(written)
    if operation in ("dynamic-slice", "slice", "gather"):
        read = [tuple(dataclasses.replace(a, in_hbm=read[0][0].in_hbm) for a in written)] + read[1:]
    elif operation == "dynamic-update-slice":
        read, written = read[1:], read[1]
    return sum(map(_in_hbm, read)) + _in_hbm(written)


def _fused(program: HloModule, fusion: Instruction, operands: Computation) -> Iterator[float]:
    inside = program.computations[fusion.called[0]]
    users: dict[str, list[Instruction]] = {}
    for instruction in inside.values():
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
    # A piece of an asynchronous collective carries its buffers along; its first piece is counted.
    repeated = [i for i in inside.values() if i.operation in KINDS] if _repeats(program, fusion.called[0]) else []
    buffers = (a for i in repeated for part in (i, *(inside[name] for name in i.operands)) for a in part.arrays)
    carried = {(array.dtype, array.shape) for array in buffers}
    updated = set()
    for parameter in (i for i in inside.values() if i.operation == "parameter"):
        number = int(matched(r"^(\d+)\)", parameter.rest)[1])
        if number >= len(fusion.operands) or fusion.operands[number] not in operands:
            continue
        arrays = operands[fusion.operands[number]].arrays
        if not arrays or not arrays[0].in_hbm or (arrays[0].dtype, arrays[0].shape) in carried:
            continue
        uses = _uses(parameter, users)
        if uses and all(use.operation in ("dynamic-slice", "slice", "gather") for use in uses):
            yield float(sum(use.arrays[0].bytes for use in uses))
        elif uses and all(use.operation == "dynamic-update-slice" for use in uses):
            for use in uses:
                updated.add((use.arrays[0].dtype, use.arrays[0].shape))
                yield float(inside[use.operands[1]].arrays[0].bytes)  # written; what was there is not read
        else:
            yield _in_hbm(arrays)
    for array in fusion.arrays:
        if (array.dtype, array.shape) not in updated | carried:
            yield _in_hbm((array,))


def _uses(instruction: Instruction, users: dict[str, list[Instruction]]) -> list[Instruction]:
    """Return the instructions that read one, with the readers of bitcasts in their place."""
    found = []
    for user in users.get(instruction.name, ()):
        found += _uses(user, users) if user.operation == "bitcast" else [user]
    return found


def _in_hbm(arrays: tuple[Array, ...]) -> float:
    return float(sum(array.bytes for array in arrays if array.in_hbm))


def _repeats(program: HloModule, computation: str) -> bool:
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
