"""Operators that are refused on purpose, each with its reason: what they need does not exist in a compiled object."""

from __future__ import annotations

from .context import Lowering, lowers


@lowers("Unique")
def refuse_data_dependent(ctx: Lowering) -> None:
    """The shape of the result depends on the data."""
    raise ctx.unsupported(
        f"the number of results of {ctx.node.op} depends on the data; memory is planned at compile time",
        "cut the model before this node and do the rest in the app",
    )


@lowers("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
def refuse_random(ctx: Lowering) -> None:
    """A compiled model has no state, so no generator."""
    raise ctx.unsupported(
        f"{ctx.node.op} draws random numbers; a compiled model has no state", "make the random tensor an input"
    )


@lowers("ImageDecoder")
def refuse_decoder(ctx: Lowering) -> None:
    """Compressed images are decoded outside."""
    raise ctx.unsupported("ImageDecoder reads compressed images", "decode in the app and pass pixels")
