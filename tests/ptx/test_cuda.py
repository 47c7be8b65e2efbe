"""Ordinary CUDA C++ through nvcc: its compiler's loops, branches, functions and shuffles."""

import shutil
import subprocess

import numpy as np
import pytest

from tvm_flash import ptx_interpreter as ptx

NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc")
SOURCE = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <mma.h>
extern "C" __global__ void row_sums(const float* x, float* out, int rows, int n) {
  __shared__ float part[8];
  int row = blockIdx.x;
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[row * n + i];
  for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (int i = 0; i < blockDim.x / 32; ++i) total += part[i];
    out[row] = total;
  }
}
__device__ __noinline__ int collatz(int n) {
  int steps = 0;
  while (n != 1) { n = n % 2 ? 3 * n + 1 : n / 2; ++steps; }
  return steps;
}
extern "C" __global__ void steps(const int* n, int* out) {
  out[threadIdx.x] = collatz(n[threadIdx.x]);
}
extern "C" __global__ void table(const int* which, long long* out) {
  int stack[16];
  for (int i = 0; i < 16; ++i) stack[i] = i * i + threadIdx.x;
  long long value = stack[which[threadIdx.x] & 15];
  switch (which[threadIdx.x]) {
    case 0: value += 1000; break; case 1: value *= -3; break; case 2: value ^= 0x5555; break;
    case 3: value /= 7; break; case 4: value <<= 40; break; case 5: value %= 11; break;
    default: value = -value;
  }
  out[threadIdx.x] = value;
}
extern "C" __global__ void halves(const __half2* x, const __nv_bfloat162* y, float2* out) {
  __half2 h = __hfma2(x[threadIdx.x], x[threadIdx.x], __float2half2_rn(0.5f));
  float2 a = __half22float2(h), b = __bfloat1622float2(__hmul2(y[threadIdx.x], y[threadIdx.x]));
  out[threadIdx.x] = make_float2(a.x + b.x, a.y + b.y);
}
extern "C" __global__ void histogram(const int* x, int* bins, int n) {
  __shared__ int local[16];
  if (threadIdx.x < 16) local[threadIdx.x] = 0;
  __syncthreads();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&local[x[i] & 15], 1);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&bins[threadIdx.x], local[threadIdx.x]);
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    source = folder / "kernels.cu"
    source.write_text(SOURCE)
    done = subprocess.run(
        [NVCC, "-ptx", "-arch=sm_80", str(source), "-o", str(folder / "kernels.ptx")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return ptx.parse((folder / "kernels.ptx").read_text()).kernels


def test_row_sums(kernels):
    x = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32)
    memory = ptx.DeviceMemory()
    out = memory.empty("out", 5, np.float32)
    for seed in range(3):
        ptx.launch(
            kernels["row_sums"], 5, 128, [memory.array("x", x), out, 5, 300], memory, seed=seed
        )
        np.testing.assert_allclose(out.numpy(), x.sum(axis=1), rtol=1e-4, atol=1e-5)


def collatz(n):
    count = 0
    while n != 1:
        n, count = (3 * n + 1 if n % 2 else n // 2), count + 1
    return count


def test_loops_of_different_lengths(kernels):
    n = np.arange(1, 65, dtype=np.int32)
    memory = ptx.DeviceMemory()
    out = memory.empty("out", 64, np.int32)
    ptx.launch(kernels["steps"], 1, 64, [memory.array("n", n), out], memory)
    assert out.numpy().tolist() == [collatz(int(i)) for i in n]


def test_switch_and_local_memory(kernels):
    which = np.arange(32, dtype=np.int32) % 8
    memory = ptx.DeviceMemory()
    out = memory.empty("out", 32, np.int64)
    ptx.launch(kernels["table"], 1, 32, [memory.array("which", which), out], memory)
    value = [int(w) ** 2 + t for t, w in enumerate(which)]
    act = [lambda v: v + 1000, lambda v: v * -3, lambda v: v ^ 0x5555, lambda v: v // 7,
           lambda v: v << 40, lambda v: v % 11, lambda v: -v, lambda v: -v]  # fmt: skip
    assert out.numpy().tolist() == [act[w](v) for v, w in zip(value, which, strict=True)]


def test_half_precision(kernels):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((32, 2)).astype(np.float16)
    y = rng.standard_normal((32, 2)).astype(np.float32).view(np.uint32) & 0xFFFF0000
    memory = ptx.DeviceMemory()
    out = memory.empty("out", (32, 2), np.float32)
    bits = (y >> 16).astype(np.uint16)
    args = [memory.array("x", x), memory.array("y", bits), out]
    ptx.launch(kernels["halves"], 1, 32, args, memory)
    expected = x.astype(np.float64) ** 2 + 0.5 + y.view(np.float32).astype(np.float64) ** 2
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-2)


def test_histogram(kernels):
    x = np.random.default_rng(2).integers(0, 1000, 700).astype(np.int32)
    memory = ptx.DeviceMemory()
    bins = memory.zeros("bins", 16, np.int32)
    report = ptx.launch(kernels["histogram"], 6, 128, [memory.array("x", x), bins, 700], memory)
    np.testing.assert_array_equal(bins.numpy(), np.bincount(x & 15, minlength=16))
    assert report.atomics == {"bins": 96}
