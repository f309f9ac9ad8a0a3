"""Counts read from a compiled program: what each device sends to others, and its matrix products.

`compiled.as_text()` is the program of one device (XLA's HLO). A loop's body counts as often as it runs, and of the
branches of a conditional the largest counts. Bytes sent are those of ring algorithms, which send the least (Patarasu &
Yuan 2009, "Bandwidth Optimal All-reduce Algorithms"): of N bytes among n devices, (n - 1) / n · N for all-gather,
reduce-scatter and all-to-all, and twice that for all-reduce.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*->.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


class Counts(NamedTuple):
    """Of one device: bytes sent by each kind of collective, and multiplications and additions in matrix products.

    Only products with parameters count, which have no batch axes. Attention's depend on which tiles the mask leaves.
    """

    sent: dict[str, float]
    operations: float

    @property
    def bytes_sent(self) -> float:
        """The bytes that all collectives send together."""
        return sum(self.sent.values())


class _Instruction(NamedTuple):
    """One line: the shape of its result, its opcode, and its operands and attributes."""

    name: str
    shape: str
    opcode: str
    rest: str


def count(text: str) -> Counts:
    """Count the collectives and matrix products of one device in the text of a compiled program.

    Raises:
        ValueError: a collective is in a loop whose number of steps is not known, or has a form not known here.
    """
    computations, entry = _parse(text)
    devices = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    return _count(computations, entry, int(devices[1]) if devices else 1)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Return the instructions of each computation, and the name of the first to run."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", list[_Instruction]()
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_Instruction(*found.groups()))
    return computations, entry


def _count(computations: dict[str, list[_Instruction]], name: str, devices: int) -> Counts:
    sent, operations, shapes = dict[str, float](), 0.0, dict[str, str]()
    for instruction in computations[name]:
        shapes[instruction.name] = instruction.shape
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            sent[kind] = sent.get(kind, 0.0) + _bytes_sent(instruction, kind, devices)
        elif instruction.opcode == "dot" and "lhs_batch_dims" not in instruction.rest:
            operations += _operations(instruction, shapes)
        branches = [_count(computations, called, devices) for called in _called(instruction)]
        if branches:
            largest, steps = max(branches, key=lambda counts: counts.bytes_sent), _steps(instruction)
            if steps is None and largest.bytes_sent:
                raise ValueError(f"{instruction.name} sends in a loop whose number of steps is not known")
            for kind, size in largest.sent.items():
                sent[kind] = sent.get(kind, 0.0) + (steps or 0) * size
            operations += (steps or 0) * max(counts.operations for counts in branches)
    return Counts(sent, operations)


def _called(instruction: _Instruction) -> list[str]:
    """Return the computations that an instruction runs; of a conditional, one of them."""
    attributes = {
        "while": r"body=%?([\w.\-]+)",
        "fusion": r"calls=%?([\w.\-]+)",
        "call": r"to_apply=%?([\w.\-]+)",
        "conditional": r"(?:true_computation|false_computation)=%?([\w.\-]+)",
    }
    names = re.findall(attributes.get(instruction.opcode, "$^"), instruction.rest)
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    return names + (re.findall(r"[\w.\-]+", branches[1]) if branches else [])


def _steps(instruction: _Instruction) -> int | None:
    """Return how often the computation runs; None if that depends on data."""
    if instruction.opcode != "while":
        return 1
    known = re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', instruction.rest)
    return int(known[1]) if known else None


def _bytes_sent(instruction: _Instruction, kind: str, devices: int) -> float:
    if instruction.opcode != kind:
        raise ValueError(f"{instruction.opcode} is not counted: compile for CPUs, whose collectives are synchronous")
    size = sum(bits * math.prod(dims) / 8 for bits, dims in _arrays(instruction.shape))
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.rest)
        return size if any(source != target for source, target in pairs) else 0.0
    n = _group_size(instruction.rest, devices)
    # The result of a reduce-scatter is one part; all others have all N bytes.
    factors = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": float(n - 1)}
    return size * factors.get(kind, (n - 1) / n)


def _group_size(attributes: str, devices: int) -> int:
    """Return how many devices take part, from {{0,1},{2,3}}, [2,2]<=[4], mesh['a'=2,'b'=2] {'a'} or {}, all."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=", attributes):
        return int(found[1].split(",")[-1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(
            int(part or sizes[axis]) for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        )
    if re.search(r"replica_groups=\{\}", attributes):
        return devices
    raise ValueError(f"the devices of a collective are not known: {attributes[:200]}")


def _operations(dot: _Instruction, shapes: dict[str, str]) -> float:
    """Two for each entry of the result and each place of the contracted axes."""
    left = re.findall(r"%([\w.\-]+)", dot.rest)[0]
    (_, result), (_, operand) = next(_arrays(dot.shape)), next(_arrays(shapes[left]))
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)
    contracted = [operand[int(axis)] for axis in (axes[1].split(",") if axes and axes[1] else [])]
    return 2.0 * math.prod(result) * math.prod(contracted)


def _arrays(shape: str) -> Iterator[tuple[int, list[int]]]:
    """Yield the bits of a number and the axes of each array in a shape, which may be a tuple."""
    for kind, bits, axes in _ARRAY.findall(shape):
        yield 8 if kind == "pred" else int(bits or 0), [int(axis) for axis in axes.split(",") if axis]
