"""The benchmark networks as ONNX files (opset 17): He-normal weights, sane batch-norm statistics, fixed seeds."""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """A graph in the making. Every layer method appends its nodes and returns the name of its result."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: int = TensorProto.FLOAT) -> None:
        self.name, self.rng = name, np.random.default_rng(zlib.crc32(name.encode()))
        self.inputs = [helper.make_tensor_value_info("input", dtype, shape)]
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def normal(self, *shape: int, std: float) -> np.ndarray:
        return (self.rng.standard_normal(shape, dtype=np.float32) * np.float32(std)).astype(np.float32)

    def floats(self, *values: float) -> str:
        return self.weight(np.array(values, np.float32))

    def ints(self, *values: int) -> str:
        return self.weight(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def conv(
        self, x: str, channels: int, maps: int, kernel: int, stride: int = 1, pad: int | None = None, group: int = 1,
        bias: bool = True,
    ) -> str:  # fmt: skip
        fan_in = channels // group * kernel * kernel
        words = [self.weight(self.normal(maps, channels // group, kernel, kernel, std=(2 / fan_in) ** 0.5))]
        if bias:
            words.append(self.weight(self.normal(maps, std=0.05)))
        return self.op(
            "Conv", x, *words, kernel_shape=[kernel] * 2, strides=[stride] * 2, group=group,
            pads=[kernel // 2 if pad is None else pad] * 4,
        )  # fmt: skip

    def batch_norm(self, x: str, c: int, gain: tuple[float, float] = (0.5, 1.0)) -> str:
        scale = self.rng.uniform(*gain, c).astype(np.float32)
        variance = self.rng.uniform(0.8, 1.2, c).astype(np.float32)
        shift, mean = self.normal(c, std=0.1), self.normal(c, std=0.1)
        return self.op("BatchNormalization", x, *map(self.weight, (scale, shift, mean, variance)))

    def conv_bn(self, x: str, channels: int, maps: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        return self.batch_norm(self.conv(x, channels, maps, kernel, stride, group=group, bias=False), maps)

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, self.weight(np.float32(0)), self.weight(np.float32(6)))

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        w, b = self.normal(outputs, inputs, std=(2 / inputs) ** 0.5), self.normal(outputs, std=0.05)
        return self.op("Gemm", x, self.weight(w), self.weight(b), transB=1)

    def linear(self, x: str, inputs: int, outputs: int, std: float | None = None) -> str:
        """A dense layer over the last axis of a sequence."""
        w = self.normal(inputs, outputs, std=std or (1 / inputs) ** 0.5)
        return self.op("Add", self.op("MatMul", x, self.weight(w)), self.weight(self.normal(outputs, std=0.05)))

    def classify(self, x: str, channels: int) -> str:
        return self.dense(self.op("ReduceMean", x, axes=[2, 3], keepdims=0), channels, 1000)

    def model(self, result: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [result], ["output"], name="output"))
        output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, self.name, self.inputs, [output], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def mobilenet_v1(size: int = 224) -> onnx.ModelProto:
    n = Net("mobilenet_v1", (1, 3, size, size))
    x = n.relu6(n.conv_bn("input", 3, 32, 3, 2))
    rows = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    for c, m, stride in [*rows, *[(512, 512, 1)] * 5, (512, 1024, 2), (1024, 1024, 1)]:
        x = n.relu6(n.conv_bn(x, c, c, 3, stride, group=c))
        x = n.relu6(n.conv_bn(x, c, m, 1))
    return n.model(n.classify(x, 1024))


def mobilenet_v2(size: int = 224) -> onnx.ModelProto:
    n = Net("mobilenet_v2", (1, 3, size, size))
    x, c = n.relu6(n.conv_bn("input", 3, 32, 3, 2)), 32
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, maps, repeats, first_stride in rows:
        for k in range(repeats):
            stride, hidden = first_stride if k == 0 else 1, c * expand
            y = n.relu6(n.conv_bn(x, c, hidden, 1)) if expand > 1 else x
            y = n.conv_bn(n.relu6(n.conv_bn(y, hidden, hidden, 3, stride, group=hidden)), hidden, maps, 1)
            x, c = (n.op("Add", x, y) if stride == 1 and c == maps else y), maps
    return n.model(n.classify(n.relu6(n.conv_bn(x, c, 1280, 1)), 1280))


def _resnet(name: str, repeats: tuple[int, ...], bottleneck: bool, size: int) -> onnx.ModelProto:
    n = Net(name, (1, 3, size, size))
    x = n.op("Relu", n.conv_bn("input", 3, 64, 7, 2))
    x, c = n.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), repeats, strict=True)):
        for k in range(count):
            stride, maps = 2 if stage and k == 0 else 1, width * (4 if bottleneck else 1)
            if bottleneck:
                y = n.op("Relu", n.conv_bn(x, c, width, 1))
                y = n.op("Relu", n.conv_bn(y, width, width, 3, stride))
                y = n.conv(y, width, maps, 1, bias=False)
            else:
                y = n.op("Relu", n.conv_bn(x, c, maps, 3, stride))
                y = n.conv(y, maps, maps, 3, bias=False)
            y = n.batch_norm(y, maps, (0.2, 0.2))
            x = x if stride == 1 and c == maps else n.conv_bn(x, c, maps, 1, stride)
            x, c = n.op("Relu", n.op("Add", y, x)), maps
    return n.model(n.classify(x, c))


def resnet18(size: int = 224) -> onnx.ModelProto:
    return _resnet("resnet18", (2, 2, 2, 2), False, size)


def resnet50(size: int = 224) -> onnx.ModelProto:
    return _resnet("resnet50", (3, 4, 6, 3), True, size)


def squeezenet11(size: int = 224) -> onnx.ModelProto:
    n = Net("squeezenet11", (1, 3, size, size))

    def pool(x: str) -> str:
        return n.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)

    x, c = pool(n.op("Relu", n.conv("input", 3, 64, 3, 2, pad=0))), 64
    for squeeze, expand, then_pool in [
        (16, 64, False), (16, 64, True), (32, 128, False), (32, 128, True),
        (48, 192, False), (48, 192, False), (64, 256, False), (64, 256, False),
    ]:  # fmt: skip
        x = n.op("Relu", n.conv(x, c, squeeze, 1))
        halves = [n.op("Relu", n.conv(x, squeeze, expand, kernel)) for kernel in (1, 3)]
        x, c = n.op("Concat", *halves, axis=1), 2 * expand
        x = pool(x) if then_pool else x
    x = n.op("Relu", n.conv(x, c, 1000, 1))
    return n.model(n.op("ReduceMean", x, axes=[2, 3], keepdims=0))


def vgg16(size: int = 224) -> onnx.ModelProto:
    n = Net("vgg16", (1, 3, size, size))
    x, c = "input", 3
    for stage in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for maps in stage:
            x, c = n.op("Relu", n.conv(x, c, maps, 3)), maps
        x = n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = n.op("Flatten", x, axis=1)
    x = n.op("Relu", n.dense(x, 512 * (size // 32) ** 2, 4096))
    return n.model(n.dense(n.op("Relu", n.dense(x, 4096, 4096)), 4096, 1000))


def _style(name: str, height: int, width: int) -> onnx.ModelProto:
    """Fast neural style transfer (Johnson, Alahi, Fei-Fei, ECCV 2016) with instance norms and resize-convolutions."""
    n = Net(name, (1, 3, height, width))

    def padded_conv(x: str, c: int, m: int, kernel: int, stride: int = 1, up: bool = False) -> str:
        if up:
            attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            x = n.op("Resize", x, "", n.floats(1, 1, 2, 2), **attributes)
        edge = kernel // 2
        x = n.op("Pad", x, n.ints(0, 0, edge, edge, 0, 0, edge, edge), mode="reflect")
        return n.conv(x, c, m, kernel, stride, pad=0)

    def norm(x: str, c: int) -> str:
        return n.op("InstanceNormalization", x, n.floats(*[1] * c), n.floats(*[0] * c))

    def layer(x: str, c: int, m: int, kernel: int, stride: int = 1, up: bool = False) -> str:
        return n.op("Relu", norm(padded_conv(x, c, m, kernel, stride, up), m))

    x = layer(layer(layer("input", 3, 32, 9), 32, 64, 3, 2), 64, 128, 3, 2)
    for _ in range(5):
        x = n.op("Add", norm(padded_conv(layer(x, 128, 128, 3), 128, 128, 3), 128), x)
    x = layer(layer(x, 128, 64, 3, up=True), 64, 32, 3, up=True)
    return n.model(padded_conv(x, 32, 3, 9))


def style_256(size: int = 256) -> onnx.ModelProto:
    return _style("style_256", size, size)


def style_480x640() -> onnx.ModelProto:
    return _style("style_480x640", 480, 640)


def depth_192x640() -> onnx.ModelProto:
    """Depth from one image: a strided encoder, a decoder that pads by reflection, enlarges by nearest pixels and reads
    the encoder's images beside (the decoder of Monodepth2, Godard et al., ICCV 2019)."""
    n = Net("depth_192x640", (1, 3, 192, 640))
    widths, skips = (16, 24, 40, 80, 160), list[str]()
    x, c = "input", 3
    for width in widths:
        x = n.op("Relu", n.conv(x, c, width, 3, 2))
        x, c = n.op("Relu", n.conv(x, width, width, 3)), width
        skips.append(x)

    def mirrored(x: str, channels: int, maps: int) -> str:
        padded = n.op("Pad", x, n.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
        return n.conv(padded, channels, maps, 3, pad=0)

    for width, skip in zip((80, 40, 24, 16, 8), (*skips[-2::-1], ""), strict=True):
        x = n.op("Elu", mirrored(x, c, width))
        x = n.op("Resize", x, "", n.floats(1, 1, 2, 2), mode="nearest", nearest_mode="floor",
                 coordinate_transformation_mode="asymmetric")  # fmt: skip
        x, c = (n.op("Concat", x, skip, axis=1), 2 * width) if skip else (x, width)
        x, c = n.op("Elu", mirrored(x, c, width)), width
    return n.model(n.op("Sigmoid", mirrored(x, c, 1)))


def _mlp(name: str, batch: int) -> onnx.ModelProto:
    n = Net(name, (batch, 512))
    x = n.op("Relu", n.dense("input", 512, 1024))
    x = n.op("Relu", n.dense(x, 1024, 1024))
    x = n.op("Relu", n.dense(x, 1024, 256))
    return n.model(n.op("Sigmoid", n.dense(x, 256, 1)))


def mlp_b1() -> onnx.ModelProto:
    return _mlp("mlp_b1", 1)


def mlp_b64() -> onnx.ModelProto:
    return _mlp("mlp_b64", 64)


def minilm_128(tokens: int = 128) -> onnx.ModelProto:
    """Six post-norm transformer layers of width 384 with 12 heads (the shape of MiniLM-L6)."""
    n, width, heads = Net("minilm_128", (1, tokens), TensorProto.INT64), 384, 12
    each = width // heads

    def split(x: str) -> str:
        return n.op("Transpose", n.op("Reshape", x, n.ints(1, tokens, heads, each)), perm=[0, 2, 1, 3])

    def norm(x: str) -> str:
        return n.op("LayerNormalization", x, n.floats(*[1] * width), n.floats(*[0] * width), axis=-1)

    def gelu(x: str) -> str:
        erf = n.op("Erf", n.op("Div", x, n.weight(np.float32(2**0.5))))
        return n.op("Mul", n.op("Mul", x, n.op("Add", erf, n.weight(np.float32(1)))), n.weight(np.float32(0.5)))

    x = n.op("Gather", n.weight(n.normal(30522, width, std=1)), "input")
    x = n.op("Add", x, n.weight(n.normal(1, tokens, width, std=0.02)))
    for _ in range(6):
        q, k, v = (n.linear(x, width, width) for _ in range(3))
        k = n.op("Transpose", split(k), perm=[0, 1, 3, 2])
        scores = n.op("Mul", n.op("MatMul", split(q), k), n.weight(np.float32(each**-0.5)))
        mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), split(v))
        mixed = n.op("Reshape", n.op("Transpose", mixed, perm=[0, 2, 1, 3]), n.ints(1, tokens, width))
        x = norm(n.op("Add", x, n.linear(mixed, width, width)))
        x = norm(n.op("Add", x, n.linear(gelu(n.linear(x, width, 4 * width)), 4 * width, width)))
    return n.model(x)


