// Tensor maps of a launch: by the driver, or as the interpreter of PTX reads them.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <string.h>

#include "cuda_dispatch.h"

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's own function, without a library of the driver to link with. Null: there is none.
Encode find_encode() {
  void *found = nullptr;
  cudaDriverEntryPointQueryResult status;
  cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                       cudaEnableDefault, &status);
  return error || status != cudaDriverEntryPointSuccess ? nullptr : reinterpret_cast<Encode>(found);
}

// ptx_interpreter/tensor_map.py, LAYOUT: the driver's own bytes are a secret.
struct __attribute__((packed)) Fields {
  char magic[8];
  uint64_t address;
  uint8_t dtype, rank, swizzle, interleave, l2, oob, unused[2];
  uint64_t extents[5], strides[4];
  uint16_t box[5];
  uint8_t steps[5];
};
static_assert(sizeof(Fields) <= sizeof(CUtensorMap), "the interpreter's fields fill a tensor map");

}  // namespace

CUresult tvm_flash::name_driver_error(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_NOT_FOUND
              ? "the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12"
              : "cuTensorMapEncodeTiled refuses a tensor: its address and its strides, in bytes, must "
                "be multiples of 16";
  return CUDA_SUCCESS;
}

// TVM's launchers call it in the place of the driver's. A tensor without elements has no map: the
// driver refuses it, and no kernel reads it.
CUresult tvm_flash::encode_tensor_map(CUtensorMap *map, CUtensorMapDataType dtype, unsigned rank,
                                      void *address, const cuuint64_t *extents,
                                      const cuuint64_t *strides, const cuuint32_t *box,
                                      const cuuint32_t *steps, CUtensorMapInterleave interleave,
                                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2,
                                      CUtensorMapFloatOOBfill oob) {
  memset(map, 0, sizeof *map);
  for (unsigned axis = 0; axis < rank; ++axis)
    if (extents[axis] == 0) return CUDA_SUCCESS;
  if (!hooked()) {
    static const Encode encode = find_encode();
    if (!encode) return CUDA_ERROR_NOT_FOUND;
    return encode(map, dtype, rank, address, extents, strides, box, steps, interleave, swizzle, l2,
                  oob);
  }
  Fields fields = {};
  memcpy(fields.magic, "PTX TMAP", sizeof fields.magic);
  fields.address = reinterpret_cast<uint64_t>(address);
  fields.dtype = dtype, fields.rank = rank, fields.swizzle = swizzle;
  fields.interleave = interleave, fields.l2 = l2, fields.oob = oob;
  for (unsigned axis = 0; axis < rank; ++axis) {
    fields.extents[axis] = extents[axis], fields.box[axis] = box[axis];
    fields.steps[axis] = steps[axis];
    if (axis) fields.strides[axis - 1] = strides[axis - 1];
  }
  memcpy(map, &fields, sizeof fields);
  return CUDA_SUCCESS;
}
