"""Where exact 32-bit sums go: what products and convolutions of integers hand them to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ...ir.loops import Expr
from .context import KernelBuilder, Site

Finish: TypeAlias = Callable[[KernelBuilder, Site, Expr], None]
"""Stores a vector of 32-bit sums at its site."""
