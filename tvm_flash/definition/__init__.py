"""Attention as TensorIR: score expression, derivative, plain and streaming forms, both directions."""
