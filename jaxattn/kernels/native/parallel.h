// Running tasks on a pool of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace jaxattn {

class Pool {
 public:
  virtual ~Pool() = default;
  virtual int64_t num_threads() const = 0;
  virtual void schedule(std::function<void()> work) = 0;
};

// Run task(0) ... task(n - 1), each once. The calling thread works too, and waits only for tasks that another thread has
// begun. So a pool whose threads are all busy delays nothing, and cannot deadlock.
void run_tasks(Pool& pool, int64_t n, const std::function<void(int64_t)>& task);

// Memory of the calling thread, aligned for vectors, at least this large; null if there is none. It is kept for the
// next call, because the first touch of new memory takes as long as the computation.
float* thread_memory(size_t floats);

}  // namespace jaxattn
