"""c2c: a graph compiler that turns ONNX models into object files.

import c2c
model = c2c.compile("model.onnx", target="native")
outputs = model.run({"input": x})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["C2CError", "CompiledModel", "compile", "compress", "load", "quantize"]

if TYPE_CHECKING:
    from .compiler.api import CompiledModel, compile, load
    from .compression.onnx_compress import compress
    from .ir.errors import C2CError
    from .quantization.onnx_quantize import quantize


def __getattr__(name: str) -> Any:
    """Public names on first use, so that importing a part of the package stays cheap."""
    if name == "C2CError":
        from .ir import errors

        return errors.C2CError
    if name == "compress":
        from .compression.onnx_compress import compress

        return compress
    if name == "quantize":
        from .quantization.onnx_quantize import quantize

        return quantize
    if name in __all__:
        from .compiler import api

        return getattr(api, name)
    raise AttributeError(f"module 'c2c' has no attribute '{name}'")
