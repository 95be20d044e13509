"""Minimum cut of a network with integer capacities, by blocking flows.

Dinic: Algorithm for solution of a problem of maximum flow in networks with power estimation, Soviet Math. Dokl. 11,
1970; here with distances from the sink, so that the last search for them finds the cut.
"""

from __future__ import annotations


class Network:
    """Nodes 0..count-1. Arc i leads to `head[i]` and has `room[i]` left; arc i ^ 1 is the same one backwards."""

    def __init__(self, count: int) -> None:
        self.leaving: list[list[int]] = [[] for _ in range(count)]
        self.head: list[int] = []
        self.room: list[int] = []

    def add(self, a: int, b: int, capacity: int) -> None:
        for start, end, room in ((a, b, capacity), (b, a, 0)):
            self.leaving[start].append(len(self.head))
            self.head.append(end)
            self.room.append(room)

    def sink_side(self, source: int, sink: int) -> set[int]:
        """The smallest set around `sink` whose entering arcs are a minimum cut; consumes the capacities."""
        while True:
            distance = self._distances(sink)
            if distance[source] < 0:
                return {node for node, d in enumerate(distance) if d >= 0}
            self._block(source, sink, distance)

    def _distances(self, sink: int) -> list[int]:
        """Arcs with room from each node to the sink; -1 where there is no way."""
        distance = [-1] * len(self.leaving)
        distance[sink] = 0
        queue = [sink]
        for node in queue:
            for arc in self.leaving[node]:
                other = self.head[arc]
                if distance[other] < 0 and self.room[arc ^ 1] > 0:
                    distance[other] = distance[node] + 1
                    queue.append(other)
        return distance

    def _block(self, source: int, sink: int, distance: list[int]) -> None:
        """Send what fits along shortest ways until none is left."""
        tried = [0] * len(self.leaving)
        path: list[int] = []
        node = source
        while True:
            if node == sink:
                node = self._send(path)
            arc = self._next(node, distance, tried)
            if arc is not None:
                path.append(arc)
                node = self.head[arc]
            elif path:
                node = self.head[path.pop() ^ 1]
                tried[node] += 1
            else:
                return

    def _send(self, path: list[int]) -> int:
        """Fill a way; cuts the path at its first full arc and returns the node there."""
        least = min(self.room[arc] for arc in path)
        for arc in path:
            self.room[arc] -= least
            self.room[arc ^ 1] += least
        full = next(i for i, arc in enumerate(path) if not self.room[arc])
        node = self.head[path[full] ^ 1]
        del path[full:]
        return node

    def _next(self, node: int, distance: list[int], tried: list[int]) -> int | None:
        leaving = self.leaving[node]
        while tried[node] < len(leaving):
            arc = leaving[tried[node]]
            if self.room[arc] > 0 and distance[self.head[arc]] == distance[node] - 1:
                return arc
            tried[node] += 1
        return None
