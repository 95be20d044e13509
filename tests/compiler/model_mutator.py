"""Valid small models, and seeded ways to damage them."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper, numpy_helper

from c2c.tests.forests import forest, ml_node

OPSETS = (9, 13, 17, 22)


def _floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _init(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(array, name)


def _model(nodes: list[NodeProto], ins: list[list[int | str]], inits: list[TensorProto], opset: int) -> ModelProto:
    inputs = [helper.make_tensor_value_info(f"x{k}", TensorProto.FLOAT, s) for k, s in enumerate(ins)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "small", inputs, [output], inits)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def conv_net(rng: np.random.Generator, opset: int) -> ModelProto:
    """Convolutions, batch norm, pooling, flatten by a chain of shape arithmetic, Gemm, Softmax."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x0", "w", "b"], ["c"], name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["c", "b", "b", "b", "v"], ["n"], epsilon=1e-3),
        node("Relu", ["n"], ["r"], name="relu"),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["p"], ["s"]),
        node("Gather", ["s", "zero"], ["s0"], axis=0),
        node("Concat", ["s0", "minus"], ["t"], axis=0),
        node("Reshape", ["p", "t"], ["f"]),
        node("Gemm", ["f", "g"], ["h"], transB=1) if opset >= 11 else node("MatMul", ["f", "gt"], ["h"]),
        node("Softmax", ["h"], ["y"], axis=1),
    ]
    g = _floats(rng, 10, 64)
    inits = [
        _init("w", _floats(rng, 4, 3, 3, 3)), _init("b", _floats(rng, 4)), _init("v", np.ones(4, np.float32)),
        _init("zero", np.array([0])), _init("minus", np.array([-1])), _init("g", g), _init("gt", g.T.copy()),
    ]  # fmt: skip
    return _model(nodes, [[1, 3, 16, 16]], inits, opset)


def attention(rng: np.random.Generator, opset: int) -> ModelProto:
    """MatMul, Transpose, Softmax, elementwise with broadcasting, Constant nodes, Slice, Split, Cast, Where."""
    node = helper.make_node
    half = node("Split", ["a"], ["l", "r"], axis=2)
    if opset >= 18:
        half.attribute.append(helper.make_attribute("num_outputs", 2))
    slice_ = (
        node("Slice", ["l"], ["k"], starts=[0], ends=[4], axes=[1])
        if opset < 10
        else node("Slice", ["l", "i0", "i4", "i1"], ["k"])
    )
    nodes = [
        node("Constant", [], ["scale"], value=_init("", np.asarray(0.125, np.float32))),
        node("MatMul", ["x0", "w"], ["a"], name="project"),
        half,
        slice_,
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["r", "kt"], ["q"]),
        node("Mul", ["q", "scale"], ["z"]),
        node("Softmax", ["z"], ["m"], axis=2),
        node("Greater", ["x0", "scale"], ["big"]),
        node("Cast", ["big"], ["bigf"], to=TensorProto.FLOAT),
        node("ReduceMean", ["bigf"], ["mean"], axes=[2], keepdims=1) if opset < 18 else node("Abs", ["bigf"], ["mean"]),
        node("Tanh", ["m"], ["u"]),
        node("MatMul", ["u", "l"], ["o"]),
        node("Concat", ["o", "mean"], ["y"], axis=2),
    ]
    index = [_init(f"i{k}", np.array([k])) for k in (0, 1, 4)]
    return _model(nodes, [[1, 4, 8]], [_init("w", _floats(rng, 8, 16)), *index], opset)


def recurrent(rng: np.random.Generator, opset: int) -> ModelProto:
    """LSTM with omitted inputs, Squeeze, Pad, Resize or Upsample, ConstantOfShape, Expand."""
    node = helper.make_node
    axes = opset >= 13
    nodes = [
        node("LSTM", ["x0", "w", "r", "", "", "h"], ["o", "hn"], hidden_size=4),
        node("Squeeze", ["o", "one"], ["s"]) if axes else node("Squeeze", ["o"], ["s"], axes=[1]),
        node("Clip", ["s", "low"], ["c"]) if opset >= 11 else node("Clip", ["s"], ["c"], min=-0.5),
        node("Shape", ["c"], ["n"]),
        node("ConstantOfShape", ["n"], ["f"], value=_init("", np.ones(1, np.float32))),
        node("Add", ["c", "f"], ["y"]),
    ]
    inits = [
        _init("w", _floats(rng, 1, 16, 3)), _init("r", _floats(rng, 1, 16, 4)), _init("one", np.array([1])),
        _init("h", np.zeros((1, 1, 4), np.float32)), _init("low", np.asarray(-0.5, np.float32)),
    ]  # fmt: skip
    return _model(nodes, [[5, 1, 3]], inits, opset)


