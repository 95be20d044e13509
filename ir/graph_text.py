"""Graph IR as text, and back: `parse_graph(print_graph(g), large_constants(g))` is `g` again.

The grammar stands in docs/graph-ir.md.
"""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import C2CError, ParseError, VerifyError
from .graph import Graph, Node, Value
from .types import PLAIN, Counted, DType, Layout, TensorType

INLINE_ELEMENTS = 16
"""Constants up to this many elements are printed in full (strings always)."""

_BARE = re.compile(r"[A-Za-z0-9_./\-]+")
_DIM = re.compile(r"(?!(?:inf|nan)$)[A-Za-z_][A-Za-z0-9_.]*")


# ---- printing ----


def print_graph(graph: Graph) -> str:
    """The graph as text; large constants as `@sha256` of their data (see `large_constants`)."""
    return "\n".join(_graph_lines(graph, "")) + "\n"


def large_constants(graph: Graph) -> dict[str, np.ndarray]:
    """What the text of a graph refers to: data of its large constants by their hash."""
    found: dict[str, np.ndarray] = {}
    for value in graph.constants():
        assert value.data is not None
        if not _is_inline(value.data):
            found[_digest(value.data)] = value.data
    for node in graph.nodes:
        for attr in node.attrs.values():
            if isinstance(attr, Graph):
                found |= large_constants(attr)
            elif isinstance(attr, np.ndarray) and not _is_inline(attr):
                found[_digest(attr)] = attr
    return found


def _graph_lines(graph: Graph, indent: str) -> Iterator[str]:
    inputs = ", ".join(_typed(v) for v in graph.inputs)
    yield f"{indent}graph {json.dumps(graph.name)} ({inputs}) {{"
    inner = indent + "  "
    printed: set[Value] = set()
    for node in graph.nodes:
        yield from _constant_lines(node.inputs, printed, inner)
        yield from _node_lines(node, inner)
    yield from _constant_lines(graph.outputs, printed, inner)
    results = ", ".join(
        f"{json.dumps(n)}{_counted(graph, n)} = {_name(v)}{_labels(graph.labels.get(n, ()))}"
        for n, v in zip(graph.output_names, graph.outputs, strict=True)
    )
    yield f"{inner}return {results}".rstrip()
    yield f"{indent}}}"


def _labels(names: Sequence[str]) -> str:
    return f" labels [{', '.join(map(json.dumps, names))}]" if names else ""


def _counted(graph: Graph, output: str) -> str:
    found = graph.counts.get(output)
    return "" if found is None else f" counted {found.axis} {json.dumps(found.count)}"


def _constant_lines(values: Iterable[Value | None], printed: set[Value], indent: str) -> Iterator[str]:
    for value in values:
        if value is not None and value.data is not None and value not in printed:
            printed.add(value)
            yield f"{indent}const {_typed(value)} = {_data(value.data)}"


def _node_lines(node: Node, indent: str) -> Iterator[str]:
    outputs = ", ".join(_typed(v) for v in node.outputs)
    inputs = ", ".join("_" if v is None else _name(v) for v in node.inputs)
    graphs = {k: a for k, a in node.attrs.items() if isinstance(a, Graph)}
    plain = ", ".join(f"{k} = {_attribute(node, k, a)}" for k, a in node.attrs.items() if k not in graphs)
    origin = f" from {', '.join(json.dumps(o) for o in node.origin)}" if node.origin else ""
    yield f"{indent}{outputs} = {node.op}({inputs}){f' {{{plain}}}' if plain else ''}{origin}"
    for key, body in graphs.items():
        first, *rest = _graph_lines(body, indent + "  ")
        yield f"{indent}  with {key} = {first.lstrip()}"
        yield from rest


def _typed(value: Value) -> str:
    return f"{_name(value)}: {_type(value.type)}"


def _name(value: Value) -> str:
    return "%" + (value.name if _BARE.fullmatch(value.name) else json.dumps(value.name))


def _type(type_: TensorType) -> str:
    dims = ",".join(str(d) if isinstance(d, int) or _DIM.fullmatch(d) else json.dumps(d) for d in type_.shape)
    return f"{type_.dtype}[{dims}]" + (f"{{{type_.layout}}}" if type_.layout != PLAIN else "")


