"""c2c: a graph compiler that turns ONNX models into object files."""

__version__ = "0.1.0"
