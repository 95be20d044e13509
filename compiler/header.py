"""`model.h` and `example.c`: what an app reads of a compiled model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..codegen.c_helpers import C_TYPES
from ..codegen.c_source import PARALLEL as DECLARATIONS
from ..codegen.object_weights import Packed
from ..ir.program import Port, Program
from ..ir.types import DType
from .names import unique_identifiers
from .packed import packed_bytes

_GUARD = "#define C2C_PARALLEL_DEFINED\n"
PARALLEL = DECLARATIONS.replace(
    _GUARD,
    _GUARD
    + """\
/* How a model runs on several threads. run() splits [0, count) into ranges, calls task once for each, with worker
 * numbers in [0, workers) of which none is in use twice at a time, and returns when all are done. c2c_runtime.h has a
 * thread pool that fits; an app may bring its own. */
""",
)
"""The same text stands in c2c_runtime.h."""

ERRORS = (
    ("OK", 0, ""),
    ("E_NULL", 1, "a pointer of the arguments is NULL"),
    ("E_ALIGN", 2, "arena, weights or prepared are not aligned to 64 bytes"),
)


def port_identifiers(program: Program) -> tuple[list[str], list[str]]:
    """C names of inputs and outputs: one name space, since they are fields of one struct."""
    names = unique_identifiers([p.name for p in (*program.inputs, *program.outputs)])
    return names[: len(program.inputs)], names[len(program.inputs) :]


def _macros(prefix: str, port: Port) -> list[str]:
    nbytes = prod(port.shape) * port.dtype.nbytes
    lines = [
        f"#define {prefix}_RANK {len(port.shape)}",
        f"#define {prefix}_SIZE {prod(port.shape)} /* elements */",
        f"#define {prefix}_BYTES {nbytes}",
        f'#define {prefix}_DTYPE "{port.dtype}"',
    ]
    return lines + [f"#define {prefix}_DIM{i} {d}" for i, d in enumerate(port.shape)]


def label_lines(prefix: str, port: Port) -> list[str]:
    """The strings of an output, as an array."""
    if not port.labels:
        return []
    what = "the columns" if port.dtype.is_float else "what its numbers stand for"
    strings = ", ".join(c_string(label) for label in port.labels)
    return [
        f"#define {prefix.upper()}_LABELS {len(port.labels)} /* {what}, in order */",
        f"static const char *const {prefix}_labels[{len(port.labels)}] = {{{strings}}};",
    ]


def c_string(text: str) -> str:
    """A string literal of UTF-8; octal escapes end after three digits, whatever follows."""
    plain = {*range(32, 127)} - {*b'"\\?'}
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def _field(port: Port, name: str, const: str, counts: Mapping[str, str]) -> str:
    """counts: C names of outputs that say how many results there are, by public name."""
    shape, counted = ", ".join(map(str, port.shape)), ""
    if port.counted is not None:
        counted = (
            f"; along axis {port.counted.axis} the first *{counts[port.counted.count]} are results, the rest fills"
        )
    text = f"{port.dtype}[{shape}], row-major, '{_comment(port.name)}'{counted}"
    return f"    {const}{C_TYPES[port.dtype]} *{name}; /* {text} */"


def _comment(text: str) -> str:
    return text.replace("*/", "* /").replace("\n", " ")


@dataclass(frozen=True, slots=True)
class HeaderPorts:
    """C names of inputs and outputs, macros of their sizes, and their fields in NAME_args."""

    inputs: list[str]
    outputs: list[str]
    macros: list[str]
    fields: list[str]


def ports_of_header(program: Program) -> HeaderPorts:
    """What every header says of a model's inputs and outputs."""
    ins, outs = port_identifiers(program)
    macros: list[str] = []
    for port, ident in zip((*program.inputs, *program.outputs), (*ins, *outs), strict=True):
        macros += _macros(f"{program.name.upper()}_{ident.upper()}", port)
        macros += label_lines(f"{program.name}_{ident}", port)
    counts = {p.name: n for p, n in zip(program.outputs, outs, strict=True)}
    fields = [_field(p, n, "const ", counts) for p, n in zip(program.inputs, ins, strict=True)]
    fields += [_field(p, n, "", counts) for p, n in zip(program.outputs, outs, strict=True)]
    return HeaderPorts(ins, outs, macros, fields)