def _attribute(node: Node, key: str, value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | np.integer():
            return str(int(value))
        case float() | np.floating():
            return repr(float(value))
        case str():
            return json.dumps(value)
        case tuple() | list():
            return f"[{', '.join(_attribute(node, key, v) for v in value)}]"
        case np.ndarray():
            return f"{_type(TensorType(DType.of(value.dtype), value.shape))} {_data(value)}"
    raise VerifyError(f"attribute '{key}' holds a {type(value).__name__}", where=node.where)


def _is_inline(data: np.ndarray) -> bool:
    return data.size <= INLINE_ELEMENTS or data.dtype == object


def _data(data: np.ndarray) -> str:
    """Decimal elements where they give exactly the same bytes, else their bytes in hexadecimal."""
    if not _is_inline(data):
        return "@" + _digest(data)
    text = ", ".join(_element(x) for x in data.reshape(-1))
    dtype = DType.of(data.dtype)
    if dtype.is_float and _floats(text.split(", ") if text else [], dtype).tobytes() != data.tobytes():
        return f"hex {data.tobytes().hex()}"
    return f"[{text}]"


def _element(x: Any) -> str:
    match x:
        case bool() | np.bool_():
            return "true" if x else "false"
        case int() | np.integer():
            return str(int(x))
        case str() | bytes():
            return json.dumps(x if isinstance(x, str) else x.decode("utf-8", "replace"))
    return str(x)


def _floats(texts: list[str], dtype: DType) -> np.ndarray:
    return np.asarray([float(t) for t in texts], np.float64).astype(dtype.numpy)


_digests: dict[int, tuple[Callable[[], Any], str]] = {}


def _digest(data: np.ndarray) -> str:
    """SHA-256 of type, shape and bytes, shortened; remembered as long as the array lives."""
    key = id(data)
    found = _digests.get(key)
    if found is None or found[0]() is not data:
        digest = hashlib.sha256(f"{data.dtype.name}{list(data.shape)}".encode())
        digest.update(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        found = _digests[key] = (weakref.ref(data, lambda _: _digests.pop(key, None)), digest.hexdigest()[:32])
    return found[1]


# ---- parsing ----

_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+|;[^\n]*)"
    r'|(?P<string>"(?:[^"\\\n]|\\.)*")'
    r'|(?P<value>%(?:[A-Za-z0-9_./\-]+|"(?:[^"\\\n]|\\.)*"))'
    r"|(?P<hash>@[0-9a-f]{32})"
    r"|(?P<number>-?(?:inf|nan|[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)(?![A-Za-z0-9_]))"
    r"|(?P<word>[A-Za-z0-9_][A-Za-z0-9_.]*)"
    r"|(?P<mark>[()\[\]{}=:,])"
)


