"""Predicted clocks of a kernel's main loop, simulated from its machine code."""
