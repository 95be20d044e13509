"""A whole Program as one LLVM module, and as object, assembly or IR text.

The module: every kernel once, a thunk for each step (named after its node), NAME_run and, where there is something to
prepare, NAME_prepare. See docs/architecture.md for the interface of the object. Weights never pass through LLVM: see
`object_weights`.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

from ..ir.program import Bytes, Program, Slot, Step
from .llvm_kernel import Loops, iterations, kernel_text
from .llvm_machine import assembly_text, object_bytes
from .object_file import WEIGHTS_SECTIONS
from .object_weights import Packed, reserve
from .target import Target

MAGIC = bytes.fromhex("c2c05eed7ab1e5ffd00dfeed0ddba110") * 4
"""What stands for the weights in an object until they are put in: one cache line."""


def emit_llvm(program: Program, target: Target, *, embed_weights: bool = True, packed: Packed | None = None) -> str:
    """The module's text before LLVM's own passes; embedded weights are a placeholder."""
    embed_weights = embed_weights and packed is None
    loops = Loops()
    declarations: dict[str, str] = {}
    kernels = []
    for name, kernel in program.kernels.items():
        text, needed = kernel_text(kernel, name, target, loops)
        kernels.append(text)
        declarations.update(needed)
    parts = [f'source_filename = "{program.name}"', f'target triple = "{target.triple}"', ""]
    if embed_weights and program.weights:
        parts += [_placeholder(f"{program.name}_weights = hidden", target), ""]
    if packed is not None:
        words = ", ".join(f"i32 {w}" for w in packed.table)
        parts += [f"@{program.name}_packed = constant [{len(packed.table)} x i32] [{words}], align 64", ""]
        if packed.data:
            parts += [_placeholder(f"{program.name}_packed_weights =", target), ""]
    parts += [*kernels]
    parts += [_thunk(program, step) for step in (*program.prepare, *program.steps)]
    parts += [_serial(program), _run(program, embed_weights)]
    parts += [_prepare(program, embed_weights)] if program.prepare else []
    parts += [*sorted(declarations.values()), "", *_attributes(target), "", *loops.lines, ""]
    return "\n".join(parts)


def emit_object(program: Program, target: Target, *, embed_weights: bool = True, packed: Packed | None = None) -> bytes:
    """The object file's bytes."""
    head, weights = _object(program, target, embed_weights, packed)
    return bytes(head) + bytes(weights)


def write_object(
    program: Program, target: Target, path: Path | str, *, embed_weights: bool = True, packed: Packed | None = None
) -> None:
    """The object file; weights go from the program to the file without a copy. packed: what stands in their place."""
    head, weights = _object(program, target, embed_weights, packed)
    with open(path, "wb") as stream:
        stream.write(head)
        stream.write(weights)


def _object(
    program: Program, target: Target, embed_weights: bool, packed: Packed | None
) -> tuple[bytes | bytearray, Bytes]:
    """The object up to its weights, and the weights."""
    obj = object_bytes(emit_llvm(program, target, embed_weights=embed_weights, packed=packed), target)
    data = bytearray(packed.data) if packed is not None else program.weights if embed_weights else bytearray()
    return (reserve(obj, len(data)), data) if data else (obj, bytearray())


def emit_asm(program: Program, target: Target, *, embed_weights: bool = True, packed: Packed | None = None) -> str:
    """Assembly text, for reading."""
    return assembly_text(emit_llvm(program, target, embed_weights=embed_weights, packed=packed), target)


def _attributes(target: Target) -> list[str]:
    machine = f'"target-cpu"="{target.cpu}" "target-features"="{",".join(target.features)}"'
    if target.arch == "x86_64":
        machine += f' "prefer-vector-width"="{target.vector_bits}"'
    if target.object_format == "macho":
        machine += ' "no-builtin-memset_pattern16"'
    return [
        f'attributes #0 = {{ nounwind noinline "stackrealign" {machine} }}',
        f"attributes #1 = {{ nounwind {machine} }}",
    ]


def _placeholder(name: str, target: Target) -> str:
    segment = "__TEXT," if target.object_format == "macho" else ""
    section = segment + WEIGHTS_SECTIONS[target.object_format]
    escaped = "".join(f"\\{b:02X}" for b in MAGIC)
    return f'@{name} externally_initialized constant [{len(MAGIC)} x i8] c"{escaped}", section "{section}", align 64'


def _base(program: Program, slot: Slot) -> int:
    """Position of a slot's base in the frame."""
    inputs, outputs = len(program.inputs), len(program.outputs)
    first = {"arena": 0, "weights": 1, "input": 2, "output": 2 + inputs, "prepared": 2 + inputs + outputs}
    return first[slot.base] + slot.index


def _thunk(program: Program, step: Step) -> str:
    """A task: addresses of the step's parameters from the frame, and the call of its kernel."""
    bases = sorted({_base(program, s) for s in step.args})
    lines = [f"define internal void @{step.symbol}(ptr %frame, i64 %begin, i64 %end, i32 %worker) #1 {{", "entry:"]
    for b in bases:
        lines.append(f"  %at{b} = getelementptr inbounds ptr, ptr %frame, i64 {b}")
        lines.append(f"  %base{b} = load ptr, ptr %at{b}, align 8")
    args = []
    for i, slot in enumerate(step.args):
        lines.append(f"  %a{i} = getelementptr inbounds i8, ptr %base{_base(program, slot)}, i64 {slot.offset}")
        args.append(f"ptr %a{i}")
    lines.append("  %who = zext i32 %worker to i64")
    args += ["i64 %begin", "i64 %end", "i64 %who"]
    lines += [f"  call void @{step.kernel}({', '.join(args)})", "  ret void", "}", ""]
    return "\n".join(lines)


