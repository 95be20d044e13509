"""LLVM as a library: text to verified, optimised module to object or assembly. Raises CodegenError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

import llvmlite.binding as llvm

from ..ir.errors import CodegenError
from .target import Target

DSE_WALK = 10
"""Stores that dead-store elimination looks back over; LLVM's 90 makes it quadratic in the stores of an unrolled tile,
and takes four fifths of the time for nothing: hand-shaped kernels store each element once."""


_OPTIONS = Lock()
"""LLVM's options belong to the process."""


@contextmanager
def _scheduling(target: Target) -> Iterator[None]:
    """Scheduling before register allocation, or the order of the kernel where that fills the registers as it is: LLVM
    gathers loads at a loop's head and spills what no longer fits. With 32 registers of 512 bits tiles of two vectors
    ran at 37 % of the peak; processors with so many reorder for themselves."""
    with _OPTIONS:
        as_written = target.loads_several or target.vector_bits == 512
        llvm.set_option("c2c", f"-enable-misched={0 if as_written else 1}")
        yield


@cache
def _initialise() -> None:
    llvm.set_option("c2c", f"-dse-memoryssa-walklimit={DSE_WALK}")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def target_machine(target: Target) -> llvm.TargetMachine:
    """Position-independent code in the small code model."""
    _initialise()
    made: llvm.TargetMachine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=",".join(target.features), opt=2, reloc="pic", codemodel="small"
    )
    return made


def optimised(text: str, target: Target, level: int = 2) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
    """Parse, verify, and run LLVM's passes: loop vectoriser on (kernels switch it off by metadata), SLP off."""
    machine = target_machine(target)
    try:
        module = llvm.parse_assembly(text)
        module.triple = target.triple
        module.data_layout = str(machine.target_data)
        module.verify()
    except RuntimeError as e:
        raise CodegenError(
            f"generated LLVM IR is not valid: {e}", remedy="this is a bug of c2c: please report it"
        ) from e
    if level:
        options = llvm.create_pipeline_tuning_options(speed_level=level)
        options.loop_vectorization = True
        options.slp_vectorization = False
        options.loop_interleaving = True
        options.loop_unrolling = True
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
    return module, machine


def object_bytes(text: str, target: Target) -> bytes:
    module, machine = optimised(text, target)
    with _scheduling(target):
        return bytes(machine.emit_object(module))


def assembly_text(text: str, target: Target) -> str:
    module, machine = optimised(text, target)
    with _scheduling(target):
        return str(machine.emit_assembly(module))
