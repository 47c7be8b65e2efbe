// Memory on the CPU is filled with zeros by the calling thread.
#include <string.h>

#include "runtime.h"

int tvm_flash_zero(DLTensor *tensor) {
  memset((char *)tensor->data + tensor->byte_offset, 0, bytes_of(tensor));
  return 0;
}
