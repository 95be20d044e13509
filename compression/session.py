"""One model under compression: what is known of its layers, and a pass that compresses all of them at one price."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto

from ..codegen.target import Target
from ..compiler.driver import load_graph
from ..compiler.options import CompileOptions
from ..ir.errors import C2CError, OptionsError
from ..ir.graph import Graph
from . import onnx_model, sensitivity
from .acceptance import Agreement, agreement, pick_measure
from .allocate import Survey
from .coded import Coded
from .layers import Layer, find_layers
from .reconstruct import MOST_ERROR, Form, compress_layer, compress_plain, damped, fit_layer, step_for
from .runner import Runner, Weights
from .samples import Samples
from .size import Size, packed_bytes, packed_size
from .speed import TIME_WORTH, LayerSpeeds
from .state import State, fingerprint
from .statistics import Moments, moments

Progress = Callable[[str], None]
DEPTHWISE_SCALE = 0.5
CHANNEL_SCALE = 0.0
"""How far a channel's errors count relative to its own power (1) rather than alike in all (0)."""
_SAMPLE = 20000


@dataclass(frozen=True, slots=True)
class Pass:
    """A compressed network: price, layers, size and how it agrees on the held-out samples."""

    price: float
    coded: dict[Layer, Coded]
    size: Size
    agreement: Agreement


@dataclass(eq=False, slots=True)
class Session:
    model: ModelProto
    graph: Graph
    layers: list[Layer]
    runner: Runner
    samples: Samples
    form: Form
    measure: str
    output: int
    seed: int
    progress: Progress
    state: State = field(default_factory=lambda: State(None))
    speeds: LayerSpeeds | None = None
    surveys: dict[str, Survey] = field(default_factory=dict)
    rest: int = -1

    @property
    def original_bytes(self) -> int:
        """Of the constants as they came, in fp32."""
        return sum(a.nbytes for a in onnx_model.constants_of(self.model).values())

    def survey(self) -> list[Survey]:
        """Run the dense network once over the calibration samples; what each layer's results and inputs are like."""
        kept = self.state.load("survey")
        if kept is None:
            kept = self._survey()
            self.state.save("survey", kept)
        rng = np.random.default_rng(self.seed)
        for i, layer in enumerate(self.layers):
            power, slope, sensed = kept[f"layer{i}"]
            flat = layer.dense.ravel()
            some = flat if flat.size <= _SAMPLE else flat[rng.integers(0, flat.size, _SAMPLE)]
            self.surveys[layer.name] = Survey(layer.name, flat.size, power, slope, sensed, some)
        return list(self.surveys.values())

    def _survey(self) -> dict[str, np.ndarray]:
        feeds = self._feeds(slice(0, self.samples.calibration))
        known: dict[str, tuple[float, float]] = {}

        def visit(layer: Layer, dense: np.ndarray, small: np.ndarray) -> Weights | None:
            self.progress(f"survey of {layer.name}")
            if layer.kind == "embedding":
                known[layer.name] = (float(np.square(layer.dense, dtype=np.float64).sum()), 1.0)
            else:
                m = moments(layer, dense, dense, self._seed_of(layer))
                known[layer.name] = (float(m.power.sum()), step_for(damped(m.gram), 1.0) ** -2)
            return None

        self.runner.run(feeds, visit, both=False)
        sensed = sensitivity.sensitivities(self.runner, self.samples, self.output, self.seed, self.progress)
        from .codebook import PRICE

        return {
            f"layer{i}": np.array([known[v.name][0], _slope(v, known[v.name][1], PRICE), sensed[v.name]])
            for i, v in enumerate(self.layers)
        }

    def run(self, price: float) -> Pass:
        """Compress every layer in order of computation, each fitted to the inputs that the compressed ones before it
        give, and judge the result on the samples held out."""
        coded: dict[Layer, Coded] = {}
        fitted = self.samples.calibration

        def visit(layer: Layer, dense: np.ndarray, small: np.ndarray) -> Weights:
            key = f"{price:.9e}-{len(coded)}"
            self.progress(f"{len(coded) + 1}/{len(self.layers)} {layer.name}")
            found = self.state.load_coded(key)
            if found is None:
                found = self._compress(
                    layer, dense[:fitted], dense[:fitted] if small is dense else small[:fitted], price
                )
                self.state.save_coded(key, found)
            coded[layer] = found
            return _weights(layer, found)

        outputs = self.runner.run(self.samples.arrays, visit)
        held = self.samples.held_out
        dense, small = (o[self.output][held] for o in outputs)
        return Pass(price, coded, self.size_of(coded), self.judge(dense, small, self.samples.judge_labels))

    def judge(self, dense: np.ndarray, small: np.ndarray, labels: np.ndarray | None) -> Agreement:
        """Of two outputs [samples, …]; where there are labels, of the right answers."""
        measure = pick_measure(self.measure, dense)
        if labels is not None and labels.size != dense[..., 0].size:
            raise OptionsError(
                f"labels of shape {list(labels.shape)} do not fit the output, {list(dense.shape)} with the samples"
            )
        return agreement(dense, small, measure, labels)

    def size_of(self, coded: dict[Layer, Coded]) -> Size:
        if self.rest < 0:
            gone = {layer.name for layer in coded} | {v.bias.name for v in coded if v.bias is not None}
            constants = onnx_model.constants_of(self.model)
            self.rest = packed_bytes({name: a for name, a in constants.items() if name not in gone})
        return packed_size({layer.name: c for layer, c in coded.items()}, self.rest)

    def _compress(self, layer: Layer, dense: np.ndarray, small: np.ndarray, price: float) -> Coded:
        known = self.surveys[layer.name]
        if layer.kind == "embedding":
            return compress_plain(layer, known.step(price), self.form)
        m: Moments = moments(layer, dense, small, self._seed_of(layer))
        depthwise = layer.groups > 1 and layer.groups == layer.channels
        scale = DEPTHWISE_SCALE if depthwise else CHANNEL_SCALE
        found = compress_layer(layer, m, known.price(price), self.form, scale)
        return found if self.speeds is None else self._faster(layer, m, price, found, scale)

    def _faster(self, layer: Layer, m: Moments, price: float, plain: Coded, scale: float) -> Coded:
        """The same or, with a mask, what is faster for less than it costs: a percent of the layers' time is worth
        `TIME_WORTH` percent of the bits that they are expected to take."""
        assert self.speeds is not None
        known = self.surveys[layer.name]
        own, power = known.price(price), known.power
        bits = sum(s.bits(price) for s in self.surveys.values())
        rate = TIME_WORTH * bits / max(sum(self.speeds.of(v) for v in self.layers), 1.0)
        best, least = plain, plain.error * power + own * (plain.bits + rate * self.speeds.at(layer, plain.zeros))
        for mask in self.speeds.masks(layer):
            if own * rate * mask.cycles < least:
                found = fit_layer(layer, m, own, mask.form, scale)
                cost = found.error * power + own * (found.bits + rate * mask.cycles)
                best, least = (found, cost) if cost < least and found.error <= MOST_ERROR else (best, least)
        return best

    def key(self) -> str:
        """What a run must have in common with the one that it resumes: everything that decides a layer's weights, this
        version's code too. A budget is none of it: runs for different ones share the passes that both make."""
        options = (self.samples.calibration, self.form, self.seed, self.output, self._aim)
        model = self.model.SerializeToString(deterministic=True)
        return fingerprint(model, self.samples.arrays, options, [Path(__file__).parent])

    @property
    def _aim(self) -> str:
        return "size" if self.speeds is None else f"speed on {self.speeds.target}"

    def _feeds(self, part: slice) -> dict[str, np.ndarray]:
        return {name: a[part] for name, a in self.samples.arrays.items()}

    def _seed_of(self, layer: Layer) -> int:
        return self.seed + 1000003 * self.layers.index(layer)


