// The only caller of the CUDA runtime in a library: dispatch by device, launches, and their hook.
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>
#include <tvm/ffi/extra/c_env_api.h>

#include <mutex>

#include "cuda_dispatch.h"
#include "runtime.h"

namespace {

// Takes a launch in place of the GPU; not 0 is a failure.
using Hook = int (*)(const char *kernel, const unsigned *grid, const unsigned *block,
                     unsigned shared_bytes, void **args);

// Set by tests alone, before they call anything.
Hook hook = nullptr;
int hook_capability = 0;
bool hook_plain = false;

enum { MAX_DEVICES = 64 };
std::atomic<int> capabilities[MAX_DEVICES];  // 0: not asked yet

int32_t raise(const char *kind, const char *name, const char *what, const char *then = "") {
  const char *parts[] = {name, ": ", what, then};
  TVMFFIErrorSetRaisedFromCStrParts(kind, parts, 4);
  return -1;
}

const DLTensor *tensor_of(const TVMFFIAny &value) {
  if (value.type_index == kTVMFFIDLTensorPtr) return static_cast<DLTensor *>(value.v_ptr);
  if (value.type_index != kTVMFFITensor) return nullptr;
  return reinterpret_cast<DLTensor *>(static_cast<char *>(value.v_ptr) + sizeof(TVMFFIObject));
}

cudaError_t ask_capability(int device, int *number) {
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (!error) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  *number = 10 * major + minor;
  return error;
}

// 10 * major + minor of ``device``, asked once.
cudaError_t capability_of(int device, int *number) {
  if (hook) return *number = hook_capability, cudaSuccess;
  if (device < 0 || device >= MAX_DEVICES) return ask_capability(device, number);
  *number = capabilities[device].load(std::memory_order_relaxed);
  if (*number) return cudaSuccess;
  cudaError_t error = ask_capability(device, number);
  if (!error) capabilities[device].store(*number, std::memory_order_relaxed);
  return error;
}

// The highest architecture of ``variant`` that is not above ``device``, 0 if there is none; both are ranks.
int nearest_arch(const tvm_flash::Variant &variant, int device, bool same_major) {
  int nearest = 0;
  for (int n = 0; n < variant.num_archs; ++n) {
    int arch = variant.archs[n];
    if (same_major && arch / 100 != device / 100) continue;
    if (arch % 10 && arch / 10 != device / 10) continue;
    if (arch <= device && arch > nearest) nearest = arch;
  }
  return nearest;
}

// Machine code runs on its own major version, on the same or a higher minor one.
const tvm_flash::Variant *by_machine_code(const tvm_flash::Function &function, int device) {
  const tvm_flash::Variant *best = nullptr;
  int best_arch = 0;
  for (int n = 0; n < function.num_variants; ++n) {
    int arch = nearest_arch(function.variants[n], device, true);
    if (arch > best_arch) best = &function.variants[n], best_arch = arch;
  }
  return best;
}

// PTX runs on all later devices: the newest, and of equals the one made for the nearest device.
const tvm_flash::Variant *by_ptx(const tvm_flash::Function &function, int device, int shared) {
  const tvm_flash::Variant *best = nullptr;
  int best_arch = 0;
  for (int n = 0; n < function.num_variants; ++n) {
    const tvm_flash::Variant &variant = function.variants[n];
    if (!variant.ptx || variant.ptx > device / 10 || variant.shared_bytes > shared) continue;
    int arch = nearest_arch(variant, device, false);
    if (best && (variant.ptx < best->ptx || (variant.ptx == best->ptx && arch <= best_arch))) continue;
    best = &variant, best_arch = arch;
  }
  return best;
}

// Most shared memory that a block of ``device`` may ask for.
cudaError_t shared_limit(int device, int *bytes) {
  if (hook) return *bytes = 227 << 10, cudaSuccess;
  return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

int32_t raise_no_code(const tvm_flash::Function &function, int capability) {
  char text[160];
  snprintf(text, sizeof text,
           "no code for a device of compute capability %d.%d: build for target cuda:sm_%d; "
           "this library has ",
           capability / 10, capability % 10, capability);
  return raise("RuntimeError", function.name, text, function.built_for);
}

int32_t raise_cuda(const tvm_flash::Function &function, cudaError_t error) {
  cudaGetLastError();
  const char *advice = error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice
                           ? " (this machine has no NVIDIA driver, or one that is too old)"
                           : "";
  const char *parts[] = {function.name, ": CUDA cannot be used: ", cudaGetErrorString(error), advice};
  TVMFFIErrorSetRaisedFromCStrParts("RuntimeError", parts, 4);
  return -1;
}

// The start of a dense tensor's memory as a tensor of fewer columns.
class Narrowed {
 public:
  // False for what cannot be narrowed: the launcher then says what is wrong with it.
  bool narrow(const TVMFFIAny &value, int64_t columns) {
    const DLTensor *tensor = tensor_of(value);
    if (!tensor || tensor->ndim < 1 || tensor->ndim > MAX_DIMENSIONS) return false;
    view = *tensor;
    int64_t dense = 1, stride = 1;
    for (int axis = tensor->ndim - 1; axis >= 0; --axis) {
      int64_t extent = tensor->shape[axis];
      if (tensor->strides && extent > 1 && tensor->strides[axis] != dense) return false;
      shape[axis] = axis == tensor->ndim - 1 ? columns : extent;
      strides[axis] = stride;
      dense *= extent, stride *= shape[axis];
    }
    view.shape = shape, view.strides = strides;
    return columns <= tensor->shape[tensor->ndim - 1];
  }

  TVMFFIAny argument() {
    TVMFFIAny value = {};
    value.type_index = kTVMFFIDLTensorPtr;
    value.v_ptr = &view;
    return value;
  }

 private:
  enum { MAX_DIMENSIONS = 8 };
  DLTensor view;
  int64_t shape[MAX_DIMENSIONS], strides[MAX_DIMENSIONS];
};

int32_t run(const tvm_flash::Variant &variant, const TVMFFIAny *args, void *result) {
  TVMFFIAny chosen[tvm_flash::MAX_ARGUMENTS];
  Narrowed workspace;
  bool narrowed = variant.narrowed >= 0 && workspace.narrow(args[variant.narrowed], variant.columns);
  for (int s = 0; s < variant.num_steps; ++s) {
    const tvm_flash::Step &step = variant.steps[s];
    for (int n = 0; n < step.num_arguments; ++n) {
      int index = step.arguments[n];
      chosen[n] = narrowed && index == variant.narrowed ? workspace.argument() : args[index];
    }
    if (step.launch(nullptr, chosen, step.num_arguments, result)) return -1;
  }
  return 0;
}

// A capture in progress forbids what loading may do, unless this thread asks for the relaxed mode.
cudaError_t load(tvm_flash::Kernel &kernel) {
  static std::mutex lock;
  std::lock_guard<std::mutex> hold(lock);
  if (kernel.handle.load()) return cudaSuccess;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaLibrary_t library = nullptr;
  cudaKernel_t found = nullptr;
  cudaError_t error =
      cudaLibraryLoadData(&library, kernel.image, nullptr, nullptr, 0, nullptr, nullptr, 0);
  if (!error) error = cudaLibraryGetKernel(&found, library, kernel.name);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (!error) kernel.handle.store(found, std::memory_order_release);
  return error;
}

// What the runtime takes for a function: a cudaKernel_t, cast (CUDA Runtime API, "library management").
cudaError_t handle_of(tvm_flash::Kernel &kernel, const void **handle) {
  *handle = kernel.handle.load(std::memory_order_acquire);
  if (*handle) return cudaSuccess;
  cudaError_t error = load(kernel);
  *handle = kernel.handle.load();
  return error;
}

}  // namespace

int32_t tvm_flash::call(const Function &function, void *args, int32_t num_args, void *result) {
  if (num_args != function.num_parameters) {
    char text[80];
    snprintf(text, sizeof text, "takes %d arguments, was given %d", function.num_parameters,
             num_args);
    return raise("TypeError", function.name, text);
  }
  const TVMFFIAny *values = static_cast<TVMFFIAny *>(args);
  const DLTensor *first = tensor_of(values[0]);
  if (!first) return raise("TypeError", function.name, "argument 0 must be a tensor");
  if (first->device.device_type != kDLCUDA)
    return raise("ValueError", function.name, "argument 0 must be a CUDA tensor");
  int capability = 0;
  cudaError_t error = capability_of(first->device.device_id, &capability);
  if (error) return raise_cuda(function, error);
  int device = 10 * capability + !(hook && hook_plain);  // the rank of the best that it can run
  const Variant *variant = by_machine_code(function, device);
  if (!variant) {
    int shared = 0;
    error = shared_limit(first->device.device_id, &shared);
    if (error) return raise_cuda(function, error);
    variant = by_ptx(function, device, shared);
  }
  return variant ? run(*variant, values, result) : raise_no_code(function, capability);
}

bool tvm_flash::hooked() { return hook != nullptr; }

cudaError_t tvm_flash::launch(Kernel &kernel, const cudaLaunchConfig_t &config, void **args) {
  if (hook) {
    const unsigned grid[] = {config.gridDim.x, config.gridDim.y, config.gridDim.z};
    const unsigned block[] = {config.blockDim.x, config.blockDim.y, config.blockDim.z};
    return hook(kernel.name, grid, block, config.dynamicSmemBytes, args) ? cudaErrorLaunchFailure
                                                                        : cudaSuccess;
  }
  const void *handle;
  cudaError_t error = handle_of(kernel, &handle);
  return error ? error : cudaLaunchKernelExC(&config, handle, args);
}

cudaError_t tvm_flash::cudaFuncSetAttribute(Kernel &kernel, cudaFuncAttribute attribute, int value) {
  if (hook) return cudaSuccess;
  const void *handle;
  cudaError_t error = handle_of(kernel, &handle);
  return error ? error : ::cudaFuncSetAttribute(handle, attribute, value);
}

HIDDEN cudaError_t tvm_flash_get_device(int *device) {
  if (hook) return *device = 0, cudaSuccess;
  return cudaGetDevice(device);
}

HIDDEN cudaError_t tvm_flash_set_device(int device) {
  return hook ? cudaSuccess : cudaSetDevice(device);
}

// A hook's tensors lie in the memory of the CPU.
HIDDEN int tvm_flash_zero(DLTensor *tensor) {
  void *data = static_cast<char *>(tensor->data) + tensor->byte_offset;
  if (hook) return memset(data, 0, bytes_of(tensor)), 0;
  auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(kDLCUDA, tensor->device.device_id));
  cudaError_t error = cudaMemsetAsync(data, 0, bytes_of(tensor), stream);
  if (!error) return 0;
  return raise("RuntimeError", "zeros for a workspace", cudaGetErrorString(error));
}

// A test's stand-in for a device of ``capability`` (80 for 8.0), ``plain``: without instructions that it
// alone has; null gives the GPU back.
EXPORTED void tvm_flash_set_launch_hook(Hook replacement, int capability, bool plain) {
  hook = replacement;
  hook_capability = capability;
  hook_plain = plain;
}
