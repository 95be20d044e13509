"""A whole program as one file of portable C99: the oracle of the other emitters, and a form that any compiler takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..ir.loops_verify import stored_buffers
from ..ir.program import Program, Slot, Step
from .c_expressions import Operators
from .c_helpers import C_TYPES
from .c_style import CStyle
from .object_weights import Packed

PARALLEL = """\
#ifndef C2C_PARALLEL_DEFINED
#define C2C_PARALLEL_DEFINED
typedef void (*c2c_task)(void *frame, int64_t begin, int64_t end, int32_t worker);
typedef struct c2c_parallel {
    void (*run)(void *self, c2c_task task, void *frame, int64_t count, int32_t workers);
    void *self;
    int32_t workers;
} c2c_parallel;
#endif
"""
"""What the generated code and an app agree on for running in parallel; headers carry it with a comment."""

_RUN = """\
static void {name}_step(const c2c_parallel *parallel, c2c_task task, void *frame, int64_t count)
{{
    int32_t workers = parallel ? parallel->workers : 1;
    if (workers > {threads})
        workers = {threads};
    if (workers > 1 && count > 1)
        parallel->run(parallel->self, task, frame, count, workers);
    else
        task(frame, 0, count, 0);
}}
"""


def emit_c(program: Program, *, embed_weights: bool, packed: Packed | None = None) -> str:
    """C99 text of the whole model with the entries `NAME_run` and `NAME_prepare` that `NAME.h` declares.

    Weights are part of the text, as words of a little-endian machine, or read from `args->weights`; packed, they are
    part of it as bytes, or their table alone. The program must
    have been verified. Raises CodegenError for what only a GPU can do.
    """
    operators = Operators()
    embed_weights = embed_weights and packed is None
    kernels = [CStyle(k, operators).text() for k in program.kernels.values()]
    embedded = embed_weights and len(program.weights) > 0
    parts = [
        f"/* {program.name}: a compiled network in C99; {program.name}.h declares {program.name}_run. */\n"
        "#include <math.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n",
        PARALLEL,
        *operators.helpers.values(),
        *([_weights(program)] if embedded else []),
        *([] if packed is None else [_packed(program.name, packed)]),
        *kernels,
        *(_thunk(program, step) for step in (*program.prepare, *program.steps)),
        *([_RUN.format(name=program.name, threads=program.threads)] if _any_parallel(program) else []),
        _entry(program, embedded, embed_weights),
        *([_prepare(program, embedded)] if program.prepare else []),
    ]
    return "\n".join(parts)


def _any_parallel(program: Program) -> bool:
    return any(_count(program, s) > 1 for s in program.steps)


def _count(program: Program, step: Step) -> int:
    """Iterations of a step's parallel loop; 1 where it has none."""
    loop = program.kernels[step.kernel].parallel
    return 1 if loop is None else int(loop.end.value)  # type: ignore[attr-defined]  # a constant, by the verifier


def _weights(program: Program) -> str:
    """The weights as a constant; the union aligns them for every element type."""
    data = bytes(program.weights) + bytes(-len(program.weights) % 8)
    words = [f"0x{w:x}u" for w in np.frombuffer(data, "<u8").tolist()]
    rows = "\n".join("    " + ",".join(words[i : i + 8]) + "," for i in range(0, len(words), 8))
    return (
        f"static const union {{ uint64_t words[{len(words)}]; double aligned; }} {program.name}_weights = {{{{\n"
        f"{rows}\n}}}};\n"
    )


def _packed(name: str, packed: Packed) -> str:
    """The table of packed weights and, where they are embedded, their bytes: constants that the app may name."""
    made = [("uint32_t", f"{name}_packed", [f"{w}u" for w in packed.table])]
    if packed.data:
        made.append(("unsigned char", f"{name}_packed_weights", [str(b) for b in packed.data]))
    texts = []
    for type_, symbol, items in made:
        rows = "\n".join("    " + ",".join(items[i : i + 16]) + "," for i in range(0, len(items), 16))
        texts.append(
            f"extern const {type_} {symbol}[{len(items)}];\nconst {type_} {symbol}[{len(items)}] = {{\n{rows}\n}};\n"
        )
    return "\n".join(texts)


