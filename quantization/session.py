"""One model under quantisation: what its tensors hold, and passes that fit its layers in order of computation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto

from ..codegen.target import Target
from ..compiler.driver import load_graph
from ..compiler.options import CompileOptions
from ..compression import onnx_model
from ..compression.layers import Layer, find_layers
from ..compression.runner import Runner, Weights
from ..compression.samples import Samples
from ..compression.state import State, fingerprint
from ..compression.statistics import moments
from ..ir.errors import C2CError
from ..ir.graph import Graph, Value
from .equalize import Channels, channels_of, factors, find_joints, scaled_columns, scaled_rows
from .grid import Grid
from .observers import Observation, choose_grid, merged, observe
from .onnx_qdq import owned, set_constants
from .places import Place, find_places
from .precision import Precision
from .rounding import QuantizedWeights, WeightForm, fit, fits_moments, round_nearest

Progress = Callable[[str], None]

EQUALISED = 64
"""Samples that the ranges of channels are taken from."""

ALL_BYTES = Precision()


@dataclass(frozen=True, slots=True)
class Options:
    """method: of observers.METHODS; rounding: of rounding.ROUNDINGS; form: of the weights of products by a matrix,
    those of convolutions have 8 bits; equalize: whether channels are brought to like ranges."""

    method: str
    rounding: str
    form: WeightForm
    equalize: bool
    seed: int

    def form_of(self, layer: Layer) -> WeightForm:
        return self.form if layer.kind == "matmul" else WeightForm()


@dataclass(frozen=True, slots=True)
class Fit:
    """A quantised network. weights: the layers with levels for weights; inputs: what those of them read that read
    levels; grids: of every tensor that holds levels; sqnr: of each such tensor, in dB."""

    weights: dict[Layer, QuantizedWeights]
    inputs: dict[Layer, Grid]
    grids: dict[Value, Grid]
    sqnr: dict[Value, float]


@dataclass(eq=False, slots=True)
class Session:
    model: ModelProto
    graph: Graph
    layers: list[Layer]
    samples: Samples
    options: Options
    progress: Progress
    integer: frozenset[Layer]
    """Layers that may read levels; the others keep reading floats, with levels for weights only."""
    state: State = field(default_factory=lambda: State(None))
    seen: dict[Value, Observation] = field(default_factory=dict)
    runner: Runner = field(init=False)

    def read_levels(self, integer: frozenset[Layer]) -> None:
        """Settle which layers may read levels; before anything is run."""
        self.integer = integer
        self.runner = Runner(self.graph, self.layers, [v for p in self.places(integer) for v in p.values])

    def key(self, form: str) -> str:
        """What a run must have in common with the one that it resumes; a budget is none of it."""
        here = Path(__file__).parent
        model = self.model.SerializeToString(deterministic=True)
        options = (self.samples.calibration, self.options, form)
        return fingerprint(model, self.samples.arrays, options, [here, here.parent / "compression"])

    def places(self, layers: Collection[Layer]) -> list[Place]:
        """Of what `layers` read, in an order that does not depend on theirs."""
        return find_places(self.graph, [layer for layer in self.layers if layer in layers])

    def observe(self) -> None:
        """Run the dense network over the calibration samples and remember what the tensors hold."""
        kept = self.state.load("observed")
        cuts = sorted(self.runner.cuts, key=lambda v: v.name)
        if kept is not None:
            for i, v in enumerate(cuts):
                low, high = kept[f"ends{i}"]
                self.seen[v] = Observation(float(low), float(high), kept[f"values{i}"])
            return

        def between(v: Value, dense: np.ndarray, small: np.ndarray) -> None:
            self.progress(f"observe {v.name}")
            self.seen[v] = observe(dense, self.options.seed)

        self.runner.run(self._feeds(), between=between, both=False)
        arrays: dict[str, np.ndarray] = {}
        for i, v in enumerate(cuts):
            arrays |= {f"ends{i}": np.array([self.seen[v].low, self.seen[v].high]), f"values{i}": self.seen[v].values}
        self.state.save("observed", arrays)

    def equalize(self) -> int:
        """Bring channels to like ranges in the weights of the graph and of the model; the number of tensors changed."""
        seen: dict[Value, Channels] = {}

        def between(v: Value, dense: np.ndarray, small: np.ndarray) -> None:
            self.progress(f"channels of {v.name}")
            if v.type.rank >= 2:
                seen[v] = channels_of(dense)

        self.runner.run(self._feeds(EQUALISED), between=between, both=False)
        own, changed, count = owned(self.model), set(), 0
        for joint in find_joints(self.graph, self.layers):
            if any(v.bias is not None and v.bias.name not in own for v in joint.makers):
                continue
            factor = factors(joint, seen)
            if factor is None:
                continue
            count += 1
            for layer in joint.makers:
                bias = scaled_rows(layer, factor)
                changed |= {layer.weight, *([] if layer.bias is None else [layer.bias])}
                layer.weight.data = bias[0]
                if layer.bias is not None and layer.bias.data is not None:
                    layer.bias.data = bias[1].reshape(layer.bias.data.shape)
            for layer in joint.readers:
                layer.weight.data = scaled_columns(layer, factor)
                changed.add(layer.weight)
        set_constants(self.model, {v.name: v.data for v in changed if v.data is not None})
        self.runner.forget()
        return count

    def grids(self, precision: Precision = ALL_BYTES) -> dict[Value, Grid]:
        """Of the tensors that hold levels."""
        found: dict[Value, Grid] = {}
        for place in self.places(self.reading(precision)):
            wide = not precision.values.isdisjoint(place.values)
            grid = choose_grid(self.options.method, merged([self.seen[v] for v in place.values]), wide=wide)
            found |= dict.fromkeys(place.values, grid)
        return found

    def reading(self, precision: Precision) -> list[Layer]:
        """The layers that read levels."""
        return [layer for layer in self.layers if layer in self.integer and layer not in precision.floats]

    def fit(self, precision: Precision = ALL_BYTES) -> Fit:
        """Fit every layer, each to what it reads in the quantised network and to the dense results."""
        levels, grids = self.reading(precision), self.grids(precision)
        inputs = {layer: grids[read_by(layer)] for layer in levels}
        weights: dict[Layer, QuantizedWeights] = {}
        noise: dict[Value, float] = {}
        key = self._key_of(precision)

        def between(v: Value, dense: np.ndarray, small: np.ndarray) -> np.ndarray | None:
            if v not in grids:
                return None
            rounded = grids[v].rounded(small)
            noise[v] = _decibels(dense, rounded)
            return rounded

        def visit(layer: Layer, dense: np.ndarray, small: np.ndarray) -> Weights | None:
            if layer in precision.floats:
                return None
            self.progress(f"{len(weights) + 1}/{len(self.layers)} {layer.name}")
            name, form = f"fit-{key}-{self.layers.index(layer)}", self.form_of(layer, precision)
            found = _loaded(self.state, name, form)
            if found is None:
                found = self._fitted(layer, form, inputs.get(layer), dense, small)
                _saved(self.state, name, found)
            weights[layer] = found
            return computed(layer, found)

        self.runner.run(self._feeds(), visit, between=between)
        return Fit(weights, inputs, grids, noise)

    def form_of(self, layer: Layer, precision: Precision) -> WeightForm:
        return WeightForm(16) if layer in precision.weights else self.options.form_of(layer)

    def _key_of(self, precision: Precision) -> str:
        names = [sorted(v.name for v in part) for part in (precision.floats, precision.values, precision.weights)]
        return fingerprint(b"", {}, (names,), [])[:16]

    def _fitted(
        self, layer: Layer, form: WeightForm, x: Grid | None, dense: np.ndarray, small: np.ndarray
    ) -> QuantizedWeights:
        if not fits_moments(layer):
            return round_nearest(layer, self.options.form_of(layer), x)
        m = moments(layer, dense, small, self.options.seed + 1000003 * self.layers.index(layer))
        return fit(layer, m, form, self.options.rounding, x)

    def _feeds(self, most: int | None = None) -> dict[str, np.ndarray]:
        count = min(self.samples.calibration, most or self.samples.calibration)
        return {name: a[:count] for name, a in self.samples.arrays.items()}


def start(model: ModelProto, samples: Samples, options: Options, progress: Progress) -> Session:
    """Import with the samples' shapes and find the layers; any whose input has a name in the file may read levels."""
    progress("import")
    graph = load(model, samples.shapes())
    layers = find_quantizable(model, graph)
    if not layers:
        raise C2CError("the model has no convolution or product by constant weights that could be quantised")
    named = {i.name for i in model.graph.input} | {o for n in model.graph.node for o in n.output}
    integer = frozenset(v for v in layers if read_by(v).name in named)
    return Session(model, graph, layers, samples, options, progress, integer)


