#pragma once

#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "accelerator/cuda_library.h"
#include "core/arena.h"
#include "core/thread_pool.h"
#include "ops/context.h"

namespace limbeck {

/// A native object that queued tasks may use: it counts them, on the JS thread alone.
struct Shareable {
  int pending = 0;
};

/// Keeps a Shareable alive and counted while a task that uses it waits or runs. JS thread only.
class Hold {
 public:
  explicit Hold(std::shared_ptr<Shareable> object) : object_(std::move(object)) { ++object_->pending; }
  Hold(const Hold& other) : Hold(other.object_) {}
  Hold& operator=(const Hold&) = delete;
  ~Hold() { --object_->pending; }

 private:
  std::shared_ptr<Shareable> object_;
};

/// The engine thread, first in first out, with the compute threads and the memory that its tasks use. Made, stopped and
/// destroyed on the JS thread of one environment; when that environment ends, the thread ends with it.
class TaskQueue : public std::enable_shared_from_this<TaskQueue> {
 public:
  /// `gpu` may be null; it is closed when the queue stops.
  static std::shared_ptr<TaskQueue> start(Napi::Env env, int num_threads, Precision precision,
                                          std::shared_ptr<CudaEngine> gpu);
  ~TaskQueue();
  TaskQueue(const TaskQueue&) = delete;
  TaskQueue& operator=(const TaskQueue&) = delete;

  int num_threads() const { return pool_.num_threads(); }
  /// Of what runs on the GPU, where there is one.
  Precision precision() const { return gpu_ != nullptr ? gpu_->precision() : precision_; }
  const std::shared_ptr<CudaEngine>& gpu() const { return gpu_; }
  /// Any thread: whether a long task should end early, because the engine is being disposed.
  bool is_stopping() const { return is_stopping_.load(std::memory_order_relaxed); }

  /// Promises the value of convert(env, output), where output = run(context, arena) is computed on the engine thread.
  /// `run` touches no JS value; it owns its inputs and is destroyed on the JS thread. The process lives until the
  /// promise is settled. Throws Error("ERR_DISPOSED").
  template <typename Run, typename Convert>
  Napi::Promise submit(std::vector<Hold> holds, Run run, Convert convert) {
    using Output = std::invoke_result_t<Run&, Context&, Arena&>;
    struct Job final : Task {
      Job(Napi::Env env, std::vector<Hold> holds, Run run, Convert convert)
          : Task(env), holds_(std::move(holds)), run_(std::move(run)), convert_(std::move(convert)) {}
      void run(Context& context, Arena& arena) override { output_.emplace(run_(context, arena)); }
      Napi::Value convert(Napi::Env env) override { return convert_(env, *output_); }
      std::vector<Hold> holds_;
      Run run_;
      Convert convert_;
      std::optional<Output> output_;
    };
    check_running();
    return enqueue(std::make_unique<Job>(env_, std::move(holds), std::move(run), std::move(convert)));
  }

  /// The same for work that the engine thread begins and then waits for: output = finish(begin(context)). Such tasks
  /// that follow one another overlap, max_at_once at a time: the next one is begun before the first is finished. Tasks
  /// of the other kind run alone.
  template <typename Begin, typename Finish, typename Convert>
  Napi::Promise submit_overlapping(size_t max_at_once, std::vector<Hold> holds, Begin begin, Finish finish,
                                   Convert convert) {
    using Begun = std::invoke_result_t<Begin&, Context&>;
    using Output = std::invoke_result_t<Finish&, Begun&>;
    struct Job final : Task {
      Job(Napi::Env env, size_t max_at_once, std::vector<Hold> holds, Begin begin, Finish finish, Convert convert)
          : Task(env, max_at_once),
            holds_(std::move(holds)),
            begin_(std::move(begin)),
            finish_(std::move(finish)),
            convert_(std::move(convert)) {}
      void run(Context& context, Arena&) override { begun_.emplace(begin_(context)); }
      void finish() override {
        Begun begun = std::move(*begun_);
        begun_.reset();
        output_.emplace(finish_(begun));
      }
      Napi::Value convert(Napi::Env env) override { return convert_(env, *output_); }
      std::vector<Hold> holds_;
      Begin begin_;
      Finish finish_;
      Convert convert_;
      std::optional<Begun> begun_;
      std::optional<Output> output_;
    };
    check_running();
    return enqueue(std::make_unique<Job>(env_, max_at_once, std::move(holds), std::move(begin), std::move(finish),
                                         std::move(convert)));
  }

  /// Waits for the running tasks and settles them; those that have not begun are rejected with ERR_DISPOSED.
  /// Idempotent.
  void stop();
  /// Throws Error("ERR_DISPOSED") after stop().
  void check_running() const;

 private:
  struct Task {
    explicit Task(Napi::Env env, size_t max_at_once = 1)
        : deferred(Napi::Promise::Deferred::New(env)), max_at_once(max_at_once) {}
    virtual ~Task() = default;
    virtual void run(Context& context, Arena& arena) = 0;
    /// On the engine thread, after a run() that did not fail; between them come those of other tasks that overlap.
    virtual void finish() {}
    virtual Napi::Value convert(Napi::Env env) = 0;
    Napi::Promise::Deferred deferred;
    const size_t max_at_once;  // tasks that were begun and are not finished, this one among them
    std::exception_ptr error;
    std::shared_ptr<TaskQueue> queue;  // a queue with tasks stays alive
  };
  using Tasks = std::list<std::unique_ptr<Task>>;
  static void settle_finished(Napi::Env env, Napi::Function function, TaskQueue* queue, void* data);
  using Notifier = Napi::TypedThreadSafeFunction<TaskQueue, void, settle_finished>;

  TaskQueue(Napi::Env env, int num_threads, Precision precision, std::shared_ptr<CudaEngine> gpu);
  Napi::Promise enqueue(std::unique_ptr<Task> task);
  void settle(std::unique_ptr<Task> task);
  void work();
  template <typename Call>
  static void attempt(Task& task, Call&& call);
  void join();
  void close();
  static void on_environment_end(void* queue);

  Napi::Env env_;
  ThreadPool pool_;
  Precision precision_;  // of the processor's work
  std::shared_ptr<CudaEngine> gpu_;
  Arena arena_;    // of the running task's activations
  Arena scratch_;  // of the ops
  Notifier notifier_;
  int num_pending_ = 0;     // tasks not settled; JS thread
  bool is_closed_ = false;  // JS thread
  std::atomic<bool> is_stopping_{false};

  std::mutex mutex_;
  std::condition_variable wake_;
  Tasks waiting_;   // guarded by mutex_
  Tasks finished_;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace limbeck
