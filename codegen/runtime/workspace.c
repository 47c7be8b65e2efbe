// Scratch memory of kernels: a stack per thread that only grows, so that no tile calls malloc.
#include <pthread.h>
#include <stdlib.h>
#include <tvm/ffi/c_api.h>

#include "runtime.h"

enum { ALIGNMENT = 64, FIRST_BLOCK = 64 << 10 };

// The most that a thread keeps between kernels. A block is pushed when the one below is too small for
// what is in use at once, so that it is never larger than twice that: a thread keeps
// min(MOST_KEPT, max(FIRST_BLOCK, 2 * need)), until it ends.
enum { MOST_KEPT = 64 << 20 };

// Blocks are chained because a live allocation must not move; as each is at least twice the size of the
// one below, a thread that repeats its work soon runs in a single block.
typedef struct Block {
  struct Block *below;
  size_t size, used;
} Block;

static _Thread_local Block *stack_top;
static pthread_key_t at_thread_exit;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static char *payload(Block *block) { return (char *)block + ALIGNMENT; }

static void free_blocks(void *top) {
  for (Block *block = top; block;) {
    Block *below = block->below;
    free(block);
    block = below;
  }
}

static void create_key(void) { pthread_key_create(&at_thread_exit, free_blocks); }

static Block *push_block(size_t nbytes) {
  size_t size = stack_top ? 2 * stack_top->size : FIRST_BLOCK;
  if (size < nbytes) size = nbytes;
  Block *block = aligned_alloc(ALIGNMENT, ALIGNMENT + size);
  if (!block) return NULL;
  *block = (Block){.below = stack_top, .size = size};
  stack_top = block;
  pthread_once(&once, create_key);
  pthread_setspecific(at_thread_exit, stack_top);
  return block;
}

static void drop_empty_blocks_below(Block *block) {
  while (block->below && !block->below->used) {
    Block *empty = block->below;
    block->below = empty->below;
    free(empty);
  }
}

// At rest one block is left, unless it is large.
static void drop_what_is_not_kept(void) {
  if (!stack_top || stack_top->used) return;
  drop_empty_blocks_below(stack_top);
  if (stack_top->below || stack_top->size <= MOST_KEPT) return;
  free(stack_top);
  stack_top = NULL;
  pthread_setspecific(at_thread_exit, NULL);
}

void abandon_workspace(void) {
  for (Block *block = stack_top; block; block = block->below) block->used = 0;
  drop_what_is_not_kept();
}

static void *alloc_workspace(int device_type, int device_id, uint64_t nbytes, int code, int bits) {
  (void)device_type, (void)device_id, (void)code, (void)bits;
  uint64_t rounded = (nbytes / ALIGNMENT + 1) * ALIGNMENT;  // never empty: each address is in its block
  Block *block = stack_top;
  // PTRDIFF_MAX / 4 leaves room for the header, and for doubling.
  if (nbytes <= PTRDIFF_MAX / 4 && (!block || block->size - block->used < rounded))
    block = push_block(rounded);
  if (nbytes > PTRDIFF_MAX / 4 || !block) {
    abandon_workspace();
    TVMFFIErrorSetRaisedFromCStr("MemoryError", "no memory for a kernel's workspace");
    return NULL;
  }
  void *address = payload(block) + block->used;
  block->used += rounded;
  return address;
}

static int free_workspace(int device_type, int device_id, void *address) {
  (void)device_type, (void)device_id;
  for (Block *block = stack_top; block; block = block->below) {
    ptrdiff_t offset = (char *)address - payload(block);
    if (offset < 0 || (size_t)offset >= block->size) continue;
    block->used = offset;
    drop_what_is_not_kept();
    return 0;
  }
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a kernel freed a workspace it does not own");
  return -1;
}

KERNEL_HOOK void *__TVMBackendAllocWorkspace = alloc_workspace;
KERNEL_HOOK void *__TVMBackendFreeWorkspace = free_workspace;
