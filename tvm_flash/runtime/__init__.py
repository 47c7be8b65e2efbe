"""A built library becomes kernels that run on torch's threads. Needs apache-tvm-ffi, not TVM."""
