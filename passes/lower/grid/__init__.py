"""Lowerings for graphics processors, where those for processors' loops would leave threads idle or memory unshared.

Operators without one take the lowering that all targets share, whose independent loops become a grid
(`passes/loops/spread.py`).
"""
