"""Parser of the text of a compiled program (optimised HLO), with the number of times that each instruction runs."""

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
      dtype: as HLO writes it, e.g. "bf16".
      shape: of the array.
      in_hbm: whether it is in HBM, and not in one of the small memories on the cores.
    """

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool = True

    @property
    def bytes(self) -> int:
        """Return the size of the array; types below a byte take a whole one."""
        width = _BYTES.get(self.dtype) or max(1, int(matched(r"\d+", self.dtype)[0]) // 8)
        return width * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line ``name = result operation(rest``; ``rest`` holds operands and attributes."""

    name: str
    result: str
    operation: str
    rest: str
    is_root: bool = False

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Return the arrays of the result, flat where it is a tuple."""
        return tuple(
            Array(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(" not in layout)
            for dtype, sizes, layout in _ARRAY.findall(self.result)
        )

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Return the operands, as names of instructions of the computation."""
        depth, end = 1, 0
        while depth and end < len(self.rest):
            depth += {"(": 1, ")": -1}.get(self.rest[end], 0)
            end += 1
        return tuple(re.findall(r"%([\w.\-]+)", self.rest[: end - 1]))

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Return the names of the computations that the instruction calls, without a loop's body and condition."""
        branches = re.search(r"\bbranch_computations=\{([^}]*)\}", self.rest)
        return tuple(_CALLED.findall(self.rest)) + tuple(
            name.strip().lstrip("%") for name in (branches[1].split(",") if branches else ())
        )

    def attribute(self, name: str) -> str | None:
        """Return the word after ``name=``, None where the instruction has no such attribute."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None

    def computation(self, name: str) -> str:
        """Return the computation that an attribute names.

        Raises:
          ValueError: the instruction has no such attribute.
        """
        return matched(rf"\b{name}=%?([\w.\-]+)", self.rest)[1]


Computation = dict[str, Instruction]  # by name, in order


@dataclasses.dataclass(frozen=True)
class HloModule:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the one that runs.
      otherwise: trip count of loops where it cannot be read; None: such a loop is an error.
    """

    computations: dict[str, Computation]
    entry: str
    otherwise: int | None = None

    @classmethod
    def parse(cls, text: str, otherwise: int | None = None) -> HloModule:
        """Return the program of a text.

        Args:
          text: optimised HLO.
          otherwise: see the class.

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
        """Yield ``(computation, instruction, executions in a run of the program)``.

        Trip counts of nested loops are multiplied; instructions inside a fusion come after the fusion itself.

        Raises:
          ValueError: a loop whose trip count cannot be read.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for instruction in self.computations[name].values():
            yield name, instruction, times
            if instruction.operation == "while":
                runs = times * self.trip_count(name, instruction)
                yield from self._executed(instruction.computation("body"), runs)
            if instruction.operation.endswith(("-done", "-update")):  # the start has called it
                continue
            for called in instruction.called:
                yield from self._executed(called, times)

    def trip_count(self, computation: str, loop: Instruction) -> int:
        """Return how often a loop's body runs.

        The compiler may have written it down. Else it is derived from the loop's counter, which starts at a constant,
        stays below another, and has a third added in each run (TPUs unroll loops by two without a note).

        Args:
          computation: of the loop.
          loop: the instruction.

        Raises:
          ValueError: it cannot be read, and there is no ``otherwise``.
        """
        if known := re.search(r'"?known_trip_count"?\s*:\s*\{\s*"n"\s*:\s*"(\d+)"', loop.rest):
            return int(known[1])
        condition = list(self._inside(loop.computation("condition")))
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
        """Return the counter before the first run; 0 where that is not written down."""
        start = outer[loop.operands[0]]
        return (_integer(_source(outer, start.operands[index])) or 0) if start.operation == "tuple" else 0

    def _step(self, loop: Instruction, index: int) -> int:
        """Return the increment of the counter; 1 where that is not written down."""
        body = self.computations[loop.computation("body")]
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


def matched(pattern: str, text: str) -> re.Match[str]:
    """Return the first match of a pattern.

    Raises:
      ValueError: there is none.
    """
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"{pattern!r} is not in {text!r}")
    return found


def _source(computation: Computation, name: str) -> Instruction:
    """Return the instruction of that name, or what it is a copy of."""
    found = computation[name]
    while found.operation in ("copy", "bitcast", "convert"):
        found = computation[found.operands[0]]
    return found


def _integer(instruction: Instruction) -> int | None:
    """Return the value of an integer constant, None for other instructions."""
    found = re.match(r"(\d+)\)", instruction.rest) if instruction.operation == "constant" else None
    return int(found[1]) if found and instruction.result[:3] in ("s32", "u32", "s64", "u64") else None
