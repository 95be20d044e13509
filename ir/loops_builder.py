"""Kernels written statement by statement."""

from __future__ import annotations

from collections.abc import Iterator

from .loops import (
    MATRIX,
    Alloc,
    Barrier,
    Block,
    Buffer,
    Const,
    Expr,
    For,
    ForKind,
    If,
    Kernel,
    Let,
    Load,
    MatrixLoad,
    MatrixMultiply,
    MatrixStore,
    Operand,
    Prefetch,
    Space,
    Stmt,
    Store,
    Var,
    as_expr,
)
from .types import DType


class Builder:
    """Writes a kernel's statements in order. Loops are Python loops that run their body once:

        k = Builder()
        x, y = k.param("x", DType.F32, n), k.param("y", DType.F32, n)
        for i in k.parallel("i", n // 8):
            k.store(y, i * 8, k.load(x, i * 8, 8) + 1.0)
        kernel = k.kernel("add_one")

    A body must run to its end: never `break` or `return` out of such a loop.
    """

    def __init__(self) -> None:
        self.params: list[Buffer] = []
        self._blocks: list[list[Stmt]] = [[]]
        self._names: dict[str, int] = {}

    def fresh(self, hint: str) -> str:
        """A name that this kernel does not use yet."""
        n = self._names.get(hint, 0)
        self._names[hint] = n + 1
        return f"{hint}{n}" if n else hint

    def param(self, hint: str, dtype: DType, size: int, align: int = 0) -> Buffer:
        """A parameter buffer; a step binds parameters in the order of these calls."""
        buffer = Buffer(self.fresh(hint), dtype, size, "param", 1, align)
        self.params.append(buffer)
        return buffer

    def alloc(self, hint: str, dtype: DType, size: int, space: Space = "stack", lanes: int = 1) -> Buffer:
        buffer = Buffer(self.fresh(hint), dtype, size, space, lanes, 64)
        self._emit(Alloc(buffer))
        return buffer

    def registers(self, hint: str, dtype: DType, count: int, lanes: int) -> Buffer:
        """A register tile of `count` vectors."""
        return self.alloc(hint, dtype, count, "register", lanes)

    def loop(
        self, hint: str, end: Operand, begin: Operand = 0, step: int = 1, kind: ForKind = "serial"
    ) -> Iterator[Expr]:
        """One loop; yields its variable once. A serial loop of one iteration leaves no loop behind."""
        zero = Const(DType.I64, 1, 0)
        lo, hi = as_expr(begin, zero), as_expr(end, zero)
        once = isinstance(lo, Const) and isinstance(hi, Const) and int(lo.value) < int(hi.value) <= int(lo.value) + step
        if once and kind in ("serial", "unroll"):
            yield lo
            return
        var = Var(DType.I64, 1, self.fresh(hint))
        self._blocks.append([])
        yield var
        self._emit(For(var.name, lo, hi, step, kind, Block(tuple(self._blocks.pop()))))

    def parallel(self, hint: str, count: int) -> Iterator[Expr]:
        """The outermost loop, over independent iterations 0..count."""
        return self.loop(hint, count, kind="parallel")

    def when(self, cond: Expr) -> Iterator[None]:
        """`for _ in k.when(cond):` — an If without else."""
        self._blocks.append([])
        yield None
        self._emit(If(cond, Block(tuple(self._blocks.pop()))))

    def otherwise(self) -> Iterator[None]:
        """The else of the If that stands last."""
        before = self._blocks[-1].pop()
        assert isinstance(before, If) and before.other is None, "no If to go on with"
        self._blocks.append([])
        yield None
        self._emit(If(before.cond, before.then, Block(tuple(self._blocks.pop()))))

    def let(self, value: Expr, hint: str = "t") -> Expr:
        """Name a value, to use it twice; constants and names stay as they are."""
        if isinstance(value, Const | Var):
            return value
        name = self.fresh(hint)
        self._emit(Let(name, value))
        return Var(value.dtype, value.lanes, name)

    def load(self, buffer: Buffer, index: Operand, lanes: int = 1) -> Expr:
        """`lanes` contiguous elements; a vector index gathers."""
        i = as_expr(index, Const(DType.I64, 1, 0)) if not isinstance(index, Expr) else index
        return Load(buffer.dtype, buffer.lanes if buffer.space == "register" else max(lanes, i.lanes), buffer, i)

    def store(self, buffer: Buffer, index: Operand, value: Expr) -> None:
        i = as_expr(index, Const(DType.I64, 1, 0)) if not isinstance(index, Expr) else index
        assert value.dtype is buffer.dtype, f"store {value.dtype} into {buffer.name}: {buffer.dtype}"
        self._emit(Store(buffer, i, value))

    def prefetch(self, buffer: Buffer, index: Operand, *, near: bool = False) -> None:
        self._emit(Prefetch(buffer, as_expr(index, Const(DType.I64, 1, 0)), near))

    def barrier(self) -> None:
        """All threads of a work-group wait here for each other."""
        self._emit(Barrier())

    def matrices(self, hint: str, dtype: DType, count: int) -> Buffer:
        """Matrices of each subgroup."""
        return self.alloc(hint, dtype, count, "matrix", MATRIX * MATRIX)

    def matrix_load(
        self, matrix: Buffer, index: Operand, source: tuple[Buffer, Expr, int], *, transposed: bool = False
    ) -> None:
        """source: shared memory, the place of the first element, elements from one row (or column) to the next."""
        self._emit(MatrixLoad(matrix, _index(index), *source, transposed))

    def matrix_store(self, target: tuple[Buffer, Expr, int], matrix: Buffer, index: Operand) -> None:
        self._emit(MatrixStore(*target, matrix, _index(index)))

    def matrix_multiply(
        self, sums: tuple[Buffer, Operand], a: tuple[Buffer, Operand], b: tuple[Buffer, Operand]
    ) -> None:
        """Adds a product of matrices to one."""
        self._emit(MatrixMultiply(sums[0], _index(sums[1]), a[0], _index(a[1]), b[0], _index(b[1])))

    def kernel(self, name: str, *, shaped: bool = True, inplace: bool = False) -> Kernel:
        assert len(self._blocks) == 1, "a loop was left open"
        return Kernel(name, tuple(self.params), Block(tuple(self._blocks[0])), shaped, inplace)

    def _emit(self, stmt: Stmt) -> None:
        self._blocks[-1].append(stmt)

    @property
    def worker(self) -> Expr:
        """Index of the worker that runs this parallel iteration."""
        return Var(DType.I64, 1, "worker")


def _index(x: Operand) -> Expr:
    return as_expr(x, Const(DType.I64, 1, 0))
