"""Loads a generated object into this process and runs it on numpy arrays; needs llvmlite, but no C toolchain."""

from __future__ import annotations

import copy
import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .pool import Parallel, has_threads, pool, tracer

LINE = 64


def aligned_bytes(size: int, alignment: int = LINE) -> np.ndarray:
    """`size` bytes that begin at a multiple of `alignment`."""
    raw = np.zeros(size + alignment, np.uint8)
    skip = -raw.ctypes.data % alignment
    return raw[skip : skip + size]


_serial = itertools.count()


class Loaded:
    """NAME_run of an object in this process, with an arena and, where they are not embedded, the weights.

    obj: bytes of an object file for this machine. weights: bytes, None where the object holds them. prepared_bytes:
    what NAME_prepare fills, which is called before the first run. Not for two threads at once: there is one arena.
    """

    def __init__(
        self,
        obj: bytes,
        name: str,
        *,
        arena_bytes: int,
        weights: bytes | bytearray | memoryview | np.ndarray | None = None,
        threads: int = 1,
        prepared_bytes: int = 0,
    ) -> None:
        self.name, self.threads = name, threads
        self._arena = aligned_bytes(max(arena_bytes, LINE))
        self._weights = _aligned(weights)
        self._memory = _addresses(self._arena, self._weights)
        self._prepared_bytes = prepared_bytes
        self._prepared: np.ndarray | None = None
        self._last: tuple[int, ...] = ()
        self._obj = obj
        self._run: ctypes._FuncPointer | None = None

    def clone(self) -> Loaded:
        """The same code, weights and what was prepared of them, with another arena."""
        if self._run is None:
            self._link()
        twin = copy.copy(self)
        twin._arena = aligned_bytes(self._arena.size)
        twin._memory = _addresses(twin._arena, self._weights)
        return twin

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> int:
        """Run on C-contiguous arrays in the model's order; returns NAME_run's code (0: done)."""
        return self._call(inputs, outputs, pool(self.threads))

    def trace(
        self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], steps: int, beside: Bound | None = None
    ) -> np.ndarray:
        """Run on this thread; nanoseconds [steps] of each of the program's `steps`, in order.

        With `beside`: [steps, 2]. It runs twice before each step, the first time to let the step before end, since
        its stores are still on their way; the nanoseconds of the second come first.
        """
        times = np.zeros((steps, 2) if beside else steps, np.int64)
        if has_threads():
            parallel, _state = tracer(times, (beside.function, beside.arguments) if beside else None)
            code = self._call(inputs, outputs, parallel)
            if code:
                raise RuntimeError(f"{self.name}_run returned {code}")
        return times

    def bind(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Bound:
        """A run on one thread with these arrays, to be called by address."""
        if self._run is None:
            self._link()
        pointers = [*(a.ctypes.data for a in (*inputs, *outputs)), *self._memory, None, *self._last]
        return Bound(self, (*inputs, *outputs), (ctypes.c_void_p * len(pointers))(*pointers))

    def _call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], parallel: Parallel | None) -> int:
        for a in (*inputs, *outputs):
            if not a.flags.c_contiguous:
                raise ValueError(f"{self.name}: arrays must be C-contiguous")
        if self._run is None:
            self._link()
        pointers = [a.ctypes.data for a in (*inputs, *outputs)]
        last = None if parallel is None else ctypes.addressof(parallel)
        return self.call([*pointers, *self._memory, last, *self._last])

    def call(self, pointers: Sequence[int | None] | None) -> int:
        """NAME_run on an argument struct of these addresses (None: no struct at all)."""
        if self._run is None:
            self._link()
        assert self._run is not None
        return int(self._run(None if pointers is None else (ctypes.c_void_p * len(pointers))(*pointers)))

    def _link(self) -> None:
        """Resolve libm and memcpy from the process and find NAME_run."""
        import llvmlite.binding as llvm

        if not self._obj:
            raise RuntimeError(f"{self.name}: there is no object for this machine")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._jit = llvm.create_lljit_compiler(use_jit_link=True)
        symbol, once = f"{self.name}_run", f"{self.name}_prepare"
        library = llvm.JITLibraryBuilder().add_object_img(self._obj).add_current_process().export_symbol(symbol)
        if self._prepared_bytes:
            library.export_symbol(once)
        self._library = library.link(self._jit, f"{self.name}.{next(_serial)}")
        self._run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(self._library[symbol])
        if self._prepared_bytes:
            self._prepare(self._library[once])
        self._obj = b""

    def _prepare(self, address: int) -> None:
        """Fill the prepared memory from the weights."""
        prepared = aligned_bytes(self._prepared_bytes)
        prepare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(address)
        code = prepare(None if self._weights is None else self._weights.ctypes.data, prepared.ctypes.data)
        if code:
            raise RuntimeError(f"{self.name}_prepare returned {code}")
        self._prepared, self._last = prepared, (prepared.ctypes.data,)


@dataclass(frozen=True)
class Bound:
    """A program with its arguments; keeps alive what they point to."""

    loaded: Loaded
    arrays: tuple[np.ndarray, ...]
    struct: ctypes.Array[ctypes.c_void_p]

    @property
    def function(self) -> int:
        """Address of NAME_run."""
        assert self.loaded._run is not None
        return ctypes.cast(self.loaded._run, ctypes.c_void_p).value or 0

    @property
    def arguments(self) -> int:
        """Address of its argument."""
        return ctypes.addressof(self.struct)


def _addresses(arena: np.ndarray, weights: np.ndarray | None) -> tuple[int, int | None]:
    return arena.ctypes.data, None if weights is None else weights.ctypes.data


def _aligned(data: bytes | bytearray | memoryview | np.ndarray | None) -> np.ndarray | None:
    """The bytes at a 64-byte boundary, copied only where they do not lie at one."""
    if data is None:
        return None
    array = np.frombuffer(data, np.uint8) if len(data) else np.zeros(0, np.uint8)
    if array.ctypes.data % LINE == 0:
        return array
    copy = aligned_bytes(array.size)
    copy[:] = array
    return copy
