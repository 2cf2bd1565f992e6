"""Runs what native/sums.h has for the driver: enough of PTX for that, one thread at a time.

Numbers of 32 bits, predicates and addresses are Python's numbers; each thread has memory of its
own, whose addresses begin with 0. What is not known here is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_WORD, _LONG = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
_VECTOR = re.compile(r"ld\.global\.v4\.u32 \{(.*)\}, \[(.*)\]")
_OPERATIONS: dict[str, Callable[..., int]] = {
    "cvta.to.global.u64": lambda a: a,
    "mov.u32": lambda a: a,
    "not.b32": lambda a: ~a & _WORD,
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
    "shr.u32": lambda a, b: a >> b,
    "sub.u32": lambda a, b: a - b & _WORD,
    "add.s64": lambda a, b: a + b & _LONG,
    "mul.wide.u32": lambda a, b: a * b,
    "mad.lo.u32": lambda a, b, c: a * b + c & _WORD,
    "bfe.s32": lambda a, at, length: -(a >> at & 1) & _WORD if length == 1 else 1 // 0,
    "setp.ge.u32": lambda a, b: a >= b,
    "setp.ne.u32": lambda a, b: a != b,
}


def run(text: str, parameters: Mapping[str, int], memory: bytearray, **special: int) -> None:
    """One thread, from the first instruction to `ret`. `special`: %tid.x as tid_x and so on."""
    body = text[text.index("{") + 1 : text.rindex("}")]
    steps, labels = _steps(body)
    registers = {f"%{name.replace('_', '.')}": number for name, number in special.items()}

    def value(name: str) -> int:
        return registers[name] if name.startswith("%") else int(name, 0)

    at = 0
    while (step := steps[at]) != "ret":
        at += 1
        if step.startswith("@"):
            predicate, step = step[1:].split(" ", 1)
            if not registers[predicate]:
                continue
        name, _, rest = step.partition(" ")
        operands = [operand.strip() for operand in rest.split(",")]
        if name == "bra":
            at = labels[rest]
        elif name.startswith("ld.param."):
            registers[operands[0]] = parameters[operands[1].strip("[]")]
        elif found := _VECTOR.fullmatch(step):
            address = registers[found[2]]
            assert address % 16 == 0
            for number, register in enumerate(found[1].split(",")):
                word = memory[address + 4 * number : address + 4 * number + 4]
                registers[register.strip()] = int.from_bytes(word, "little")
        elif name == "st.global.u32":
            address = registers[operands[0].strip("[]")]
            memory[address : address + 4] = value(operands[1]).to_bytes(4, "little")
        else:
            registers[operands[0]] = _OPERATIONS[name](*map(value, operands[1:]))


def _steps(body: str) -> tuple[list[str], dict[str, int]]:
    """The instructions, and which one each label stands before."""
    steps: list[str] = []
    labels: dict[str, int] = {}
    for line in map(str.strip, body.splitlines()):
        if line.endswith(":"):
            labels[line[:-1]] = len(steps)
        elif line and not line.startswith(".reg"):
            steps.append(line.removesuffix(";"))
    return steps, labels
