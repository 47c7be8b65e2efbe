"""Attention as TensorIR: score expression and its derivative, plain and streaming forms."""
