"""Proof without a GPU: CUDA kernels run in the PTX interpreter, alone or from their library."""
