// What TVM writes before its launchers, with the calls of the CUDA runtime led through our own file.
#ifndef TVM_FLASH_CUDA_HOST_H_
#define TVM_FLASH_CUDA_HOST_H_

// Before any header declares them: launchers and tvm-ffi's device guard then call these.
#define cudaGetDevice tvm_flash_get_device
#define cudaSetDevice tvm_flash_set_device

#include <math.h>
#include <stdint.h>
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/extra/cuda/device_guard.h>
#include <tvm/ffi/function.h>

#include <cuda_runtime.h>

#include "cuda_dispatch.h"

// The library links no driver: these two go through our own file as well.
#define cuTensorMapEncodeTiled tvm_flash::encode_tensor_map
#define cuGetErrorString tvm_flash::name_driver_error

// Launchers only pass pointers to these on.
struct half;
struct nv_bfloat16;

static int tvm_cuda_host_check(cudaError_t error, bool allow_unloading = false) {
  if (error == cudaSuccess || (allow_unloading && error == cudaErrorCudartUnloading)) return 0;
  const char *parts[] = {"CUDA launch: ", cudaGetErrorString(error)};
  TVMFFIErrorSetRaisedFromCStrParts("CUDAError", parts, 2);
  cudaGetLastError();
  return -1;
}

template <typename... Params, typename... Args>
static cudaError_t tvm_cuda_host_launch(tvm_flash::TypedKernel<Params...> &kernel,
                                        const cudaLaunchConfig_t *config, Args... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "kernel argument count mismatch");
  return [&](Params... values) {
    void *pointers[] = {&values...};
    return tvm_flash::launch(kernel, *config, pointers);
  }((Params)args...);
}

#endif  // TVM_FLASH_CUDA_HOST_H_