def _serial(program: Program) -> str:
    """What runs tasks where the caller gives no `parallel`."""
    parameters = "ptr %self, ptr %task, ptr %frame, i64 %count, i32 %workers"
    return f"""define internal void @{program.name}__serial({parameters}) #1 {{
entry:
  call void %task(ptr %frame, i64 0, i64 %count, i32 0)
  ret void
}}
"""


def _run(program: Program, embed_weights: bool) -> str:
    """NAME_run: checks, frame, steps."""
    ports = [*program.inputs, *program.outputs]
    n, name, prepared = len(ports), program.name, int(bool(program.prepare))
    lines = [f"define i32 @{name}_run(ptr %args) #1 {{", "entry:", f"  %frame = alloca [{n + 3} x ptr], align 16"]
    lines += [f"  %arg{i} = getelementptr inbounds ptr, ptr %args, i64 {i}" for i in range(n + 3 + prepared)]
    lines += ["  %none = icmp eq ptr %args, null", "  br i1 %none, label %missing, label %read", "read:"]
    lines += [f"  %v{i} = load ptr, ptr %arg{i}, align 8" for i in range(n + 3 + prepared)]
    arena, weights = f"%v{n}", f"%v{n + 1}"
    needed = [f"%v{i}" for i, p in enumerate(ports) if prod(p.shape)] + [arena] * (program.arena_bytes > 0)
    aligned = [arena]
    if program.weights and embed_weights:
        weights = f"@{name}_weights"
    elif program.weights:
        needed.append(weights)
        aligned.append(weights)
    last = [f"%v{n + 3}"] * prepared
    lines += _checked([*needed, *last], [*aligned, *last])
    lines += _frame([arena, weights, *(f"%v{j}" for j in range(n)), *last])
    lines += _calls(program, f"%v{n + 2}")
    return "\n".join([*lines, *_RETURNS])


def _prepare(program: Program, embed_weights: bool) -> str:
    """NAME_prepare: checks, frame, the steps that run once."""
    size, name = 3 + len(program.inputs) + len(program.outputs), program.name
    weights = f"@{name}_weights" if embed_weights else "%weights"
    given = ["%prepared"] if embed_weights else ["%weights", "%prepared"]
    lines = [f"define i32 @{name}_prepare(ptr %weights, ptr %prepared) #1 {{", "entry:"]
    lines += [f"  %frame = alloca [{size} x ptr], align 16", *_checked(given, given)]
    lines += _frame(["null", weights, *["null"] * (size - 3), "%prepared"])
    for step in program.prepare:
        count = iterations(program.kernels[step.kernel])
        lines.append(f"  call void @{step.symbol}(ptr %frame, i64 0, i64 {count}, i32 0)")
    return "\n".join([*lines, *_RETURNS])


_RETURNS = ("  ret i32 0", "missing:", "  ret i32 1", "unaligned:", "  ret i32 2", "}", "")


def _checked(needed: list[str], aligned: list[str]) -> list[str]:
    """Leave where a pointer is NULL or not aligned."""
    lines = _check([f"icmp eq ptr {v}, null" for v in needed], "null", "missing", "present")
    for i, v in enumerate(aligned):
        lines += [f"  %address{i} = ptrtoint ptr {v} to i64", f"  %low{i} = and i64 %address{i}, 63"]
    return [*lines, *_check([f"icmp ne i64 %low{i}, 0" for i in range(len(aligned))], "odd", "unaligned", "start")]


def _frame(pointers: list[str]) -> list[str]:
    """Stores into %frame."""
    lines = []
    for i, v in enumerate(pointers):
        lines.append(f"  %slot{i} = getelementptr inbounds ptr, ptr %frame, i64 {i}")
        lines.append(f"  store ptr {v}, ptr %slot{i}, align 8")
    return lines


def _check(tests: list[str], name: str, failed: str, passed: str) -> list[str]:
    """Branch to `failed` where any test holds."""
    lines, found = [], "false"
    for i, test in enumerate(tests):
        lines += [f"  %{name}{i} = {test}", f"  %{name}.any{i} = or i1 {found}, %{name}{i}"]
        found = f"%{name}.any{i}"
    return [*lines, f"  br i1 {found}, label %{failed}, label %{passed}", f"{passed}:"]


def _calls(program: Program, parallel: str) -> list[str]:
    """The steps, each through `run` of the caller's c2c_parallel or our serial one."""
    lines = [
        f"  %serial = icmp eq ptr {parallel}, null",
        "  br i1 %serial, label %go, label %threads",
        "threads:",
        f"  %their.run = load ptr, ptr {parallel}, align 8",
        f"  %self.at = getelementptr inbounds i8, ptr {parallel}, i64 8",
        "  %their.self = load ptr, ptr %self.at, align 8",
        f"  %workers.at = getelementptr inbounds i8, ptr {parallel}, i64 16",
        "  %their.workers = load i32, ptr %workers.at, align 4",
        f"  %fewer = icmp slt i32 %their.workers, {program.threads}",
        f"  %limited = select i1 %fewer, i32 %their.workers, i32 {program.threads}",
        "  br label %go",
        "go:",
        f"  %run = phi ptr [ @{program.name}__serial, %start ], [ %their.run, %threads ]",
        "  %self = phi ptr [ null, %start ], [ %their.self, %threads ]",
        "  %workers = phi i32 [ 1, %start ], [ %limited, %threads ]",
    ]
    for step in program.steps:
        count = iterations(program.kernels[step.kernel])
        lines.append(f"  call void %run(ptr %self, ptr @{step.symbol}, ptr %frame, i64 {count}, i32 %workers)")
    return lines
