"""The C++ example runs a CPU library, compiled with CUDA and without; its C header is C."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tvm_ffi import libinfo

from tvm_flash.codegen.build import build
from tvm_flash.codegen.cuda_link import find_cxx_compiler
from tvm_flash.codegen.linker import find_compiler
from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import BuildError
from tvm_flash.problem.spec import AttentionSpec

SOURCES = Path(__file__).resolve().parents[2] / "examples" / "cpp"
INCLUDES = [f"-I{path}" for path in (*libinfo.include_paths(), SOURCES)]
LIBRARY = Path(libinfo.find_libtvm_ffi())
SPEC = AttentionSpec(dtype="bfloat16", head_dim=64)

C_PROGRAM = """
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "tvm_flash.h"
enum { B = 1, S = 9, H = 2, D = 64 };
static DLTensor tensor(void *data, int code, int bits, int ndim, int64_t *shape, int64_t *strides) {
  DLTensor it = {data, {kDLCPU, 0}, ndim, {(uint8_t)code, (uint8_t)bits, 1}, shape, strides, 0};
  return it;
}
int main(int argc, char **argv) {
  int64_t rows[] = {B, S, H, D}, row_strides[] = {S * H * D, H * D, D, 1};
  int64_t sums[] = {B, H, S}, sum_strides[] = {H * S, S, 1};
  static uint16_t data[4][B * S * H * D] __attribute__((aligned(64)));
  static float lse[B * H * S] __attribute__((aligned(64)));
  DLTensor tensors[5];
  TVMFFIAny args[6], result = {0};
  for (int n = 0; n < 4; ++n) {
    for (int i = 0; i < B * S * H * D; ++i) data[n][i] = n < 3 ? 0x3F80 : 0;
    tensors[n] = tensor(data[n], kDLBfloat, 16, 4, rows, row_strides);
  }
  tensors[TVM_FLASH_LSE] = tensor(lse, kDLFloat, 32, 3, sums, sum_strides);
  for (int n = 0; n < 5; ++n) args[n] = tvm_flash_tensor(&tensors[n]);
  args[TVM_FLASH_FORWARD_SCALE] = tvm_flash_scalar(0.125);
  tvm_flash_allow_tiles();
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s", dlerror()), 1;
  tvm_flash_function attention = (tvm_flash_function)dlsym(library, argv[2]);
  if (attention(NULL, args, 6, &result)) {
    TVMFFIObjectHandle error;
    TVMFFIErrorMoveFromRaised(&error);
    TVMFFIByteArray message = tvm_flash_message(error);
    fprintf(stderr, "%.*s", (int)message.size, message.data);
    return 1;
  }
  printf("%04x %.4f\\n", data[3][100], lse[5]);
  return argc != 3;
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> Path:
    """A CPU library with the forward of SPEC."""
    folder = tmp_path_factory.mktemp("kernels") / "kernels"
    return build([SPEC], "llvm", folder, directions=["forward"]) / "kernels.so"


def compiled(compiler: list[str], source: Path, *flags: str) -> Path:
    program = source.parent / "program"
    libraries = [f"-L{LIBRARY.parent}", "-ltvm_ffi", f"-Wl,-rpath,{LIBRARY.parent}"]
    command = [*compiler, str(source), "-o", str(program), *INCLUDES, *flags, *libraries]
    done = subprocess.run([*command, "-ldl", "-lrt", "-lpthread"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module", params=["without CUDA", "with CUDA"])
def example(tmp_path_factory, request) -> Path:
    """The program, compiled without CUDA's headers, and with them where there is a toolkit."""
    flags = ["-std=c++17", "-Wall", "-Werror"]
    if request.param == "with CUDA":
        try:
            toolkit = find_toolkit()
        except BuildError as error:
            pytest.skip(f"no CUDA headers: {error}")
        flags += ["-DWITH_CUDA", f"-I{toolkit.include}", str(toolkit.library)]
    source = tmp_path_factory.mktemp("cpp") / "attention.cpp"
    source.write_text((SOURCES / "attention.cpp").read_text())
    return compiled(find_cxx_compiler(), source, *flags)


def run(*command) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ)


def test_example_runs_on_the_cpu(example, kernels):
    done = run(example, kernels, f"{SPEC.name}_fwd", "cpu")
    assert (done.returncode, done.stdout) == (0, "right: 38400 values are 1\n"), done.stderr


def test_example_reports_errors(example, kernels):
    assert run(example).returncode == 2
    done = run(example, "/nowhere.so", f"{SPEC.name}_fwd", "cpu")
    assert done.returncode == 1 and "nowhere.so" in done.stderr


def test_without_cuda_it_says_what_gpus_need(example, kernels):
    done = run(example, kernels, f"{SPEC.name}_fwd", "cuda")
    assert done.returncode == 1
    assert "-DWITH_CUDA" in done.stderr or "no memory for a tensor" in done.stderr


def test_header_is_c(tmp_path, kernels):
    source = tmp_path / "attention.c"
    source.write_text(C_PROGRAM)
    program = compiled(find_compiler(), source, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-lm")
    done = run(program, kernels, f"__tvm_ffi_{SPEC.name}_fwd")
    # D / 8 + log(9)
    assert done.stdout.split() == ["3f80", "10.1972"], done.stderr
