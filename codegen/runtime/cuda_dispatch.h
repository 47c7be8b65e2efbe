// A CUDA library's tables, which generated code fills, and the functions that read them.
#ifndef TVM_FLASH_CUDA_DISPATCH_H_
#define TVM_FLASH_CUDA_DISPATCH_H_

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

#include <atomic>

namespace tvm_flash {

// A kernel and the image (cubins and PTX) it lies in. The image is loaded at the first launch.
struct Kernel {
  const char *name;
  const unsigned char *image;
  std::atomic<const void *> handle{nullptr};

  constexpr Kernel(const char *name, const unsigned char *image) : name(name), image(image) {}
};

// The same, with the types that the launcher's values are converted to.
template <typename... Params>
struct TypedKernel : Kernel {
  using Kernel::Kernel;
};

using Launcher = int32_t (*)(void *self, void *args, int32_t num_args, void *result);

// One launch: its launcher, and which of the public arguments it takes.
struct Step {
  Launcher launch;
  const uint8_t *arguments;
  int num_arguments;
};

enum { MAX_ARGUMENTS = 64 };

// Launches that serve some architectures, and by their PTX (80, 90; 0: none) all later devices with as much
// shared memory for a block. Architectures are ranks: 10 times their number, and 1 more with instructions
// that their compute capability alone has (900: sm_90, 901: sm_90a). Argument `narrowed` (-1: none) is a
// workspace that other variants want wider: these launches take the start of its memory as rows of
// `columns`.
struct Variant {
  const int *archs;
  int num_archs;
  int ptx;
  int shared_bytes;
  const Step *steps;
  int num_steps;
  int narrowed;
  int columns;
};

struct Function {
  const char *name;
  const char *built_for;
  int num_parameters;
  const Variant *variants;
  int num_variants;
};

// Run the variant that serves the device of the first argument. 0, or -1 with an error raised.
__attribute__((visibility("hidden"))) int32_t call(const Function &function, void *args,
                                                   int32_t num_args, void *result);

__attribute__((visibility("hidden"))) cudaError_t launch(Kernel &kernel,
                                                         const cudaLaunchConfig_t &config,
                                                         void **args);

// What launchers call by this name finds it through the type of its first argument.
__attribute__((visibility("hidden"))) cudaError_t cudaFuncSetAttribute(Kernel &kernel,
                                                                       cudaFuncAttribute attribute,
                                                                       int value);

// Whether a hook has taken the place of the GPU.
__attribute__((visibility("hidden"))) bool hooked();

__attribute__((visibility("hidden"))) CUresult encode_tensor_map(
    CUtensorMap *map, CUtensorMapDataType dtype, unsigned rank, void *address,
    const cuuint64_t *extents, const cuuint64_t *strides, const cuuint32_t *box,
    const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
    CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill oob);

// What an error of encode_tensor_map says.
__attribute__((visibility("hidden"))) CUresult name_driver_error(CUresult error, const char **text);

}  // namespace tvm_flash

#endif  // TVM_FLASH_CUDA_DISPATCH_H_
