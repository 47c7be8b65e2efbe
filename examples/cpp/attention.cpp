// Attention from C++: load a library, call it on tensors of ones, look at the result. See README.md.
// -DWITH_CUDA: on GPUs too, with CUDA's headers and runtime; CPUs need neither.
#ifdef WITH_CUDA
#include <cuda_runtime_api.h>
#endif
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace ffi = tvm::ffi;

// Memory of a device, aligned to 64 bytes or more; nullptr where there is none.
void *allocate(DLDeviceType where, size_t bytes) {
  if (where == kDLCPU) return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
#ifdef WITH_CUDA
  void *memory = nullptr;
  return cudaMalloc(&memory, bytes) ? nullptr : memory;
#else
  throw std::runtime_error("GPUs: compile this program with -DWITH_CUDA");
#endif
}

void release(DLDeviceType where, void *memory) {
  if (where == kDLCPU) std::free(memory);
#ifdef WITH_CUDA
  else (void)cudaFree(memory);
#endif
}

// From or to a device.
void copy(DLDeviceType where, void *to, const void *from, size_t bytes) {
  if (where == kDLCPU) std::memcpy(to, from, bytes);
#ifdef WITH_CUDA
  // cudaMemcpyDefault finds out where each side lies, but needs a driver.
  else if (cudaMemcpy(to, from, bytes, cudaMemcpyDefault)) throw std::runtime_error("cudaMemcpy");
#endif
}

// (B, S, H, D) of bfloat16, or (B, H, S) of float32, on a device.
struct Tensor : DLTensor {
  std::vector<int64_t> sizes, steps;

  Tensor(DLDevice where, DLDataType type, std::vector<int64_t> shape) : sizes(shape), steps(shape) {
    int64_t count = 1;
    for (size_t n = shape.size(); n-- > 0; count *= shape[n]) steps[n] = count;
    bytes = count * type.bits / 8;
    void *memory = allocate(where.device_type, bytes);
    if (!memory) throw std::runtime_error("no memory for a tensor on this device");
    *static_cast<DLTensor *>(this) = {memory, where, int32_t(shape.size()), type,
                                      sizes.data(), steps.data(), 0};
  }
  ~Tensor() { release(device.device_type, data); }
  Tensor(const Tensor &) = delete;

  size_t bytes;
};

// Linux gives a process the state of AMX tiles when it asks (arch_prctl, ARCH_REQ_XCOMP_PERM, 18);
// where there is no AMX it refuses, and no library needs it.
void allow_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  syscall(SYS_arch_prctl, 0x1023, 18);
#endif
}

int main(int argc, char **argv) try {
  if (argc != 4) return std::fprintf(stderr, "usage: attention kernels.so symbol cpu|cuda\n"), 2;
  allow_tiles();
  const int64_t B = 2, S = 100, H = 3, D = 64;
  const DLDataType bf16{kDLBfloat, 16, 1}, f32{kDLFloat, 32, 1};
  const DLDevice device{std::strcmp(argv[3], "cuda") ? kDLCPU : kDLCUDA, 0};
  Tensor q(device, bf16, {B, S, H, D}), k(device, bf16, {B, S, H, D}), v(device, bf16, {B, S, H, D});
  Tensor out(device, bf16, {B, S, H, D}), lse(device, f32, {B, H, S});
  std::vector<uint16_t> ones(B * S * H * D, 0x3F80), result(ones.size());
  for (Tensor *tensor : {&q, &k, &v})
    copy(device.device_type, tensor->data, ones.data(), tensor->bytes);

  ffi::Module library = ffi::Module::LoadFromFile(argv[1]);
  ffi::Function attention = library->GetFunction(argv[2]).value();
  DLTensor *tensors[] = {&q, &k, &v, &out, &lse};
  attention(tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], 1.0 / std::sqrt(double(D)));

  copy(device.device_type, result.data(), out.data, out.bytes);
  for (uint16_t value : result)  // the mean of ones
    if (value != 0x3F80) return std::printf("wrong: 0x%04x\n", value), 1;
  return std::printf("right: %zu values are 1\n", result.size()), 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
