"""Correctness and speed on a real CUDA device; ``benchmarks/gpu.py`` is the command.

grid (what is timed) -> contenders -> clock -> rows -> report and plot; correctness stands beside.
"""