def load(model: ModelProto, shapes: Mapping[str, tuple[int, ...]] | None) -> Graph:
    """The model as a graph, with these shapes of its inputs."""
    return load_graph(model.SerializeToString(), CompileOptions(Target.parse("native"), shapes=dict(shapes or {})))


def find_quantizable(model: ModelProto, graph: Graph) -> list[Layer]:
    """Convolutions and products by constant weights that stand in the file as they stand in the graph."""
    return [v for v in onnx_model.writable(model, find_layers(graph, 1)) if v.kind in ("conv", "matmul")]


def read_by(layer: Layer) -> Value:
    """What a layer multiplies with its weights."""
    value = layer.node.inputs[0]
    assert value is not None
    return value


def computed(layer: Layer, w: QuantizedWeights) -> Weights:
    """What a quantised layer multiplies and adds."""
    return Weights(w.tensor(layer), w.bias if w.bias is not None else _own_bias(layer))


def _own_bias(layer: Layer) -> np.ndarray | None:
    return layer.bias_vector() if layer.takes_bias else None


def _decibels(dense: np.ndarray, small: np.ndarray) -> float:
    """Signal to noise of a tensor in the quantised network."""
    noise = float(np.square(small - dense, dtype=np.float32).mean(dtype=np.float64))
    power = float(np.square(dense, dtype=np.float32).mean(dtype=np.float64))
    return float(10 * np.log10(max(power, 1e-30) / max(noise, 1e-30)))


def _loaded(state: State, name: str, form: WeightForm) -> QuantizedWeights | None:
    kept: Mapping[str, np.ndarray] | None = state.load(name)
    if kept is None:
        return None
    return QuantizedWeights(form, kept["levels"], kept["scale"], kept.get("bias"), float(kept["error"]))


def _saved(state: State, name: str, w: QuantizedWeights) -> None:
    arrays = {"levels": w.levels, "scale": w.scale, "error": np.array(w.error)}
    state.save(name, arrays | ({} if w.bias is None else {"bias": w.bias}))
