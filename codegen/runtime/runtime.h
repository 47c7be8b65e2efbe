// What a compiled kernel expects of its surroundings, and what the two halves of this shim share.
#ifndef TVM_FLASH_RUNTIME_H_
#define TVM_FLASH_RUNTIME_H_

#include <stdint.h>

// Hidden: the objects that LLVM emits carry weak, exported, null pointers of the same names. The linker
// lets a strong definition win and the strictest visibility hold, so these values are in place before
// anybody loads the library, and no loader (libtvm's, say) can find the pointers and rebind them.
#define KERNEL_HOOK __attribute__((visibility("hidden")))

// Forget every scratch allocation of the calling thread: its kernel has failed and will free nothing.
KERNEL_HOOK void abandon_workspace(void);

#endif  // TVM_FLASH_RUNTIME_H_
