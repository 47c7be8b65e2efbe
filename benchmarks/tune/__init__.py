"""Parts of benchmarks/tune_cpu.py."""