def functions(rng: np.random.Generator, opset: int) -> ModelProto:
    """A model function, an If on a constant, a Loop of three turns."""
    node = helper.make_node
    info = helper.make_tensor_value_info
    branch = [
        helper.make_graph([node(op, ["d"], ["e"])], op, [], [info("e", TensorProto.FLOAT, None)])
        for op in ("Relu", "Neg")
    ]
    body = helper.make_graph(
        [node("Identity", ["c"], ["co"]), node("Mul", ["v", "d"], ["vo"])], "turn",
        [info("i", TensorProto.INT64, []), info("c", TensorProto.BOOL, []), info("v", TensorProto.FLOAT, None)],
        [info("co", TensorProto.BOOL, []), info("vo", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        node("Double", ["x0"], ["d"], domain="own", name="double"),
        node("If", ["yes"], ["f"], then_branch=branch[0], else_branch=branch[1]),
        node("Loop", ["three", "yes", "f"], ["y"], body=body),
    ]
    model = _model(nodes, [[2, 3]], [_init("yes", np.array(True)), _init("three", np.array(3))], opset)
    opsets = [helper.make_opsetid("", opset)]
    model.functions.append(
        helper.make_function("own", "Double", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], opsets)
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def tabular(rng: np.random.Generator, opset: int) -> ModelProto:
    """Features prepared, trees of both forms, linear models and support vectors, labels."""
    trees = forest(int(rng.integers(1000)), 3, 4, 4, of="class", targets=3)
    splits, modes = _init("splits", np.asarray([0.5, 1.0], np.float32)), _init("modes", np.asarray([0, 6], np.uint8))
    members = _init("members", np.asarray([1.0, np.nan], np.float32))
    weights = _init("weights", np.asarray([1.0, 2.0, 3.0], np.float32))
    nodes = [
        ml_node("Imputer", ["x0"], ["a"], imputed_value_floats=[1.0, 2.0, 3.0, 4.0], replaced_value_float=float("nan")),
        ml_node("Scaler", ["a"], ["b"], offset=[0.5], scale=[2.0, 1.0, 1.0, 3.0]),
        ml_node("Normalizer", ["b"], ["c"], norm="L2"),
        ml_node("FeatureVectorizer", ["b", "c"], ["d"], inputdimensions=[4, 4]),
        ml_node("TreeEnsembleClassifier", ["d"], ["label", "scores"], **trees, classlabels_strings=["p", "q", "r"]),
        ml_node("ZipMap", ["scores"], ["y"], classlabels_strings=["p", "q", "r"]),
        ml_node("LabelEncoder", ["label"], ["code"], keys_strings=["q", "p"], values_floats=[1.0, 2.0]),
        ml_node("LinearClassifier", ["b"], ["k", "s"], coefficients=[1.0] * 8, intercepts=[0.5, 0.5],
                classlabels_ints=[3, 4]),
        ml_node("SVMRegressor", ["b"], ["v"], kernel_type="RBF", kernel_params=[0.5, 0.0, 0.0], n_supports=1,
                support_vectors=[1.0] * 4, coefficients=[1.0], rho=[0.0]),
        ml_node("TreeEnsemble", ["b"], ["z"], n_targets=2, tree_roots=[0, 1], nodes_featureids=[0, 1],
                nodes_truenodeids=[1, 0], nodes_trueleafs=[0, 1], nodes_falsenodeids=[1, 2], nodes_falseleafs=[1, 1],
                leaf_targetids=[0, 1, 1], nodes_splits=splits, nodes_modes=modes, leaf_weights=weights,
                membership_values=members),
        ml_node("OneHotEncoder", ["k"], ["w"], cats_int64s=[3, 4]),
    ]  # fmt: skip
    model = _model(nodes, [[5, 4]], [], opset)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 5))
    model.graph.output.extend(ValueInfoProto(name=n) for n in ("label", "code", "s", "v", "z", "w"))
    return model


MODELS: tuple[Callable[[np.random.Generator, int], ModelProto], ...] = (
    conv_net, attention, recurrent, functions, tabular
)  # fmt: skip


def mutated(seed: int) -> bytes:
    """A damaged model, the same for the same seed."""
    rng = random.Random(seed)
    model = rng.choice(MODELS)(np.random.default_rng(seed), rng.choice(OPSETS))
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        rng.choice(PROTO_MUTATIONS)(model, rng)
    data = bytearray(model.SerializeToString())
    for _ in range(rng.choice((0, 0, 0, 0, 1, 2))):
        rng.choice(BYTE_MUTATIONS)(data, rng)
    return bytes(data)


# ---- damage to bytes ----


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 3, 20))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 4, 64))]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))


BYTE_MUTATIONS = (_truncate, _flip, _cut, _insert)


