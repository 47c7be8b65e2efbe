// What a compiled kernel expects of its surroundings, and what the two halves of this shim share.
#ifndef TVM_FLASH_RUNTIME_H_
#define TVM_FLASH_RUNTIME_H_

#include <stddef.h>
#include <stdint.h>
#include <tvm/ffi/c_api.h>

#ifdef __cplusplus
#define EXPORTED extern "C" __attribute__((visibility("default")))
#define HIDDEN extern "C" __attribute__((visibility("hidden")))
#else
#define EXPORTED __attribute__((visibility("default")))
#define HIDDEN __attribute__((visibility("hidden")))
#endif

// Hidden: the objects that LLVM emits carry weak, exported, null pointers of the same names. The linker
// lets a strong definition win and the strictest visibility hold, so these values are in place before
// anybody loads the library, and no loader (libtvm's, say) can find the pointers and rebind them.
#define KERNEL_HOOK __attribute__((visibility("hidden")))

// Forget every scratch allocation of the calling thread: its kernel has failed and will free nothing.
KERNEL_HOOK void abandon_workspace(void);

// Fill a dense tensor with zeros where it lies: in zero.c, or on a GPU's stream in cuda_runtime_hook.cpp.
// Not 0: an error was raised.
HIDDEN int tvm_flash_zero(DLTensor *tensor);

static inline size_t bytes_of(const DLTensor *tensor) {
  size_t bytes = (tensor->dtype.bits * tensor->dtype.lanes + 7) / 8;
  for (int axis = 0; axis < tensor->ndim; ++axis) bytes *= tensor->shape[axis];
  return bytes;
}

#endif  // TVM_FLASH_RUNTIME_H_