def _slope(layer: Layer, slope: float, price: float) -> float:
    """The geometric mean of conditional powers out of `step_for` at a price of 1."""
    return 1.0 if layer.kind == "embedding" else slope / price


def _weights(layer: Layer, c: Coded) -> Weights:
    tensor = c.tensor
    if c.scale is not None:
        shape = (-1, *[1] * (tensor.ndim - 1)) if layer.kind == "conv" or layer.transposed else (1, -1)
        tensor = tensor * c.scale.reshape(shape)
    return Weights(np.ascontiguousarray(tensor, np.float32), c.bias)


def start(
    model: ModelProto, samples: Samples, form: Form, *, measure: str, output: str | None, seed: int,
    progress: Progress,
) -> Session:  # fmt: skip
    """Import with the samples' shapes and find the layers."""
    options = CompileOptions(Target.parse("native"), shapes=samples.shapes())
    progress("import")
    graph = load_graph(model.SerializeToString(), options)
    layers = onnx_model.writable(model, find_layers(graph))
    if not layers:
        raise C2CError("the model has no constant matrix that could be compressed")
    index = output_index(graph, output)
    return Session(model, graph, layers, Runner(graph, layers), samples, form, measure, index, seed, progress)


def output_index(graph: Graph, name: str | None) -> int:
    """Of the output that is judged: the one named, or the first of floats; raises C2CError."""
    floats = [i for i, v in enumerate(graph.outputs) if v.type.dtype.is_float]
    if name is None and floats:
        return floats[0]
    if name in graph.output_names and graph.output_names.index(name) in floats:
        return graph.output_names.index(name)
    raise C2CError(
        f"the model has no output '{name}' of floats" if name else "the model has no output of floats",
        remedy=f"one of {', '.join(graph.output_names)}",
    )
