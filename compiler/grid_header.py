"""`model.h`, `model.c` and `example.c` of a model for a graphics processor: the typed interface of a processor's."""

from __future__ import annotations

from ..codegen.dialects import Language
from ..ir.program import Program
from .header import TRANSFER, ports_of_header

HEADER = """\
/* {name}: compiled by c2c {version} for {target}. Build {name}.c, {sources} with the app
 * ({libraries}); {name}.weights are given when the model is opened. */
#ifndef {upper}_H
#define {upper}_H
#include <stdint.h>
#include "{driver}.h"

#define {upper}_WEIGHTS_BYTES {weights}
#define {upper}_ARENA_BYTES {arena} /* of the device's memory */
#define {upper}_INPUTS {inputs}
#define {upper}_OUTPUTS {outputs}
{macros}

#ifdef __cplusplus
extern "C" {{
#endif

typedef struct {name}_args {{
{fields}
    {driver}_model *model; /* what {name}_open made */
}} {name}_args;

/* Build the kernels on a device and bring the {upper}_WEIGHTS_BYTES of {name}.weights there (`weights` may be freed
 * afterwards). Returns enum c2c_gpu_error; {driver}_message(device) has the words. Close by {driver}_unload. */
int {name}_open({driver} *device, const void *weights, {driver}_model **model);

/* Run the model once and wait. Instead of its address an input or output may be C2C_GPU_IN_PLACE: it lies in memory
 * that the device shares, which {driver}_map(model, {upper}_…_PORT, &address) opens to this processor before the run,
 * or after it. Returns enum c2c_gpu_error. */
int {name}_run(const {name}_args *args);

/* Run without waiting: inputs are read before the call returns, outputs are written when `done` is called, which may be
 * on another thread and may not call the driver. {waits}Returns enum c2c_gpu_error. */
int {name}_start(const {name}_args *args, void (*done)(void *user, int error), void *user);

/* Nanoseconds of each of the {steps} steps of the last run, where the device was opened with `profile`. */
#define {upper}_STEPS {steps}
int {name}_times(const {name}_args *args, uint64_t *nanoseconds);

#ifdef __cplusplus
}}
#endif
#endif
"""

SOURCE = """\
/* {name}: the plan of a compiled network and its entry points; {name}.h says what they promise. */
#include "{name}.h"
#include "{name}_plan.h"

int {name}_open({driver} *device, const void *weights, {driver}_model **model)
{{
    return {driver}_load(device, &{name}_plan, weights, {upper}_WEIGHTS_BYTES, model);
}}

int {name}_run(const {name}_args *args)
{{
    const void *inputs[{upper}_INPUTS + 1] = {{0}};
    void *outputs[{upper}_OUTPUTS + 1] = {{0}};
    if (!args)
        return C2C_GPU_E_NULL;
{bind}
    return {driver}_run(args->model, inputs, outputs);
}}

int {name}_start(const {name}_args *args, void (*done)(void *user, int error), void *user)
{{
    const void *inputs[{upper}_INPUTS + 1] = {{0}};
    void *outputs[{upper}_OUTPUTS + 1] = {{0}};
    if (!args)
        return C2C_GPU_E_NULL;
{bind}
    return {driver}_start(args->model, inputs, outputs, done, user);
}}

int {name}_times(const {name}_args *args, uint64_t *nanoseconds)
{{
    return args ? {driver}_times(args->model, nanoseconds) : C2C_GPU_E_NULL;
}}
"""

EXAMPLE = """\
/* Runs {name} once: ./example INPUT.raw... OUTPUT.raw...   (raw files in the model's order; without any: zeros)
 *
 *   {build}
 */
#include "{name}.h"
#include <stdio.h>
#include <stdlib.h>

static void *memory(size_t bytes) {{
    void *p = calloc(1, bytes + 1);
    if (!p) {{ fprintf(stderr, "out of memory (%lu bytes)\\n", (unsigned long)bytes); exit(2); }}
    return p;
}}

{transfer}
int main(int argc, char **argv) {{
    {name}_args args = {{0}};
    {driver}_options options = {{0}};
    {driver} *device;
    void *weights = memory({upper}_WEIGHTS_BYTES);
    int files = argc - 1, error;
    if (files != 0 && files != {upper}_INPUTS + {upper}_OUTPUTS) {{
        fprintf(stderr, "usage: example [%d input files, %d output files]\\n", {upper}_INPUTS, {upper}_OUTPUTS);
        return 2;
    }}
{allocate}
    if ({upper}_WEIGHTS_BYTES)
        transfer("{name}.weights", "rb", weights, {upper}_WEIGHTS_BYTES);
    options.device = getenv("{DRIVER}_DEVICE");
    options.cache = getenv("{DRIVER}_CACHE");
    error = {driver}_open(&options, &device);
    if (!error)
        error = {name}_open(device, weights, &args.model);
    free(weights);
{read}
    if (!error)
        error = {name}_run(&args);
    if (error) {{ fprintf(stderr, "{name}: %s\\n", {driver}_message(device)); return 1; }}
    fprintf(stderr, "on %s\\n", {driver}_name(device));
{write}
    {driver}_unload(args.model);
    {driver}_close(device);
{free}
    return 0;
}}
"""


_WAITS = """Steps that run on this processor have ended when the call returns.
 * """


def grid_files(program: Program, target: str, language: Language, version: str) -> dict[str, str]:
    """Text of `NAME.h`, `NAME.c` and `example.c`."""
    ports = ports_of_header(program)
    name, upper = program.name, program.name.upper()
    ins, outs = ports.inputs, ports.outputs
    bind = [f"    inputs[{i}] = args->{n};" for i, n in enumerate(ins)]
    bind += [f"    outputs[{i}] = args->{n};" for i, n in enumerate(outs)]

    numbers = [f"#define {upper}_{n.upper()}_PORT {i}" for i, n in enumerate((*ins, *outs))]

    def size(port: str) -> str:
        return f"{upper}_{port.upper()}_BYTES"

    def files(names: list[str], first: int, mode: str) -> str:
        found = [
            f'        transfer(argv[{first + i}], "{mode}", (void *)args.{n}, {size(n)});' for i, n in enumerate(names)
        ]
        return "\n".join(["    if (files) {", *found, "    }"])

    command, libraries = language.build
    parts = ["example.c", f"{name}.c", *language.sources]
    values = dict(
        driver=language.driver, DRIVER=language.driver.upper(), sources=" and ".join(language.sources),
        libraries=libraries, build=" ".join([command, *parts, libraries, "-o example"]),
        transfer=TRANSFER, name=name, upper=upper, version=version, target=target, weights=len(program.weights),
        arena=program.arena_bytes, inputs=len(ins), outputs=len(outs), macros="\n".join([*ports.macros, *numbers]),
        fields="\n".join(ports.fields), steps=len(program.prepare) + len(program.steps), bind="\n".join(bind),
        allocate="\n".join(f"    args.{n} = memory({size(n)});" for n in (*ins, *outs)),
        read=files(ins, 1, "rb"), write=files(outs, len(ins) + 1, "wb"),
        waits=_WAITS if any(s.host for s in program.steps) else "",
        free="\n".join(f"    free((void *)args.{n});" for n in (*ins, *outs)),
    )  # fmt: skip
    return {
        f"{name}.h": HEADER.format(**values),
        f"{name}.c": SOURCE.format(**values),
        "example.c": EXAMPLE.format(**values),
    }
