"""Networks published as PyTorch weights only, written as ONNX without PyTorch; and repairs of published files."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STORAGES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


class WeightReader(pickle.Unpickler):
    """Unpickles a state_dict; the pickle may name dictionaries and tensors, nothing else (so it can run no code)."""

    def __init__(self, data: bytes | io.BytesIO, storages: dict[str, tuple[str, int]]) -> None:
        super().__init__(io.BytesIO(data) if isinstance(data, bytes) else data)
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Any] = {
            "OrderedDict": collections.OrderedDict,
            "_rebuild_tensor_v2": lambda key, offset, shape, steps, *_: (key, offset, shape, steps),
            "_rebuild_parameter": lambda tensor, *_: tensor,
            **{name: name for name in STORAGES},
        }
        if name not in known:
            raise pickle.UnpicklingError(f"a weight file must not name {module}.{name}")
        return known[name]

    def persistent_load(self, pid: Any) -> str:
        _, kind, key, _, count = pid[:5]
        self.storages[key] = (STORAGES[kind], count)
        return str(key)


def read_weights(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a saved state_dict, in PyTorch's zip form or its older stream form."""
    storages: dict[str, tuple[str, int]] = {}
    arrays: dict[str, np.ndarray] = {}
    if zipfile.is_zipfile(io.BytesIO(data)):
        archive = zipfile.ZipFile(io.BytesIO(data))
        (index,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
        state = WeightReader(archive.read(index), storages).load()
        for key, (dtype, _) in storages.items():
            arrays[key] = np.frombuffer(archive.read(index.replace("data.pkl", f"data/{key}")), dtype)
    else:
        stream = io.BytesIO(data)
        for _ in range(3):  # magic number, version, facts about the system
            WeightReader(stream, storages).load()
        state = WeightReader(stream, storages).load()
        for key in WeightReader(stream, storages).load():
            dtype, count = storages[key]
            (stored,) = struct.unpack("<q", stream.read(8))
            assert stored == count, f"storage {key} holds {stored} elements, not {count}"
            arrays[key] = np.frombuffer(stream.read(count * np.dtype(dtype).itemsize), dtype)
    tensors = {}
    for name, (key, offset, shape, steps) in state.items():
        part = arrays[key][offset:]
        tensors[name] = np.lib.stride_tricks.as_strided(part, shape, [s * part.itemsize for s in steps]).copy()
    return tensors


class Graph:
    """Nodes and weights of a network; `op` and `weight` return names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def model(self, name: str, shape: list[Any], result: str, classes: int) -> bytes:
        """Input `x` with a free first dimension, one output of `classes` scores."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])
        y = helper.make_tensor_value_info(result, TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, name, [x], [y], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def mnist_cnn(data: bytes) -> bytes:
    """Three stages of 3x3 convolution, ReLU and pooling, then two dense layers."""
    w, g, x = read_weights(data), Graph(), "x"

    def pair(layer: str) -> list[str]:
        return [g.weight(w[f"{layer}.{part}"]) for part in ("weight", "bias")]

    for layer in (0, 3, 6):
        x = g.op("Conv", x, *pair(f"conv_layers.{layer}"), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x = g.op("MaxPool", g.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    x = g.op("Relu", g.op("Gemm", g.op("Flatten", x), *pair("fc_layers.0"), transB=1))
    return g.model("mnist_cnn", [1, 28, 28], g.op("Gemm", x, *pair("fc_layers.2"), transB=1), 10)


def efficientnet_lite0(data: bytes) -> bytes:
    """EfficientNet-Lite0 for 224x224 pictures: ReLU6, no squeeze-and-excite, TensorFlow's SAME padding."""
    w, g = read_weights(data), Graph()

    def layer(x: str, conv: str, norm: str, stride: int = 1, relu: bool = True) -> str:
        kernel = w[f"{conv}.weight"]
        maps, per_group, size = kernel.shape[:3]
        total = max(size - stride, 0)  # SAME on even sizes; the odd element comes after
        x = g.op(
            "Conv", x, g.weight(kernel), kernel_shape=[size, size], strides=[stride, stride],
            pads=[total // 2] * 2 + [total - total // 2] * 2, group=maps if per_group == 1 and size > 1 else 1,
        )  # fmt: skip
        statistics = [g.weight(w[f"{norm}.{part}"]) for part in ("weight", "bias", "running_mean", "running_var")]
        x = g.op("BatchNormalization", x, *statistics, epsilon=1e-3)
        return g.op("Clip", x, g.weight(np.float32(0)), g.weight(np.float32(6))) if relu else x

    x, channels, number = layer("x", "_conv_stem", "_bn0", 2), 32, 0
    # (repeats, stride of the first, expansion, output channels)
    for repeats, stride, expand, maps in (
        (1, 1, 1, 16), (2, 2, 6, 24), (2, 2, 6, 40), (3, 2, 6, 80), (3, 1, 6, 112), (4, 2, 6, 192), (1, 1, 6, 320),
    ):  # fmt: skip
        for first in [True] + [False] * (repeats - 1):
            block, step = f"_blocks.{number}.", stride if first else 1
            y = layer(x, block + "_expand_conv", block + "_bn0") if expand > 1 else x
            y = layer(y, block + "_depthwise_conv", block + "_bn1", step)
            y = layer(y, block + "_project_conv", block + "_bn2", relu=False)
            x = g.op("Add", x, y) if step == 1 and channels == maps else y
            channels, number = maps, number + 1
    x = g.op("Flatten", g.op("GlobalAveragePool", layer(x, "_conv_head", "_bn1")))
    x = g.op("Gemm", x, g.weight(w["_fc.weight"]), g.weight(w["_fc.bias"]), transB=1)
    return g.model("efficientnet_lite0", [3, 224, 224], x, 1000)


def centerface(data: bytes) -> bytes:
    """The file fixes a batch of ten 32x32 pictures; the network itself takes any multiple of 32."""
    model = onnx.load_from_string(data)
    weights = {w.name for w in model.graph.initializer}
    for values, names in ((model.graph.input, "N H W"), (model.graph.output, "N H4 W4")):
        for value in (v for v in values if v.name not in weights):
            dims = value.type.tensor_type.shape.dim
            for position, name in zip((0, 2, 3), names.split(), strict=True):
                dims[position].dim_param = name
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())
