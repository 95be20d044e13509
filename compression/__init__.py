"""Smaller networks: code books and masks by layer, recovered by least squares, under a budget of bytes or of loss."""
