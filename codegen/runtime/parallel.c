// T.parallel of compiled kernels, run by the OpenMP runtime that the process (torch) already uses.
#define _GNU_SOURCE  // RTLD_DEFAULT
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <tvm/ffi/c_api.h>

#include "runtime.h"

// Iterations differ in cost (a causal query tile sees few keys or all of them): so many tasks per
// thread, and whoever is free takes the next.
enum { TASKS_PER_THREAD = 32 };

typedef struct {  // TVMParallelGroupEnv
  void *sync_handle;
  int32_t num_task;
} TaskGroup;

typedef int (*Task)(int task_id, TaskGroup *group, void *closure);  // FTVMParallelLambda

// GOMP_parallel, the number of threads the caller may use, and omp_in_parallel. No OpenMP library is
// linked: two of them in a process are two pools that take each other's cores.
typedef void (*RunTeam)(void (*work)(void *), void *data, unsigned threads, unsigned flags);
typedef int (*Query)(void);

static struct {
  RunTeam run_team;
  Query threads, in_parallel;
  int is_bound;
} openmp;

// Of a process that has none (null): kernels then run on the calling thread.
EXPORTED void tvm_flash_bind_threads(RunTeam run_team, Query threads, Query in_parallel) {
  openmp.run_team = run_team;
  openmp.threads = threads;
  openmp.in_parallel = in_parallel;
  openmp.is_bound = 1;
}

static int find_openmp(void *scope) {
  RunTeam run_team = (RunTeam)dlsym(scope, "GOMP_parallel");
  Query threads = (Query)dlsym(scope, "omp_get_max_threads");
  Query in_parallel = (Query)dlsym(scope, "omp_in_parallel");
  if (!run_team || !threads || !in_parallel) return 0;
  tvm_flash_bind_threads(run_team, threads, in_parallel);
  return 1;
}

// Where nobody bound one before the first call (JAX, C++): the one that the process shows, else the
// system's, GCC's or LLVM's, which exports the same names. Without any, the calling thread works alone.
static void find_any_openmp(void) {
  static const char *const names[] = {"libgomp.so.1", "libomp.so.5", "libomp.so", "libomp.dylib"};
  if (openmp.is_bound || find_openmp(RTLD_DEFAULT)) return;
  for (size_t n = 0; n < sizeof names / sizeof *names; ++n) {
    void *library = dlopen(names[n], RTLD_LAZY | RTLD_LOCAL);
    if (library && find_openmp(library)) return;
  }
}

// A problem of so many multiplications is not worth a team: done in about 10 us, while a team that has
// gone to sleep takes longer to wake, and one that lost its cores to others takes a time slice
// (measured: docs/performance-cpu.md, "Threads for small problems").
enum { SMALL = 1 << 18 };

// Iterations of the calling thread's next parallel loop (0: nobody said), and whether its function has
// so little to do that the thread does it alone.
static _Thread_local int64_t iterations;
static _Thread_local int alone;

// Kernels call this before each parallel loop (codegen/iteration_counts.py). work: multiplications.
KERNEL_HOOK int32_t tvm_flash_iterations(int64_t count, int64_t work) {
  iterations = count;
  alone = count == 1 || work <= SMALL;
  return 0;
}

typedef struct {
  Task task;
  void *closure;
  TaskGroup group;
  atomic_int next;
  _Atomic(TVMFFIObjectHandle) error;
} Job;

// A raised error belongs to the thread that raised it: carry the first one to the caller's thread.
static void keep_error(Job *job) {
  TVMFFIObjectHandle error = NULL, none = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (!error) {
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a kernel's parallel task failed");
    TVMFFIErrorMoveFromRaised(&error);
  }
  if (!atomic_compare_exchange_strong(&job->error, &none, error)) TVMFFIObjectDecRef(error);
}

static void work(void *data) {
  Job *job = data;
  while (!atomic_load(&job->error)) {
    int id = atomic_fetch_add(&job->next, 1);
    if (id >= job->group.num_task) return;
    if (job->task(id, &job->group, job->closure)) {
      keep_error(job);
      abandon_workspace();
    }
  }
}

static int usable_threads(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, find_any_openmp);
  if (!openmp.run_team || openmp.in_parallel()) return 1;
  int threads = openmp.threads();
  return threads > 1 ? threads : 1;
}

// What a kernel sizes its tiles by; its object carries a weak definition that answers 1.
__attribute__((visibility("hidden"))) int32_t tvm_flash_usable_threads(void) { return usable_threads(); }

static int parallel_launch(Task task, void *closure, int num_task) {
  int64_t count = iterations;
  // Not fewer threads than usual where there are a few: OpenMP ends the threads that a smaller team
  // leaves out, and starting them anew is slow.
  int threads = alone ? 1 : usable_threads();
  iterations = alone = 0;
  if (num_task <= 0) num_task = threads == 1 ? 1 : threads * TASKS_PER_THREAD;
  if (0 < count && count < num_task) num_task = count;
  Job job = {.task = task, .closure = closure, .group = {.num_task = num_task}};
  if (threads == 1)
    work(&job);
  else
    openmp.run_team(work, &job, threads, 0);
  TVMFFIObjectHandle error = atomic_load(&job.error);
  if (!error) return 0;
  TVMFFIErrorSetRaised(error);
  TVMFFIObjectDecRef(error);
  return -1;
}

// Tasks are not threads here: waiting for one another would hang.
static int parallel_barrier(int task_id, TaskGroup *group) {
  (void)task_id, (void)group;
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", "kernels may not use a barrier between parallel tasks");
  return -1;
}

KERNEL_HOOK void *__TVMBackendParallelLaunch = parallel_launch;
KERNEL_HOOK void *__TVMBackendParallelBarrier = parallel_barrier;
