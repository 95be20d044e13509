"""Loads a model for a graphics processor, built into a shared library with its driver, and runs it on numpy arrays."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class _Options(ctypes.Structure):
    _fields_ = (("device", ctypes.c_char_p), ("cache", ctypes.c_char_p), ("profile", ctypes.c_int))


class _OpenClOptions(ctypes.Structure):
    _fields_ = (("platform", ctypes.c_char_p), *_Options._fields_)


class LoadedGpu:
    """NAME_open and NAME_run of a library, on the first GPU or, without one, the first device; the environment's
    DRIVER_DEVICE (C2C_OPENCL_DEVICE) is a part of the wanted device's name. Not for two threads at once.

    driver: what its functions' names begin with. steps: of the plan. profile: steps are timed. Raises RuntimeError with
    the driver's message.
    """

    def __init__(
        self, library: Path, name: str, driver: str, *, weights: bytes | bytearray | memoryview, steps: int,
        profile: bool = True,
    ) -> None:  # fmt: skip
        self.name, self.driver, self.steps = name, driver, steps
        self._library = ctypes.CDLL(str(library))
        for function in ("message", "name"):
            self._driver(function).restype = ctypes.c_char_p
        wanted = os.environ.get(f"{driver.upper()}_DEVICE")
        options = (_OpenClOptions if driver == "c2c_opencl" else _Options)(profile=int(profile))
        options.device = None if wanted is None else wanted.encode()
        self._device, self._model = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(self._driver("open")(ctypes.byref(options), ctypes.byref(self._device)))
        data = np.frombuffer(weights, np.uint8) if len(weights) else np.zeros(1, np.uint8)
        self._check(self._function("open")(self._device, ctypes.c_void_p(data.ctypes.data), ctypes.byref(self._model)))

    @property
    def device_name(self) -> str:
        """What the device calls itself."""
        return str(self._driver("name")(self._device).decode())

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> int:
        """Run on C-contiguous arrays in the model's order."""
        struct = self._arguments((*inputs, *outputs))
        self._check(self._function("run")(struct))
        return 0

    def trace(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run; the device's nanoseconds [steps] of each step."""
        struct = self._arguments((*inputs, *outputs))
        self._check(self._function("run")(struct))
        times = (ctypes.c_uint64 * max(1, self.steps))()
        self._check(self._function("times")(struct, times))
        return np.array(times[: self.steps], np.int64)

    def close(self) -> None:
        """Give the device's memory back; the model cannot run any more."""
        self._driver("unload")(self._model)
        self._driver("close")(self._device)
        self._device, self._model = ctypes.c_void_p(), ctypes.c_void_p()

    def _arguments(self, arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
        for a in arrays:
            if not a.flags.c_contiguous:
                raise ValueError(f"{self.name}: arrays must be C-contiguous")
        pointers: list[int | None] = [*(a.ctypes.data for a in arrays), self._model.value]
        return (ctypes.c_void_p * len(pointers))(*pointers)

    def _driver(self, entry: str) -> ctypes._NamedFuncPointer:
        return getattr(self._library, f"{self.driver}_{entry}")  # type: ignore[no-any-return]  # the same one each time

    def _function(self, entry: str) -> ctypes._NamedFuncPointer:
        return self._library[f"{self.name}_{entry}"]

    def _check(self, error: int) -> None:
        if error:
            message = self._driver("message")(self._device).decode(errors="replace")
            raise RuntimeError(message or f"{self.name}: driver error {error}")