def _thunk(program: Program, step: Step) -> str:
    """A step: addresses of its arguments from the frame's base pointers."""

    def address(slot: Slot) -> str:
        base = f"base[{_base(program, slot)}]"
        return f"({base} + {slot.offset})" if slot.offset else base

    origin = ", ".join(step.origin).replace("*/", "* /").replace("\n", " ").replace("\\", "/").replace("??", "?")
    return (
        (f"/* {origin} */\n" if origin else "")
        + f"static void {step.symbol}(void *frame, int64_t begin, int64_t end, int32_t worker)\n{{\n"
        + ("    char *const *base = (char *const *)frame;\n" if step.args else "    (void)frame;\n")
        + f"    {call_text(program, step, address, 'begin, end, worker')}\n}}\n"
    )


def call_text(program: Program, step: Step, address: Callable[[Slot], str], share: str) -> str:
    """The call of a step's kernel: `address` of each argument, then its share of the parallel loop's iterations,
    "begin, end, worker", in which {count} stands for all of them."""
    kernel = program.kernels[step.kernel]
    written = stored_buffers(kernel)
    args = [
        f"({'' if p.name in written else 'const '}{C_TYPES[p.dtype]} *){address(slot)}"
        for slot, p in zip(step.args, kernel.params, strict=True)
    ]
    return f"{step.kernel}({', '.join([*args, share.format(count=_count(program, step))])});"


def _base(program: Program, slot: Slot) -> int:
    """Index in the frame: arena, weights, inputs, outputs, what is prepared."""
    inputs, outputs = len(program.inputs), len(program.outputs)
    first = {"arena": 0, "weights": 1, "input": 2, "output": 2 + inputs, "prepared": 2 + inputs + outputs}
    return first[slot.base] + slot.index


def _entry(program: Program, embedded: bool, embed_weights: bool) -> str:
    """The struct of arguments and NAME_run."""
    name = program.name
    ins = [f"in{i}" for i in range(len(program.inputs))]
    outs = [f"out{i}" for i in range(len(program.outputs))]
    fields = [f"    const {C_TYPES[p.dtype]} *{n};" for p, n in zip(program.inputs, ins, strict=True)]
    fields += [f"    {C_TYPES[p.dtype]} *{n};" for p, n in zip(program.outputs, outs, strict=True)]
    file = len(program.weights) > 0 and not embed_weights
    more = ["weights"] * file + ["prepared"] * bool(program.prepare)
    needed = [*ins, *outs, "arena", *more]
    aligned = " | ".join(f"(uintptr_t)args->{n}" for n in ("arena", *more))
    weights = f"{name}_weights.words" if embedded else "args->weights"
    prepared = ["prepared"] * bool(program.prepare)
    pointers = ["args->arena", weights, *(f"args->{n}" for n in (*ins, *outs, *prepared))]
    calls = [
        f"    {name}_step(args->parallel, {s.symbol}, frame, {_count(program, s)});"
        if _count(program, s) > 1
        else f"    {s.symbol}(frame, 0, {_count(program, s)}, 0);"
        for s in program.steps
    ]
    lines = [
        f"typedef struct {name}_args {{",
        *fields,
        "    void *arena;",
        "    const void *weights;",
        "    const c2c_parallel *parallel;",
        *(f"    const void *{n};" for n in prepared),
        f"}} {name}_args;",
        "",
        f"int {name}_run(const {name}_args *args);",
        "",
        f"int {name}_run(const {name}_args *args)",
        "{",
        f"    char *frame[{len(pointers)}];",
        *(f"    if (!args->{n})\n        return 1;" for n in needed),
        f"    if (({aligned}) & 63)",
        "        return 2;",
        *(f"    frame[{i}] = (char *){p};" for i, p in enumerate(pointers)),
        *(["    (void)frame;"] if not calls else []),
        *calls,
        "    return 0;",
        "}",
        "",
    ]
    return "\n".join(lines)


def _prepare(program: Program, embedded: bool) -> str:
    """NAME_prepare."""
    name = program.name
    last = 2 + len(program.inputs) + len(program.outputs)
    signature = f"int {name}_prepare(const void *weights, void *prepared)"
    given = ["prepared"] if embedded else ["weights", "prepared"]
    lines = [
        f"{signature};",
        "",
        signature,
        "{",
        f"    char *frame[{last + 1}];",
        *(["    (void)weights;"] if embedded else []),
        *(f"    if (!{n})\n        return 1;" for n in given),
        f"    if (({' | '.join(f'(uintptr_t){n}' for n in given)}) & 63)",
        "        return 2;",
        f"    frame[1] = (char *){f'{name}_weights.words' if embedded else 'weights'};",
        f"    frame[{last}] = (char *)prepared;",
        *(f"    {s.symbol}(frame, 0, {_count(program, s)}, 0);" for s in program.prepare),
        "    return 0;",
        "}",
        "",
    ]
    return "\n".join(lines)
