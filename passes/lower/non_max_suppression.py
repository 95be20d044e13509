"""NonMaxSuppression: of boxes that overlap, the one with the best score.

Each class of each image: boxes whose score is above the threshold become a list of candidates, each field a line of
its own; the best score of every block of them is kept beside. The best candidate of the best block is taken out, and
chosen unless it overlaps one that was: a few vector steps for the blocks, for one block and for those chosen so far,
and no sorting. Equal scores go by the box's number. Overlap is computed as onnxruntime does, in float32, one operation
after the other.

A score of minus infinity is never chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.graph import Value
from ...ir.loops import Buffer, Expr, binary, broadcast, cast, const, maximum, minimum, ramp, reduce, select
from ...ir.types import DType
from .bounded import Bounded, bounds
from .context import KernelBuilder, Lowering
from .scan import any_of, scan
from .tasks import tasks

CORNERS = 5
"""Fields of a box: y1, x1, y2, x2 and its area."""
Y1, X1, Y2, X2, AREA = range(CORNERS)
LOWEST = float("-inf")
BLOCK = 64
"""Candidates of which the best is known."""
OPERATIONS = 4
"""Of a box, by which threads are worth their while."""


@dataclass(frozen=True, slots=True)
class Problem:
    """boxes [batch, boxes, 4], scores [batch, classes, boxes], at most `most` chosen of each class."""

    batch: int
    classes: int
    boxes: int
    most: int
    centered: bool

    @property
    def lines(self) -> int:
        return self.batch * self.classes


@bounds("NonMaxSuppression")
def lower_non_max_suppression(ctx: Lowering, node: Bounded) -> None:
    """Rows (image, class, box) of i64, by image, class and falling score; zeros behind them."""
    batch, classes, boxes = node.operand(1).type.dims
    most = node.rows.type.dims[0] // max(batch * classes, 1)
    p = Problem(batch, classes, boxes, most, node.node.attrs.get("center_point_box", 0) == 1)
    if p.lines * p.most == 0:
        k = ctx.kernel()
        k.store(k.tensor(node.count), 0, const(0))
        k.done("no_boxes")
        return
    chosen = ctx.scratch("chosen", DType.I32, p.lines * p.most)
    counts = ctx.scratch("counts", DType.I64, p.lines)
    _choose(ctx, node, p, chosen, counts)
    _list(ctx, node, p, chosen, counts)


def _choose(ctx: Lowering, node: Bounded, p: Problem, chosen: Value, counts: Value) -> None:
    """Boxes of each class of each image, side by side on threads."""
    k = ctx.kernel()
    for t in tasks(k, p.lines * p.boxes * OPERATIONS, p.lines):
        line = _Line(ctx, k, node, p)
        line.candidates(t)
        line.choose(k.tensor(chosen), t * p.most)
        k.store(k.tensor(counts), t, k.load(line.chosen, 0))
    k.done("suppress")


def _list(ctx: Lowering, node: Bounded, p: Problem, chosen: Value, counts: Value) -> None:
    """What was chosen, one class after the other."""
    k = ctx.kernel()
    out, total = k.tensor(node.rows), k.alloc("total", DType.I64, 1)
    k.store(total, 0, const(0))
    for b in k.loop("b", p.batch):
        for c in k.loop("c", p.classes):
            line = k.let(b * p.classes + c, "line")
            count, begin = k.let(k.load(k.tensor(counts), line), "count"), k.let(k.load(total, 0), "begin")
            for s in k.loop("s", count):
                box = cast(k.load(k.tensor(chosen), line * p.most + s), DType.I64)
                for column, value in enumerate((b, c, box)):
                    k.store(out, (begin + s) * 3 + column, value)
            k.store(total, 0, begin + count)
    end = k.let(k.load(total, 0), "end")
    for i in k.loop("i", p.lines * p.most * 3, end * 3):
        k.store(out, i, const(0))
    k.store(k.tensor(node.count), 0, end)
    k.done("boxes")


class _Boxes:
    """A worker's list of boxes, each field a line."""

    def __init__(self, ctx: Lowering, k: KernelBuilder, hint: str, capacity: int) -> None:
        self.k, self.capacity = k, capacity
        self.buffer = k.tensor(ctx.scratch(hint, DType.F32, CORNERS * capacity * ctx.threads))
        self.first = k.let(k.worker * (CORNERS * capacity), "first")

    def put(self, at: Expr, fields: list[Expr], lanes: int = 1) -> None:
        for field, value in enumerate(fields):
            self.k.store(self.buffer, self.first + field * self.capacity + at, broadcast(value, lanes))

    def get(self, at: Expr, lanes: int = 1) -> list[Expr]:
        places = [self.first + field * self.capacity + at for field in range(CORNERS)]
        return [self.k.let(self.k.load(self.buffer, place, lanes), "side") for place in places]