def lstm_100(steps: int = 100) -> onnx.ModelProto:
    n, hidden = Net("lstm_100", (1, steps, 64)), 128
    x, inputs = n.op("Transpose", "input", perm=[1, 0, 2]), 64
    for _ in range(2):
        std = hidden**-0.5 / 3**0.5
        w, r, b = (
            n.normal(1, 4 * hidden, inputs, std=std),
            n.normal(1, 4 * hidden, hidden, std=std),
            n.normal(1, 8 * hidden, std=std),
        )
        x = n.op("LSTM", x, *map(n.weight, (w, r, b)), hidden_size=hidden)
        x, inputs = n.op("Squeeze", x, n.ints(1)), hidden
    last = n.op("Gather", x, n.weight(np.array(-1, np.int64)), axis=0)
    return n.model(n.dense(last, hidden, 10))


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        mobilenet_v1, mobilenet_v2, resnet18, resnet50, squeezenet11, vgg16, style_256, style_480x640, mlp_b1, mlp_b64,
        minilm_128, lstm_100,
    )
}  # fmt: skip

OTHERS: dict[str, Callable[[], onnx.ModelProto]] = {"depth_192x640": depth_192x640}
"""Networks that only are made where they are asked for."""


def main(folder: Path, names: list[str]) -> int:
    known = NETS | OTHERS
    if unknown := [n for n in names if n not in known]:
        print(f"no such network: {' '.join(unknown)}; there are: {' '.join(known)}", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or NETS:
        path = folder / f"{name}.onnx"
        onnx.save(known[name](), path)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where they are written")
    parser.add_argument("name", nargs="*", help=f"which, of {', '.join(NETS | OTHERS)} (default: {', '.join(NETS)})")
    options = parser.parse_args()
    sys.exit(main(options.folder, options.name))
