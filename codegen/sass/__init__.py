"""Machine code of CUDA kernels read back: instructions, their control words, the main loop."""
