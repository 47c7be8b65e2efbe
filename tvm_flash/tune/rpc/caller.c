// Uploaded to a TVM RPC server beside a kernel library: opens that library as tvm_flash's loader would,
// on the machine's OpenMP instead of torch's, and calls it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

// Whoever has libgomp's entry points; libgomp itself first, it is what torch's Linux wheels bring.
static const char *const OPENMP[] = {"libgomp.so.1", "libomp.so.5", "libomp.so", "libiomp5.so"};

// arch/x86/include/uapi/asm/prctl.h: AMX tile data is state feature 18, off until a process asks.
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

enum { ZEROED_AT_ONCE = 128 << 10 };

typedef void (*RunTeam)(void (*work)(void *), void *data, unsigned threads, unsigned flags);
typedef int (*Query)(void);

static struct {
  RunTeam run_team;
  Query threads, in_parallel;
} openmp;

static TVMFFISafeCallType kernel;
static int zeroed_argument;

static int refuse(const char *message, const char *detail) {
  const char *parts[] = {message, detail};
  TVMFFIErrorSetRaisedFromCStrParts("RuntimeError", parts, 2);
  return -1;
}

static const char *text_of(const TVMFFIAny *value) {
  if (value->type_index == kTVMFFIRawStr) return value->v_c_str;
  if (value->type_index == kTVMFFISmallStr) return value->v_bytes;
  return ((const TVMFFIByteArray *)(value->v_obj + 1))->data;
}

static const DLTensor *tensor_of(const TVMFFIAny *value) {
  if (value->type_index == kTVMFFIDLTensorPtr) return value->v_ptr;
  return (const DLTensor *)(value->v_obj + 1);
}

// TVM's server serves nobody any more once the process of a session has ended with another status
// than 0. The client sees the connection end, which says as much.
static void end_quietly(int signal_number) {
  (void)signal_number;
  _exit(0);
}

static void survive_crashes(void) {
  const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
  for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) signal(fatal[i], end_quietly);
}

static int ask_for_amx(void) {
#ifdef __x86_64__
  if (!syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) return 0;
#endif
  return refuse("the server's operating system refuses AMX to its processes", "");
}

static int find_openmp(int threads) {
  void *library = NULL;
  for (size_t i = 0; !library && i < sizeof OPENMP / sizeof *OPENMP; i++)
    library = dlopen(OPENMP[i], RTLD_NOW | RTLD_GLOBAL);
  if (!library)
    return threads == 1 ? 0
                        : refuse("the server has no OpenMP library (libgomp.so.1, libomp.so, "
                                 "libiomp5.so): install one, or tune for one thread", "");
  void (*set_threads)(int) = (void (*)(int))dlsym(library, "omp_set_num_threads");
  openmp.run_team = (RunTeam)dlsym(library, "GOMP_parallel");
  openmp.threads = (Query)dlsym(library, "omp_get_max_threads");
  openmp.in_parallel = (Query)dlsym(library, "omp_in_parallel");
  if (!set_threads || !openmp.run_team || !openmp.threads || !openmp.in_parallel)
    return refuse("the server's OpenMP library lacks GOMP_parallel or an omp_ function", "");
  set_threads(threads);
  return 0;
}

// open_kernel(path, symbol, threads, zeroed_argument or -1, amx)
int __tvm_ffi_open_kernel(void *self, const TVMFFIAny *args, int32_t num_args, TVMFFIAny *result) {
  (void)self, (void)result;
  if (num_args != 5) return refuse("open_kernel takes 5 arguments", "");
  survive_crashes();
  if (find_openmp((int)args[2].v_int64)) return -1;
  if (args[4].v_int64 && ask_for_amx()) return -1;
  void *library = dlopen(text_of(&args[0]), RTLD_NOW | RTLD_LOCAL);
  if (!library) return refuse("the kernel's library does not load: ", dlerror());
  void (*bind)(RunTeam, Query, Query) =
      (void (*)(RunTeam, Query, Query))dlsym(library, "tvm_flash_bind_threads");
  kernel = (TVMFFISafeCallType)dlsym(library, text_of(&args[1]));
  if (!bind || !kernel) return refuse("not a kernel library of tvm_flash: it lacks ", text_of(&args[1]));
  if (openmp.run_team) bind(openmp.run_team, openmp.threads, openmp.in_parallel);
  zeroed_argument = (int)args[3].v_int64;
  return 0;
}

typedef struct {
  char *data;
  int64_t size;
  _Atomic int64_t next;
} Zeroing;

static void zero_pieces(void *data) {
  Zeroing *job = data;
  for (;;) {
    int64_t start = atomic_fetch_add(&job->next, ZEROED_AT_ONCE), left = job->size - start;
    if (left <= 0) return;
    memset(job->data + start, 0, left < ZEROED_AT_ONCE ? left : ZEROED_AT_ONCE);
  }
}

static int64_t bytes_of(const DLTensor *tensor) {
  int64_t size = tensor->dtype.bits / 8;
  for (int axis = 0; axis < tensor->ndim; axis++) size *= tensor->shape[axis];
  return size;
}

static char *data_of(const DLTensor *tensor) { return (char *)tensor->data + tensor->byte_offset; }

static void zero(const DLTensor *tensor) {
  Zeroing job = {.data = data_of(tensor), .size = bytes_of(tensor)};
  if (openmp.run_team && openmp.threads() > 1 && job.size > ZEROED_AT_ONCE)
    openmp.run_team(zero_pieces, &job, openmp.threads(), 0);
  else
    zero_pieces(&job);
}

// The kernel, after the zeroing that a backward asks of its caller: what a caller's time consists of.
int __tvm_ffi_call(void *self, const TVMFFIAny *args, int32_t num_args, TVMFFIAny *result) {
  if (!kernel) return refuse("call open_kernel first", "");
  if (0 <= zeroed_argument && zeroed_argument < num_args) zero(tensor_of(&args[zeroed_argument]));
  return kernel(self, args, num_args, result);
}

// copy_cpuinfo(path): the session can download files, but not those of /proc, which have no size.
int __tvm_ffi_copy_cpuinfo(void *self, const TVMFFIAny *args, int32_t num_args, TVMFFIAny *result) {
  (void)self, (void)num_args, (void)result;
  FILE *from = fopen("/proc/cpuinfo", "r"), *to = fopen(text_of(&args[0]), "w");
  if (!to) return refuse("cannot write ", text_of(&args[0]));
  for (int c; from && (c = fgetc(from)) != EOF;) fputc(c, to);
  if (from) fclose(from);
  return fclose(to) ? refuse("cannot write ", text_of(&args[0])) : 0;
}

// fill(tensor, pattern): the pattern over and over. RPC moves tens of megabytes a second, memory
// thousands.
int __tvm_ffi_fill(void *self, const TVMFFIAny *args, int32_t num_args, TVMFFIAny *result) {
  (void)self, (void)num_args, (void)result;
  const DLTensor *tensor = tensor_of(&args[0]), *pattern = tensor_of(&args[1]);
  int64_t size = bytes_of(tensor), period = bytes_of(pattern);
  if (!period) return refuse("fill needs a pattern of at least one element", "");
  for (int64_t start = 0; start < size; start += period)
    memcpy(data_of(tensor) + start, data_of(pattern), size - start < period ? size - start : period);
  return 0;
}