def header(program: Program, target: str, embedded: bool, version: str, packed: Packed | None = None) -> str:
    """The text of `model.h`: C99 and C++11, self-contained. packed: the form of weights that are not embedded."""
    name, upper = program.name, program.name.upper()
    ports = ports_of_header(program)
    ins, outs = ports.inputs, ports.outputs
    errors = [f"    {upper}_{n} = {v}{',' if v < 2 else ''}{f' /* {t} */' if t else ''}" for n, v, t in ERRORS]
    weights = (
        "NULL: the weights are in the object" if embedded else f"the {upper}_WEIGHTS_BYTES bytes of {name}.weights"
    )
    if packed is not None:
        weights = f"the {upper}_WEIGHTS_BYTES that c2c_weights.h decoded"
    lines = [
        f"/* {name}: compiled by c2c {version} for {target}. Link {name}.o; it calls only memory and math functions of",
        " * libc, allocates nothing and keeps no state: one arena for each run at a time makes it re-entrant. */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "#include <stdint.h>",
        "",
        f"#define {upper}_ARENA_BYTES {max(program.arena_bytes, 64)}",
        f"#define {upper}_WEIGHTS_BYTES {len(program.weights)}",
        f"#define {upper}_WEIGHTS_EMBEDDED {int(embedded)}",
        *([] if packed is None else [f"#define {upper}_PACKED_BYTES {packed_bytes(packed)} /* of {name}.c2w */"]),
        f"#define {upper}_PREPARED_BYTES {program.prepared_bytes}",
        f"#define {upper}_ALIGNMENT 64 /* of arena, weights and prepared */",
        f"#define {upper}_MAX_WORKERS {program.threads}",
        f"#define {upper}_INPUTS {len(ins)}",
        f"#define {upper}_OUTPUTS {len(outs)}",
        *ports.macros,
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        PARALLEL,
        f"enum {name}_error {{",
        *errors,
        "};",
        "",
        f"typedef struct {name}_args {{",
        *ports.fields,
        f"    void *arena; /* {upper}_ARENA_BYTES, aligned to 64; contents need not be kept between runs */",
        f"    const void *weights; /* {weights} */",
        f"    const c2c_parallel *parallel; /* NULL: serial; at most {upper}_MAX_WORKERS are used */",
        *([f"    const void *prepared; /* what {name}_prepare filled */"] if program.prepare else []),
        f"}} {name}_args;",
        "",
        *([] if packed is None else _packed(name, upper, packed)),
        *(_prepare(name, upper, embedded) if program.prepare else []),
        f"/* Run the model once; inputs and outputs need only their type's alignment. Returns enum {name}_error. */",
        f"int {name}_run(const {name}_args *args);",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def _packed(name: str, upper: str, packed: Packed) -> list[str]:
    take = f"{name}_packed, image"
    if packed.data:
        call = f"c2c_weights_decode({name}_packed_weights, {upper}_PACKED_BYTES, {take})"
    else:
        call = f'c2c_weights_load("{name}.c2w", {take})'
    return [
        f"/* How the packed weights become the image of {upper}_WEIGHTS_BYTES, aligned to 64, that runs read:",
        f" * {call}. */",
        f"extern const uint32_t {name}_packed[{len(packed.table)}];",
        *([f"extern const unsigned char {name}_packed_weights[{upper}_PACKED_BYTES];"] if packed.data else []),
        "",
    ]


def _prepare(name: str, upper: str, embedded: bool) -> list[str]:
    weights = "NULL" if embedded else f"as in {name}_args"
    return [
        f"/* Transform weights once, before the first run: fills the {upper}_PREPARED_BYTES of `prepared`, which is",
        " * aligned to 64 and which runs only read, so that all of them may share it.",
        f" * weights: {weights}. Returns enum {name}_error. */",
        f"int {name}_prepare(const void *weights, void *prepared);",
        "",
    ]


TRANSFER = """\
static void transfer(const char *path, const char *mode, void *data, size_t bytes) {
    FILE *f = fopen(path, mode);
    size_t done = !f ? 0 : mode[0] == 'r' ? fread(data, 1, bytes, f) : fwrite(data, 1, bytes, f);
    if (!f || done != bytes || (mode[0] == 'w' && fclose(f))) {
        fprintf(stderr, "%s: %lu bytes expected\\n", path, (unsigned long)bytes);
        exit(2);
    }
}
"""
"""How examples read and write raw files."""

EXAMPLE = """\
/* Runs {name} once: ./example INPUT.raw... OUTPUT.raw...   (raw files in the model's order; without any: zeros)
 *
 *   cc -O2 example.c {name}.o{runtime} -lm -o example
 *   cc -O2 -DUSE_THREADS=2 example.c {name}.o c2c_runtime.c{zstd} -lm -lpthread -o example
 */
#include "{name}.h"
#include <stdio.h>
#include <stdlib.h>
{includes}
static void *aligned(size_t bytes) {{ /* zeros, to 64 bytes; never freed: the process ends with the run */
    char *p = (char *)calloc(1, bytes + 64);
    if (!p) {{ fprintf(stderr, "out of memory (%lu bytes)\\n", (unsigned long)bytes); exit(2); }}
    return p + (64 - (size_t)((uintptr_t)p % 64));
}}

{transfer}
int main(int argc, char **argv) {{
    {name}_args args = {{0}};
    int files = argc - 1, error;
{allocate}
    args.arena = aligned({upper}_ARENA_BYTES);
    if (files != 0 && files != {upper}_INPUTS + {upper}_OUTPUTS) {{
        fprintf(stderr, "usage: example [%d input files, %d output files]\\n", {upper}_INPUTS, {upper}_OUTPUTS);
        return 2;
    }}
{weights}    if (files) {{
{read}
    }}
#ifdef USE_THREADS
    c2c_pool *pool = c2c_pool_create(USE_THREADS);
    args.parallel = c2c_pool_parallel(pool);
#endif
{prepare}    error = {name}_run(&args);
    if (error) {{ fprintf(stderr, "{name}_run: error %d\\n", error); return 1; }}
    if (files) {{
{write}
    }}
{show}
    return 0;
}}
"""


INCLUDES = """\
#if defined(USE_THREADS) || !{upper}_WEIGHTS_EMBEDDED
#include "c2c_runtime.h"
#endif
"""

MAP = """\
#if !{upper}_WEIGHTS_EMBEDDED
    void *mapping;
    error = c2c_map_weights("{name}.weights", {upper}_WEIGHTS_BYTES, &args.weights, &mapping);
    if (error) {{ fprintf(stderr, "{name}.weights: error %d\\n", error); return 2; }}
#endif
"""

PACKED_INCLUDES = """\
#include "c2c_weights.h"
#ifdef USE_THREADS
#include "c2c_runtime.h"
#endif
"""

DECODE = """\
    void *weights = aligned({upper}_WEIGHTS_BYTES);
    error = {call};
    if (error) {{ fprintf(stderr, "{name}: %s\\n", c2c_weights_error_string(error)); return 2; }}
    args.weights = weights;
"""

PREPARE = """\
    void *prepared = aligned({upper}_PREPARED_BYTES);
    error = {name}_prepare(args.weights, prepared);
    if (error) {{ fprintf(stderr, "{name}_prepare: error %d\\n", error); return 1; }}
    args.prepared = prepared;
"""


def example(program: Program, embedded: bool, packed: Packed | None = None) -> str:
    """The text of `example.c`."""
    name, upper = program.name, program.name.upper()
    ins, outs = port_identifiers(program)
    ports = dict(zip((*ins, *outs), (*program.inputs, *program.outputs), strict=True))

    def size(i: str) -> str:
        return f"{upper}_{i.upper()}_BYTES"

    allocate = [f"    args.{i} = ({C_TYPES[p.dtype]} *)aligned({size(i)});" for i, p in ports.items()]
    read = [f'        transfer(argv[{k + 1}], "rb", (void *)args.{i}, {size(i)});' for k, i in enumerate(ins)]
    write = [
        f'        transfer(argv[{len(ins) + k + 1}], "wb", (void *)args.{i}, {size(i)});' for k, i in enumerate(outs)
    ]
    show = []
    for i in outs:
        port = ports[i]
        spelled = "%g" if port.dtype in (DType.F32, DType.F64) else "%ld"
        convert = "(double)" if spelled == "%g" else "(long)"
        show.append(
            f'    printf("{i}:");\n'
            f"    for (int k = 0; k < 8 && k < {upper}_{i.upper()}_SIZE; k++)\n"
            f'        printf(" {spelled}", {convert}args.{i}[k]);\n'
            f'    printf("\\n");'
        )
    parts = {k: "\n".join(v) for k, v in dict(allocate=allocate, read=read, write=write, show=show).items()}
    runtime = "" if embedded else " c2c_runtime.c -lpthread"
    prepare = PREPARE.format(name=name, upper=upper) if program.prepare else ""
    includes, weights, zstd = INCLUDES.format(upper=upper), MAP.format(name=name, upper=upper), ""
    if packed is not None:
        call = f'c2c_weights_load("{name}.c2w", {name}_packed, weights)'
        if packed.data:
            call = f"c2c_weights_decode({name}_packed_weights, {upper}_PACKED_BYTES, {name}_packed, weights)"
        runtime = zstd = " c2c_weights.c -lzstd"
        includes, weights = PACKED_INCLUDES, DECODE.format(name=name, upper=upper, call=call)
    return EXAMPLE.format(
        transfer=TRANSFER,
        name=name,
        upper=upper,
        runtime=runtime,
        prepare=prepare,
        zstd=zstd,
        includes=includes,
        weights=weights,
        **parts,
    )
