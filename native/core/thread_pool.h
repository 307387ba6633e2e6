#pragma once

#include <cstdint>
#include <memory>

namespace limbeck {

/// Compute threads of one engine. The calling thread takes part, so a pool of 1 has no thread of its own. Workers spin
/// briefly (0.2 ms), then sleep. One parallel_for at a time, never nested.
class ThreadPool {
 public:
  /// num_threads >= 1; 0 = available_threads().
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  /// Calls task(index, worker) for each index in [0, count), worker in [0, num_threads()). Which worker takes which
  /// index is not fixed: a result must depend on the index alone, or the sums change with the number of threads.
  /// The first exception a task throws is rethrown here after all workers stopped.
  template <typename Task>
  void parallel_for(int64_t count, Task&& task) {
    if (count <= 0) return;
    run(
        count, [](void* context, int64_t index, int worker) { (*static_cast<Task*>(context))(index, worker); },
        const_cast<void*>(static_cast<const void*>(&task)));
  }

 private:
  using Function = void (*)(void* context, int64_t index, int worker);
  void run(int64_t count, Function function, void* context);
  struct State;
  std::unique_ptr<State> state_;
};

/// Processors in the affinity mask, limited by the cgroup's cpu quota; at least 1.
int available_threads();

}  // namespace limbeck
