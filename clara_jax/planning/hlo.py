"""Reads the text of a compiled program: its computations, and how often the loops around an instruction make it run."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "c64": 8, "c128": 16}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?.*\{\s*$")
# A result may be a tuple, and a TPU layout has brackets of its own: the operation is the first word before "(".
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[subfc]\w*\d\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation|called_computations)=\{?%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of an instruction's result or operands.

    Attributes:
      in_hbm: it lies in the device's memory, and not in one of the small ones beside the cores.
    """

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool = True

    @property
    def bytes(self) -> int:
        """Types below a byte take a whole one."""
        width = _BYTES.get(self.dtype) or max(1, int(re.search(r"\d+", self.dtype)[0]) // 8)
        return width * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: ``name = result operation(rest``; ``rest`` holds operands and attributes."""

    name: str
    result: str
    operation: str
    rest: str
    is_root: bool = False

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Those of the result, flat where it is a tuple."""
        return tuple(
            Array(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(" not in layout)
            for dtype, sizes, layout in _ARRAY.findall(self.result)
        )

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of other instructions of the computation."""
        depth, end = 1, 0
        while depth and end < len(self.rest):
            depth += {"(": 1, ")": -1}.get(self.rest[end], 0)
            end += 1
        return tuple(re.findall(r"%([\w.\-]+)", self.rest[: end - 1]))

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that run when this does; a loop's body is `body`."""
        branches = re.search(r"\bbranch_computations=\{([^}]*)\}", self.rest)
        return tuple(_CALLED.findall(self.rest)) + tuple(
            name.strip().lstrip("%") for name in (branches[1].split(",") if branches else ())
        )

    def attribute(self, name: str) -> str | None:
        """The word behind ``name=``."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


Computation = dict[str, Instruction]  # by name, in order


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the one that runs.
      otherwise: how often a loop runs whose condition does not say so; None: such a loop is an error.
    """

    computations: dict[str, Computation]
    entry: str
    otherwise: int | None = None

    @classmethod
    def parse(cls, text: str, otherwise: int | None = None) -> Program:
        """
        Raises:
          ValueError: the text holds no entry computation.
        """
        computations: dict[str, Computation] = {}
        entry, current = None, None
        for line in text.splitlines():
            # A kernel's attributes may go on for several lines, from any column: a brace alone ends a computation,
            # or one with the core that it runs on.
            if current is None:
                header = _HEADER.match(line)
                if header and not line.startswith("HloModule"):
                    current = header[2]
                    computations[current] = {}
                    entry = current if header[1] else entry
            elif line == "}" or line.startswith("}, execution_thread="):
                current = None
            elif match := _INSTRUCTION.match(line):
                root, name, *others = match.groups()
                computations[current][name] = Instruction(name, *others, is_root=root is not None)
        if entry is None:
            raise ValueError("the text holds no entry computation")
        return cls(computations, entry, otherwise)

    def executed(self) -> Iterator[tuple[str, Instruction, int]]:
        """``(computation, instruction, how often a run of the program executes it)``, loops multiplied, those inside
        fusions after the fusion itself.

        Raises:
          ValueError: a loop whose trip count cannot be read.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for instruction in self.computations[name].values():
            yield name, instruction, times
            if instruction.operation == "while":
                runs = times * self.trip_count(name, instruction)
                yield from self._executed(instruction.attribute("body"), runs)
            if instruction.operation.endswith(("-done", "-update")):  # what they call, their start has called
                continue
            for called in instruction.called:
                yield from self._executed(called, times)

    def trip_count(self, computation: str, loop: Instruction) -> int:
        """How often a loop's body runs: as the compiler says, else from its counter, which starts at a constant, stays
        below another, and has a third added in each run (TPUs unroll loops by two and say nothing of it).

        Raises:
          ValueError: it cannot be read, and there is no ``otherwise``.
        """
        if known := re.search(r'"?known_trip_count"?\s*:\s*\{\s*"n"\s*:\s*"(\d+)"', loop.rest):
            return int(known[1])
        condition = list(self._inside(loop.attribute("condition")))
        compares = [i for i in condition if i.operation == "compare" and "direction=LT" in i.rest]
        limits = [value for i in condition if (value := _integer(i)) is not None]
        index = next((i.attribute("index") for i in condition if i.operation == "get-tuple-element"), None)
        if len(compares) == len(limits) == 1 and index is not None:
            first, step = self._first(self.computations[computation], loop, int(index)), self._step(loop, int(index))
            return -(-(limits[0] - first) // step)
        if self.otherwise is None:
            raise ValueError(f"the trip count of the loop {loop.name} cannot be read")
        return self.otherwise

    def _first(self, outer: Computation, loop: Instruction, index: int) -> int:
        """The counter before the first run; 0 where that is not written down."""
        start = outer[loop.operands[0]]
        return (_integer(_source(outer, start.operands[index])) or 0) if start.operation == "tuple" else 0

    def _step(self, loop: Instruction, index: int) -> int:
        """What a run adds to the counter; 1 where that is not written down."""
        body = self.computations[loop.attribute("body")]
        root = next(i for i in body.values() if i.is_root)
        added = _source(body, root.operands[index]) if root.operation == "tuple" else root
        if added.operation != "add":
            return 1
        return next((value for name in added.operands if (value := _integer(_source(body, name))) is not None), 1)

    def _inside(self, computation: str) -> Iterator[Instruction]:
        for instruction in self.computations[computation].values():
            yield instruction
            for called in instruction.called:
                yield from self._inside(called)


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction of that name, or what it is a copy of."""
    found = computation[name]
    while found.operation in ("copy", "bitcast", "convert"):
        found = computation[found.operands[0]]
    return found


def _integer(instruction: Instruction) -> int | None:
    """The value of an integer constant."""
    found = re.match(r"(\d+)\)", instruction.rest) if instruction.operation == "constant" else None
    return int(found[1]) if found and instruction.result[:3] in ("s32", "u32", "s64", "u64") else None
