/* How the functions of a tvm-flash library are called from C, through tvm-ffi's C interface.
 *
 * A library (kernels.so of an artifact) exports one function per spec and direction, named
 * __tvm_ffi_{symbol}; its manifest.json lists the symbols. On CPUs there may be more for other
 * lengths, such as attn_bf16_d64_fwd_decode: each is right for all lengths, and fast for those that
 * the manifest names. All have the type tvm_flash_function.
 *
 *   TVM_FLASH_DECLARE(attn_bf16_d64_causal_fwd);
 *   TVMFFIAny args[] = {tvm_flash_tensor(&q), ..., tvm_flash_scalar(0.125)}, result = {0};
 *   if (TVM_FLASH(attn_bf16_d64_causal_fwd)(NULL, args, 6, &result)) {
 *     TVMFFIObjectHandle error;
 *     TVMFFIErrorMoveFromRaised(&error);
 *     ... tvm_flash_message(error) ...
 *     TVMFFIObjectDecRef(error);
 *   }
 *
 * Tensors are DLTensors on the device that the library was built for, their last axis contiguous,
 * their first element aligned to 16 bytes, byte_offset 0. On CUDA the kernels run on the stream that
 * TVMFFIEnvSetStream set for the device, allocate nothing and do not wait.
 */
#ifndef TVM_FLASH_H_
#define TVM_FLASH_H_

#include <string.h>
#include <tvm/ffi/c_api.h>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* 0, or -1 with an error raised. `self` is not used. */
typedef int (*tvm_flash_function)(void *self, const TVMFFIAny *args, int32_t num_args,
                                  TVMFFIAny *result);

#define TVM_FLASH(symbol) __tvm_ffi_##symbol
#define TVM_FLASH_DECLARE(symbol)                                                             \
  int TVM_FLASH(symbol)(void *self, const TVMFFIAny *args, int32_t num_args, TVMFFIAny *result)

/* Arguments of {spec}_fwd. q, k, v and out are (B, S, H, D), lse is (B, H, Sq) float32 and absent
 * where the spec returns "out" alone. A spec with a score_mod has lse_low after lse, of the same
 * shape: what lse lost in rounding; all that follows is one further. Captured tensors stand before
 * the scale: ALiBi slopes, then those of score_mod and mask_mod. After the scale stand the other
 * numbers that the spec has, in this order: window_left and window_right (integers, 0 to 2^30) and
 * softcap (2^-126 to 2^126). */
enum tvm_flash_forward {
  TVM_FLASH_Q,
  TVM_FLASH_K,
  TVM_FLASH_V,
  TVM_FLASH_OUT,
  TVM_FLASH_LSE,
  TVM_FLASH_FORWARD_SCALE /* without captured tensors */
};

/* Arguments of {spec}_bwd; {spec}_bwd_det has no dq_acc, and what follows it is one before. lse is
 * the forward's, as is lse_low, which follows it where the spec has a score_mod (all others are one
 * further then); dlse is lse's gradient (zeros if none). Numbers follow the scale as in the forward.
 * delta (B, H, Sq) and dq_acc (C, B, H, Sq_pad, D_pad) are workspace, float32: delta of any content,
 * dq_acc zeroed; Sq_pad is Sq rounded up to the manifest's block_q, D_pad its head_dim_pad, and C is 1
 * (on CPUs, the number of key tiles that may run at once). The manifest lists the arguments of each
 * kernel too. */
enum tvm_flash_backward {
  TVM_FLASH_BACKWARD_Q,
  TVM_FLASH_BACKWARD_K,
  TVM_FLASH_BACKWARD_V,
  TVM_FLASH_BACKWARD_OUT,
  TVM_FLASH_BACKWARD_DOUT,
  TVM_FLASH_BACKWARD_LSE,
  TVM_FLASH_BACKWARD_DLSE,
  TVM_FLASH_BACKWARD_DQ,
  TVM_FLASH_BACKWARD_DK,
  TVM_FLASH_BACKWARD_DV,
  TVM_FLASH_BACKWARD_DELTA,
  TVM_FLASH_BACKWARD_DQ_ACC,
  TVM_FLASH_BACKWARD_SCALE, /* without captured tensors */
  TVM_FLASH_DETERMINISTIC_SCALE = TVM_FLASH_BACKWARD_DQ_ACC
};

/* Before the first call of a CPU library for x86-64-v4+amx, once in a process: asks Linux for the state
 * of tiles (arch_prctl, ARCH_REQ_XCOMP_PERM, 18), without which the first one is SIGILL. */
static inline void tvm_flash_allow_tiles(void) {
#if defined(__x86_64__) && defined(__linux__)
  syscall(SYS_arch_prctl, 0x1023, 18);
#endif
}

static inline TVMFFIAny tvm_flash_tensor(DLTensor *tensor) {
  TVMFFIAny value;
  memset(&value, 0, sizeof value);
  value.type_index = kTVMFFIDLTensorPtr;
  value.v_ptr = tensor;
  return value;
}

static inline TVMFFIAny tvm_flash_scalar(double number) {
  TVMFFIAny value;
  memset(&value, 0, sizeof value);
  value.type_index = kTVMFFIFloat;
  value.v_float64 = number;
  return value;
}

static inline TVMFFIAny tvm_flash_integer(int64_t number) {
  TVMFFIAny value;
  memset(&value, 0, sizeof value);
  value.type_index = kTVMFFIInt;
  value.v_int64 = number;
  return value;
}

/* What a raised error says: .data of .size bytes, alive as long as the error. */
static inline TVMFFIByteArray tvm_flash_message(TVMFFIObjectHandle error) {
  return ((const TVMFFIErrorCell *)((const char *)error + sizeof(TVMFFIObject)))->message;
}

#ifdef __cplusplus
}
#endif

#endif /* TVM_FLASH_H_ */