# ---- damage to structure ----


def _node(model: ModelProto, rng: random.Random) -> NodeProto:
    return rng.choice(model.graph.node) if model.graph.node else NodeProto()


def _huge(rng: random.Random) -> int:
    return rng.choice((0, -1, -7, 1 << 31, 1 << 40, (1 << 62) + 5, -(1 << 63)))


def _drop_node(model: ModelProto, rng: random.Random) -> None:
    if model.graph.node:
        del model.graph.node[rng.randrange(len(model.graph.node))]


def _cycle(model: ModelProto, rng: random.Random) -> None:
    node, last = _node(model, rng), _node(model, rng)
    if node.input and last.output:
        node.input[rng.randrange(len(node.input))] = last.output[0]


def _rename_input(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(("", "nowhere", "x0", "w"))


def _rename_output(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(("", "y", "x0", "w"))


def _rename_operator(model: ModelProto, rng: random.Random) -> None:
    names = ("Relu", "Conv", "Nothing", "If", "Scan", "MatMul", "Loop", "Resize", "SequenceEmpty", "Pad", "Upsample")
    _node(model, rng).op_type = rng.choice(names)


def _arity(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.input and rng.random() < 0.5:
        del node.input[rng.randrange(len(node.input))]
    else:
        node.input.append(rng.choice(("x0", "w", "")))


def _dims(model: ModelProto, rng: random.Random) -> None:
    if model.graph.input:
        shape = rng.choice(model.graph.input).type.tensor_type.shape
        if shape.dim:
            rng.choice(shape.dim).dim_value = _huge(rng)


def _open_dim(model: ModelProto, rng: random.Random) -> None:
    if model.graph.input and (dims := model.graph.input[0].type.tensor_type.shape.dim):
        rng.choice(dims).dim_param = "N"


def _input_type(model: ModelProto, rng: random.Random) -> None:
    if model.graph.input:
        kind = rng.choice(
            (
                helper.make_tensor_type_proto(rng.randrange(30), [1, 2]),
                helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None)),
                TypeProto(),
                helper.make_tensor_type_proto(TensorProto.FLOAT, None),
            )
        )
        model.graph.input[0].type.CopyFrom(kind)


def _initializer(model: ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        match rng.randrange(5):
            case 0:
                tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
            case 1:
                tensor.data_type = rng.randrange(30)
            case 2 if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = _huge(rng)
            case 3:
                tensor.name = rng.choice(("", "x0", "w", "y"))
            case _:
                tensor.data_location = TensorProto.EXTERNAL
                place = rng.choice(("/etc/passwd", "../x", "", "a\0b", "weights"))
                tensor.external_data.add(key="location", value=place)
                tensor.external_data.add(key="offset", value=rng.choice(("-1", "z", "99999999999999999999")))


def _value(model: ModelProto, rng: random.Random) -> None:
    """Another value in a constant of indices."""
    found = [t for t in model.graph.initializer if t.data_type == TensorProto.INT64 and len(t.raw_data) == 8]
    if found:
        rng.choice(found).raw_data = _huge(rng).to_bytes(8, "little", signed=True)


def _attribute(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if not node.attribute:
        node.attribute.append(helper.make_attribute("axis", _huge(rng)))
        return
    a = rng.choice(node.attribute)
    match rng.randrange(5):
        case 0:
            node.attribute.remove(a)
        case 1 if a.ints:
            a.ints[rng.randrange(len(a.ints))] = _huge(rng)
        case 2:
            a.i = _huge(rng)
        case 3:
            a.type = rng.randrange(15)
        case _:
            a.name = rng.choice(("axis", "pads", "nothing", ""))


def _opset(model: ModelProto, rng: random.Random) -> None:
    if model.opset_import and rng.random() < 0.8:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 6, 7, 12, 18, 28, 999, -5))
    else:
        del model.opset_import[:]


def _graph(model: ModelProto, rng: random.Random) -> None:
    match rng.randrange(4):
        case 0:
            model.graph.CopyFrom(GraphProto())
        case 1:
            del model.graph.output[:]
        case 2 if model.graph.output:
            model.graph.output[0].name = rng.choice(("", "nowhere", "x0", "w"))
        case _:
            model.graph.output.add(name=rng.choice(("y", "x0", "w")))


def _recursion(model: ModelProto, rng: random.Random) -> None:
    for function in model.functions:
        function.node[0].op_type, function.node[0].domain = function.name, function.domain


def _shuffle(model: ModelProto, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


PROTO_MUTATIONS = (
    _drop_node, _cycle, _rename_input, _rename_output, _rename_operator, _arity, _dims, _open_dim, _input_type,
    _initializer, _value, _attribute, _attribute, _opset, _graph, _recursion, _shuffle,
)  # fmt: skip
