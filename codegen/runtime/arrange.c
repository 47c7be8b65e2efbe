// A kernel behind another order of arguments, for callers that have their own: XLA hands over what is
// read, then what is written, then numbers, and has no zeros in what is written. In C and C++ alike.
#include <stdlib.h>
#include <tvm/ffi/c_api.h>

#include "runtime.h"

enum { MAX_ARGUMENTS = 64 };

// Where a kernel's argument comes from. ZEROED: it is filled with zeros before. WIDE: the caller's pairs
// of 32-bit words are the kernel's 64-bit integers, which JAX has only where it is told to.
enum { PLAIN, ZEROED, WIDE, HOWS };

typedef struct {
  int from, how;
} Place;

typedef struct {
  TVMFFIObjectHandle kernel;
  int count;
  Place places[MAX_ARGUMENTS];
} Arrangement;

static int fail(const char *kind, const char *message) {
  TVMFFIErrorSetRaisedFromCStr(kind, message);
  return -1;
}

static DLTensor *tensor_of(const TVMFFIAny *value) {
  if (value->type_index == kTVMFFIDLTensorPtr) return (DLTensor *)value->v_ptr;
  if (value->type_index != kTVMFFITensor) return NULL;
  return (DLTensor *)((char *)value->v_ptr + sizeof(TVMFFIObject));
}

// ``words`` (2 n,) of 32 bits as (n,) of 64.
static int widen(const DLTensor *words, DLTensor *wide, int64_t *length) {
  if (words->ndim != 1 || words->dtype.bits != 32 || words->shape[0] % 2 ||
      (words->strides && words->strides[0] != 1))
    return fail("TypeError", "64-bit integers are given as a row of pairs of 32-bit words");
  *length = words->shape[0] / 2;
  *wide = *words;
  wide->shape = length;
  wide->dtype.code = kDLInt;
  wide->dtype.bits = 64;
  return 0;
}

static int call(void *self, const TVMFFIAny *args, int32_t num_args, TVMFFIAny *result) {
  const Arrangement *arrangement = (const Arrangement *)self;
  TVMFFIAny chosen[MAX_ARGUMENTS];
  DLTensor wide;
  int64_t length;
  for (int n = 0; n < arrangement->count; ++n) {
    Place place = arrangement->places[n];
    if (place.from >= num_args) return fail("TypeError", "a kernel was given too few arguments");
    chosen[n] = args[place.from];
    if (place.how == PLAIN) continue;
    DLTensor *tensor = tensor_of(&chosen[n]);
    if (!tensor) return fail("TypeError", "a kernel was given a number in place of a tensor");
    if (place.how == ZEROED && tvm_flash_zero(tensor)) return -1;
    if (place.how == WIDE) {
      if (widen(tensor, &wide, &length)) return -1;
      chosen[n].type_index = kTVMFFIDLTensorPtr;
      chosen[n].v_ptr = &wide;
    }
  }
  return TVMFFIFunctionCall(arrangement->kernel, chosen, arrangement->count, result);
}

static void drop(void *self) {
  TVMFFIObjectDecRef(((Arrangement *)self)->kernel);
  free(self);
}

static int is_int(const TVMFFIAny *value, int64_t limit) {
  return value->type_index == kTVMFFIInt && value->v_int64 >= 0 && value->v_int64 < limit;
}

// (kernel, from, how, from, how...): a function that calls ``kernel`` with those of its own arguments.
EXPORTED int32_t __tvm_ffi_tvm_flash_arranged(void *self, const TVMFFIAny *args, int32_t num_args,
                                              TVMFFIAny *result) {
  (void)self;
  if (num_args < 1 || num_args > 2 * MAX_ARGUMENTS + 1 || num_args % 2 == 0 ||
      args[0].type_index != kTVMFFIFunction)
    return fail("TypeError", "tvm_flash_arranged takes a kernel and pairs (from, how)");
  Arrangement *made = (Arrangement *)calloc(1, sizeof(Arrangement));
  if (!made) return fail("MemoryError", "no memory for an arrangement of arguments");
  made->kernel = args[0].v_obj;
  TVMFFIObjectIncRef(made->kernel);
  int wide = 0;
  for (const TVMFFIAny *pair = args + 1; pair < args + num_args; pair += 2) {
    if (!is_int(pair, 1 << 16) || !is_int(pair + 1, HOWS) || (wide += pair[1].v_int64 == WIDE) > 1) {
      drop(made);
      return fail("ValueError", "tvm_flash_arranged: pairs are (from, how), how below 3, once 2");
    }
    Place place = {(int)pair[0].v_int64, (int)pair[1].v_int64};
    made->places[made->count++] = place;
  }
  TVMFFIObjectHandle function = NULL;
  if (TVMFFIFunctionCreate(made, call, drop, &function)) {
    drop(made);
    return -1;
  }
  result->type_index = kTVMFFIFunction;
  result->v_obj = (TVMFFIObject *)function;
  return 0;
}