class _Line:
    """One class of one image in the making: candidates, the best of each block of them, and what is chosen."""

    def __init__(self, ctx: Lowering, k: KernelBuilder, node: Bounded, p: Problem) -> None:
        self.k, self.node, self.p = k, node, p
        self.lanes = lanes = ctx.lanes(DType.F32)
        self.capacity = (p.boxes // BLOCK + 1) * BLOCK
        self.blocks = (self.capacity // BLOCK // lanes + 1) * lanes
        self.boxes = _Boxes(ctx, k, "boxes", self.capacity)
        self.kept = _Boxes(ctx, k, "kept", (p.most // lanes + 1) * lanes)
        self.scores = k.tensor(ctx.scratch("scores", DType.F32, self.capacity * ctx.threads))
        self.numbers = k.tensor(ctx.scratch("numbers", DType.I32, self.capacity * ctx.threads))
        self.best = k.tensor(ctx.scratch("best", DType.F32, self.blocks * ctx.threads))
        self.first = k.let(k.worker * self.capacity, "first")
        self.first_block = k.let(k.worker * self.blocks, "first")
        self.filled = k.alloc("filled", DType.I64, 1)
        self.chosen = k.alloc("chosen", DType.I64, 1)

    def _threshold(self, index: int) -> Expr | None:
        """A threshold that is given, constant or not."""
        value = self.node.node.input(index)
        if value is None or value.data is not None:
            return None if value is None or value.data is None else const(float(value.data.reshape(-1)[0]), DType.F32)
        return self.k.let(self.k.load(self.k.tensor(value), 0), "threshold")

    def _most(self) -> Expr:
        """Boxes that may be chosen."""
        value = self.node.node.input(2)
        if value is None or value.data is not None:
            return const(self.p.most)
        return self.k.let(minimum(self.k.load(self.k.tensor(value), 0), self.p.most), "most")

    def candidates(self, t: Expr) -> None:
        """The boxes of line `t` (image · classes + class) whose score is above the threshold."""
        k, n = self.k, self.p.boxes
        scores, least = k.tensor(self.node.operand(1)), self._threshold(4)
        k.store(self.filled, 0, const(0))
        image = k.let(t / self.p.classes * n, "image")

        def matters(j: Expr) -> Expr:
            assert least is not None, "every score counts"
            return any_of(binary("gt", k.load(scores, t * n + j, lanes), broadcast(least, lanes)))

        lanes = self.lanes if least is not None else 1
        scan(k, n, lanes, matters, lambda j: self._consider(scores, t, j, image, least))
        end = k.let(k.load(self.filled, 0), "end")
        for i in k.loop("i", (end + BLOCK) / BLOCK * BLOCK, end):
            k.store(self.scores, self.first + i, const(LOWEST, DType.F32))

    def _consider(self, scores: Buffer, t: Expr, j: Expr, image: Expr, least: Expr | None) -> None:
        k = self.k
        score = k.let(k.load(scores, t * self.p.boxes + j), "score")
        for _ in k.when(binary("gt", score, least)) if least is not None else iter((None,)):
            at = k.let(k.load(self.filled, 0), "at")
            self.boxes.put(at, self._fields(k.let((image + j) * 4, "box")))
            k.store(self.scores, self.first + at, score)
            k.store(self.numbers, self.first + at, cast(j, DType.I32))
            k.store(self.filled, 0, at + 1)

    def _fields(self, at: Expr) -> list[Expr]:
        """y1, x1, y2, x2, the lower ones first, and the area."""
        k = self.k
        boxes = k.tensor(self.node.operand(0))
        a, b, c, d = (k.let(k.load(boxes, at + i), "side") for i in range(4))
        if self.p.centered:
            width, height = k.let(c * 0.5, "half"), k.let(d * 0.5, "half")
            corners = [b - height, a - width, b + height, a + width]
        else:
            corners = [minimum(a, c), minimum(b, d), maximum(a, c), maximum(b, d)]
        corners = [k.let(x, "corner") for x in corners]
        return [*corners, k.let((corners[X2] - corners[X1]) * (corners[Y2] - corners[Y1]), "area")]

    def choose(self, out: Buffer, begin: Expr) -> None:
        """The numbers of the chosen boxes from place `begin` on; how many they are in `chosen`."""
        k, lanes = self.k, self.lanes
        filled = k.let(k.load(self.filled, 0), "filled")
        blocks = k.let((filled + (BLOCK - 1)) / BLOCK, "blocks")
        for i in k.loop("i", self.blocks, step=lanes):
            k.store(self.best, self.first_block + i, const(LOWEST, DType.F32, lanes))
        for i in k.loop("i", blocks):
            k.store(self.best, self.first_block + i, self._best(self.scores, self.first + i * BLOCK, const(BLOCK))[0])
        k.store(self.chosen, 0, const(0))
        most = self._most()
        left = k.alloc("left", DType.I64, 1)
        k.store(left, 0, const(1))
        for _ in k.loop("taken", filled):
            number = k.let(k.load(self.chosen, 0), "number")
            for _ in k.when(binary("lt", number, most) & binary("gt", k.load(left, 0), const(0))):
                top, block = self._best(self.best, self.first_block, blocks)
                k.store(left, 0, cast(binary("gt", top, const(LOWEST, DType.F32)), DType.I64))
                for _ in k.when(binary("gt", top, const(LOWEST, DType.F32))):
                    self._take(out, begin, number, k.let(cast(block, DType.I64), "block"))

    def _take(self, out: Buffer, begin: Expr, number: Expr, block: Expr) -> None:
        """The best candidate of a block: taken out, and chosen unless it overlaps one that is."""
        k = self.k
        base = k.let(block * BLOCK, "base")
        place = self._best(self.scores, self.first + base, const(BLOCK))[1]
        pick = k.let(base + cast(place, DType.I64), "pick")
        k.store(self.scores, self.first + pick, const(LOWEST, DType.F32))
        k.store(self.best, self.first_block + block, self._best(self.scores, self.first + base, const(BLOCK))[0])
        box = self.boxes.get(pick)
        struck = self._struck(box, number)
        for _ in k.when(binary("eq", struck, const(0, DType.I32))):
            for _ in k.when(binary("eq", number % self.lanes, const(0))) if self.lanes > 1 else ():
                self.kept.put(number, [const(0, DType.F32)] * CORNERS, self.lanes)
            self.kept.put(number, box)
            k.store(out, begin + number, k.load(self.numbers, self.first + pick))
            k.store(self.chosen, 0, number + 1)

    def _best(self, scores: Buffer, first: Expr, count: Expr) -> tuple[Expr, Expr]:
        """(score, place) of the best of `count` scores, the first of equal ones; up to a whole vector is looked at."""
        k, lanes = self.k, self.lanes
        best, where = k.registers("best", DType.F32, 1, lanes), k.registers("where", DType.I32, 1, lanes)
        k.store(best, 0, const(LOWEST, DType.F32, lanes))
        k.store(where, 0, const(0, DType.I32, lanes))
        for i in k.loop("i", count, step=lanes):
            score = k.let(k.load(scores, first + i, lanes), "score")
            better = k.let(binary("gt", score, k.load(best, 0)), "better")
            places = cast(ramp(0, 1, lanes), DType.I32) + cast(i, DType.I32)
            k.store(best, 0, select(better, score, k.load(best, 0)))
            k.store(where, 0, select(better, places, k.load(where, 0)))
        found, places = k.let(k.load(best, 0), "found"), k.let(k.load(where, 0), "places")
        top = k.let(reduce("max", found), "top")
        tied = select(binary("eq", found, broadcast(top, lanes)), places, const(2**31 - 1, DType.I32, lanes))
        return top, k.let(reduce("min", tied), "place")

    def _struck(self, box: list[Expr], number: Expr) -> Expr:
        """1 where a box overlaps one of the `number` chosen by more than the threshold."""
        k, lanes = self.k, self.lanes
        struck = k.registers("struck", DType.I32, 1, lanes)
        k.store(struck, 0, const(0, DType.I32, lanes))
        least = self._threshold(3)
        mine = [broadcast(x, lanes) for x in box]
        for i in k.loop("i", number, step=lanes):
            over = _overlap(k, mine, self.kept.get(i, lanes), const(0.0, DType.F32) if least is None else least)
            k.store(struck, 0, maximum(k.load(struck, 0), cast(over, DType.I32)))
        return k.let(reduce("max", k.load(struck, 0)), "struck")


def _overlap(k: KernelBuilder, a: list[Expr], b: list[Expr], least: Expr) -> Expr:
    """Whether the intersection is more than a part of the union."""
    lanes = b[0].lanes
    zero = const(0.0, DType.F32, lanes)
    width = k.let(minimum(a[X2], b[X2]) - maximum(a[X1], b[X1]), "width")
    height = k.let(minimum(a[Y2], b[Y2]) - maximum(a[Y1], b[Y1]), "height")
    shared = k.let(width * height, "shared")
    union = k.let(a[AREA] + b[AREA] - shared, "union")
    meet = binary("gt", width, zero) & binary("gt", height, zero) & binary("gt", shared, zero)
    solid = binary("gt", a[AREA], zero) & binary("gt", b[AREA], zero) & binary("gt", union, zero)
    return meet & solid & binary("gt", shared / union, broadcast(least, lanes))
