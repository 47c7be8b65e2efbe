"""Each synchronisation of the backward for sm_90a deleted once: the interpreter notices it, or here
stands why nothing can.

By hand, with what survives: PYTHONPATH=tests/support python tests/cuda/hopper/test_backward_mutants.py
"""
