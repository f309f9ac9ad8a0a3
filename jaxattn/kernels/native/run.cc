#include "run.h"

#include <cstdlib>

namespace jaxattn {

const Kernels& kernels_x86_64_v3();
const Kernels& kernels_x86_64_v4();
const Kernels& kernels_arm64();
const Kernels& kernels_generic();

const Kernels& kernels() {
#if defined(__x86_64__)
  static const bool has_v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512vl");
  const char* wanted = std::getenv("JAXATTN_NATIVE_ISA");  // for tests
  if (has_v4 && !(wanted && wanted[0] == '3')) return kernels_x86_64_v4();
  return kernels_x86_64_v3();
#elif defined(__aarch64__)
  return kernels_arm64();
#else
  return kernels_generic();
#endif
}

namespace {

// Tasks enough for the threads of a large machine; more would repeat the packing of keys too often.
constexpr int64_t kTasks = 16;
// Up to this many rows a head, keys are not worth packing.
constexpr int64_t kFewRows = 8;

using Task = void (*)(const Problem&, int64_t, float*);

bool run(Pool& pool, const Problem& problem, int64_t tasks, size_t scratch, Task task) {
  std::atomic<bool> enough{true};
  run_tasks(pool, tasks, [&](int64_t i) {
    float* memory = thread_memory(scratch + 16);
    if (memory)
      task(problem, i, memory);
    else
      enough = false;
  });
  return enough;
}

struct Partial {
  explicit Partial(size_t floats) : data(static_cast<float*>(std::malloc(floats * sizeof(float) + 64))) {}
  ~Partial() { std::free(data); }
  Partial(const Partial&) = delete;
  float* data;
};

int64_t splits_of(const Problem& p, int64_t blocks) {
  int64_t wanted = ceil_div(kTasks, most(1, p.B * p.K));
  return most(1, least(wanted, blocks));
}

}  // namespace

bool run_forward(Pool& pool, Problem& p) {
  const Kernels& k = kernels();
  int64_t rows = p.T * (p.H / p.K);
  if (rows > kFewRows) {
    p.splits = splits_of(p, ceil_div(rows, kRows));
    return run(pool, p, k.forward_tasks(p), k.forward_scratch(p), k.forward);
  }
  p.splits = ceil_div(p.S, kKeys);
  Partial partial(k.decode_partial(p));
  if (!partial.data) return false;
  p.partial = partial.data;
  return run(pool, p, k.decode_tasks(p), k.decode_scratch(p), k.decode) && run(pool, p, p.B * p.H, 0, k.decode_join);
}

bool run_backward(Pool& pool, Problem& p) {
  const Kernels& k = kernels();
  p.splits = splits_of(p, ceil_div(p.S, kKeyRows));
  Partial partial(k.backward_partial(p));
  if (!partial.data) return false;
  p.partial = partial.data;
  if (!run(pool, p, k.backward_tasks(p), k.backward_scratch(p), k.backward)) return false;
  return p.splits == 1 || run(pool, p, p.B * p.H, 0, k.backward_join);
}

bool run_bias(Pool& pool, Problem& p) {
  const Kernels& k = kernels();
  return run(pool, p, k.bias_tasks(p), k.bias_scratch(p), k.bias);
}

}  // namespace jaxattn
