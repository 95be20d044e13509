"""Importing this loads the node tests: what the process does of which workers are forks."""

from __future__ import annotations

from .cases import node_tests

node_tests()
