#include "parallel.h"

#include <cstdlib>
#include <thread>

namespace jaxattn {

namespace {

struct Shared {
  std::atomic<int64_t> next{0}, done{0};
  int64_t n;
  const std::function<void(int64_t)>* task;  // outlives all tasks; only a thread that has one may use it

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) {
      (*task)(i);
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

struct Memory {
  float* data = nullptr;
  size_t floats = 0;
  ~Memory() { std::free(data); }
};

constexpr size_t kLargestKept = size_t{1} << 24;  // floats, 64 MB

}  // namespace

void run_tasks(Pool& pool, int64_t n, const std::function<void(int64_t)>& task) {
  auto shared = std::make_shared<Shared>();
  shared->n = n, shared->task = &task;
  int64_t helpers = (pool.num_threads() < n ? pool.num_threads() : n) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.schedule([shared] { shared->work(); });
  shared->work();
  for (int64_t turns = 0; shared->done.load(std::memory_order_acquire) < n; ++turns)
    if (turns > 1000) std::this_thread::yield();
}

float* thread_memory(size_t floats) {
  thread_local Memory memory;
  if (memory.floats < floats || memory.floats > kLargestKept) {
    std::free(memory.data);
    memory = {};
    size_t bytes = (floats * sizeof(float) + 4095) / 4096 * 4096;
    memory.data = static_cast<float*>(std::aligned_alloc(4096, bytes));
    if (memory.data) memory.floats = floats;
  }
  return memory.data;
}

}  // namespace jaxattn