def parse_graph(text: str, data: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph in `text`; `data` holds its large constants by hash. Raises ParseError with line and column."""
    parser = _Parser(text, data or {})
    graph = parser.graph()
    parser.expect("")
    return graph


class _Parser:
    def __init__(self, text: str, data: Mapping[str, np.ndarray]) -> None:
        self.text, self.data = text, data
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise self.error(f"unexpected character {text[at]!r}", at)
            if match.lastgroup != "space":
                self.tokens.append((match.lastgroup or "", match.group(), at))
            at = match.end()
        self.tokens.append(("end", "", len(text)))
        self.at = 0

    def error(self, what: str, at: int | None = None) -> ParseError:
        where = self.tokens[self.at][2] if at is None else at
        line = self.text.count("\n", 0, where) + 1
        start = self.text.rfind("\n", 0, where) + 1
        content = self.text[start:].split("\n", 1)[0]
        return ParseError(what, where=f"{line}:{where - start + 1}: {content.strip()[:160]}")

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    @property
    def token(self) -> str:
        return self.tokens[self.at][1]

    def take(self) -> str:
        token = self.token
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def accept(self, token: str) -> bool:
        if self.token == token and self.kind in ("mark", "word", "end"):
            self.take()
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise self.error(f"expected {token or 'the end'!r}, found {self.token or 'the end'!r}")

    def of_kind(self, kind: str) -> str:
        if self.kind != kind:
            raise self.error(f"expected a {kind}, found {self.token or 'the end'!r}")
        return self.take()

    def string(self) -> str:
        at = self.at
        try:
            return str(json.loads(self.of_kind("string")))
        except ValueError as e:
            self.at = at
            raise self.error("broken string") from e

    def list_of(self, item: Callable[[], Any], close: str) -> list[Any]:
        """Items up to `close`, separated by commas."""
        items: list[Any] = []
        while not self.accept(close):
            if items:
                self.expect(",")
            items.append(item())
        return items

    # ---- grammar, top down ----

    def graph(self) -> Graph:
        self.expect("graph")
        name = self.string()
        known: dict[str, Value] = {}
        self.expect("(")
        inputs: list[Value] = self.list_of(lambda: self.new_value(known), ")")
        self.expect("{")
        nodes: list[Node] = []
        while not self.accept("return"):
            if self.accept("const"):
                value = self.new_value(known)
                self.expect("=")
                value.data = self.constant(value.type)
            else:
                nodes.append(self.node(known))
        counts: dict[str, Counted] = {}
        results = self.list_of(lambda: self.result(known, counts), "}")
        labels = {n: names for n, _, names in results if names}
        return Graph(name, inputs, [v for _, v, _ in results], nodes, [n for n, _, _ in results], labels, counts)

    def result(self, known: dict[str, Value], counts: dict[str, Counted]) -> tuple[str, Value, tuple[str, ...]]:
        name = self.string()
        if self.accept("counted"):
            axis = int(self.of_kind("number"))
            counts[name] = Counted(axis, self.string())
        self.expect("=")
        value, labels = self.value(known), ()
        if self.accept("labels"):
            self.expect("[")
            labels = tuple(self.list_of(self.string, "]"))
        return name, value, labels

    def node(self, known: dict[str, Value]) -> Node:
        outputs: list[Value] = self.list_of(lambda: self.unbound_value(), "=")
        op = self.of_kind("word")
        self.expect("(")
        inputs: list[Value | None] = self.list_of(lambda: None if self.accept("_") else self.value(known), ")")
        attrs = dict(self.list_of(self.attribute, "}")) if self.accept("{") else {}
        origin: list[str] = []
        if self.accept("from"):
            origin.append(self.string())
            while self.accept(","):
                origin.append(self.string())
        while self.accept("with"):
            key = self.of_kind("word")
            self.expect("=")
            attrs[key] = self.graph()
        if not outputs:
            raise self.error("a node makes at least one value")
        for value in outputs:
            self.bind(value, known)
        return Node(op, tuple(inputs), tuple(outputs), attrs, tuple(origin))

    def name(self) -> str:
        token = self.of_kind("value")[1:]
        return str(json.loads(token)) if token.startswith('"') else token

    def value(self, known: dict[str, Value]) -> Value:
        at = self.at
        name = self.name()
        if name not in known:
            self.at = at
            raise self.error(f"'{name}' is not known here")
        return known[name]

    def unbound_value(self) -> Value:
        name = self.name()
        self.expect(":")
        return Value(name, self.type())

    def new_value(self, known: dict[str, Value]) -> Value:
        return self.bind(self.unbound_value(), known)

    def bind(self, value: Value, known: dict[str, Value]) -> Value:
        if value.name in known:
            raise self.error(f"'{value.name}' is made twice")
        known[value.name] = value
        return value

    def type(self) -> TensorType:
        at = self.at
        try:
            dtype = DType(self.of_kind("word"))
        except ValueError as e:
            self.at = at
            raise self.error(f"'{self.token}' is no element type") from e
        self.expect("[")
        shape = tuple(self.list_of(self.dim, "]"))
        layout = PLAIN
        if self.token == "{" and re.fullmatch(r"c[0-9]+", self.tokens[self.at + 1][1]):
            self.take()
            layout = Layout(int(self.take()[1:]))
            self.expect("}")
        return TensorType(dtype, shape, layout)

    def dim(self) -> int | str:
        if self.kind == "string":
            return self.string()
        return int(self.take()) if self.token.isdecimal() else self.of_kind("word")

    def attribute(self) -> tuple[str, Any]:
        key = self.take() if self.token in ("inf", "nan") else self.of_kind("word")
        self.expect("=")
        return key, self.literal()

    def literal(self) -> Any:
        if self.accept("["):
            return tuple(self.list_of(self.literal, "]"))
        if self.kind == "word" and self.tokens[self.at + 1][1] == "[":
            return self.constant(self.type())
        return self.scalar()

    def scalar(self) -> Any:
        if self.kind == "string":
            return self.string()
        if self.accept("true"):
            return True
        if self.accept("false"):
            return False
        token = self.of_kind("number")
        return int(token) if re.fullmatch(r"-?[0-9]+", token) else float(token)

    def constant(self, type_: TensorType) -> np.ndarray:
        """The data of a constant of `type_`."""
        at = self.at
        try:
            array = self._elements(type_.dtype)
            if array.dtype != type_.dtype.numpy:
                raise ValueError(f"data is {array.dtype}")
            return array.reshape(type_.dims)
        except (ValueError, OverflowError, C2CError) as e:
            if isinstance(e, ParseError):
                raise
            self.at = at
            raise self.error(f"not the data of a constant {type_}: {e}") from e

    def _elements(self, dtype: DType) -> np.ndarray:
        if self.kind == "hash":
            key = self.token[1:]
            if key not in self.data:
                raise self.error(f"the data of constant @{key} is not given")
            self.take()
            return self.data[key]
        if self.accept("hex"):
            digits = "" if self.kind not in ("word", "number") else self.take()
            return np.frombuffer(bytes.fromhex(digits), dtype.numpy)
        self.expect("[")
        if dtype.is_float:
            return _floats(self.list_of(lambda: self.of_kind("number"), "]"), dtype)
        items = self.list_of(self.scalar, "]")
        if dtype.is_int and not all(type(x) is int for x in items):
            raise ValueError("elements are no whole numbers")
        return np.array(items, dtype.numpy)
