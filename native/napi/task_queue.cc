#include "napi/task_queue.h"

#include <algorithm>

#include "core/error.h"
#include "napi/convert.h"

namespace limbeck {

namespace {
constexpr char kDisposed[] = "The engine was disposed of. Create another one.";
}  // namespace

std::shared_ptr<TaskQueue> TaskQueue::start(Napi::Env env, int num_threads, Precision precision,
                                            std::shared_ptr<CudaEngine> gpu) {
  const std::shared_ptr<TaskQueue> queue(new TaskQueue(env, num_threads, precision, std::move(gpu)));
  queue->thread_ = std::thread([raw = queue.get()] { raw->work(); });
  return queue;
}

TaskQueue::TaskQueue(Napi::Env env, int num_threads, Precision precision, std::shared_ptr<CudaEngine> gpu)
    : env_(env), pool_(num_threads), precision_(precision), gpu_(std::move(gpu)) {
  notifier_ = Notifier::New(env, "limbeck", 0, 1, this);
  notifier_.Unref(env);  // an idle engine does not keep the process alive
  // Hooks run in reverse order: this one before the one that Node added for the notifier.
  napi_add_env_cleanup_hook(env, on_environment_end, this);
}

TaskQueue::~TaskQueue() {
  join();
  close();
}

void TaskQueue::check_running() const {
  if (is_closed_) throw Error("ERR_DISPOSED", kDisposed);
}

Napi::Promise TaskQueue::enqueue(std::unique_ptr<Task> task) {
  const Napi::Promise promise = task->deferred.Promise();
  task->queue = shared_from_this();
  Tasks added;
  added.push_back(std::move(task));
  if (num_pending_++ == 0) notifier_.Ref(env_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_.splice(waiting_.end(), added);
  }
  wake_.notify_one();
  return promise;
}

template <typename Call>
void TaskQueue::attempt(Task& task, Call&& call) {
  try {
    call();
  } catch (...) {
    task.error = std::current_exception();
  }
}

void TaskQueue::work() {
  Tasks running;  // begun, the first is finished first; lists, because moving a node between them allocates nothing
  for (;;) {
    bool begins = false;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (running.empty()) wake_.wait(lock, [this] { return is_stopping() || !waiting_.empty(); });
      if (!is_stopping() && !waiting_.empty()) {
        begins =
            running.empty() || running.size() < std::min(running.back()->max_at_once, waiting_.front()->max_at_once);
      }
      if (begins) running.splice(running.end(), waiting_, waiting_.begin());
    }
    if (begins) {
      Task& task = *running.back();
      attempt(task, [&] {
        arena_.reset();
        scratch_.reset();
        Context context{pool_, scratch_, precision_};
        task.run(context, arena_);
      });
      if (running.size() < task.max_at_once) continue;  // is there another to begin?
    }
    if (running.empty()) return;  // stopping
    Task& first = *running.front();
    if (first.error == nullptr) attempt(first, [&] { first.finish(); });
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      finished_.splice(finished_.end(), running, running.begin());
    }
    notifier_.NonBlockingCall();
  }
}

void TaskQueue::settle_finished(Napi::Env env, Napi::Function, TaskQueue* queue, void*) {
  if (env == nullptr) return;  // the environment ends, and the queue may be gone
  const std::shared_ptr<TaskQueue> alive = queue->shared_from_this();
  for (;;) {
    Tasks next;
    {
      const std::lock_guard<std::mutex> lock(queue->mutex_);
      if (queue->finished_.empty()) return;
      next.splice(next.begin(), queue->finished_, queue->finished_.begin());
    }
    queue->settle(std::move(next.front()));
  }
}

void TaskQueue::settle(std::unique_ptr<Task> task) {
  const Napi::HandleScope scope(env_);
  const Napi::Promise::Deferred deferred = task->deferred;
  Napi::Value value;
  bool is_rejected = false;
  try {
    if (task->error) std::rethrow_exception(task->error);
    value = task->convert(env_);
  } catch (...) {
    is_rejected = true;
    value = to_js_error(env_, std::current_exception()).Value();
  }
  // The objects it used are free again before anyone hears of it.
  task.reset();
  if (--num_pending_ == 0) notifier_.Unref(env_);
  if (is_rejected) {
    deferred.Reject(value);
  } else {
    deferred.Resolve(value);
  }
}

void TaskQueue::join() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_stopping_.store(true, std::memory_order_relaxed);
  }
  wake_.notify_all();
  thread_.join();
}

void TaskQueue::close() {
  if (is_closed_) return;
  is_closed_ = true;
  if (gpu_ != nullptr) gpu_->close();
  napi_remove_env_cleanup_hook(env_, on_environment_end, this);
  notifier_.Abort();  // calls that it still holds are dropped
}

void TaskQueue::stop() {
  if (is_closed_) return;
  const std::shared_ptr<TaskQueue> alive = shared_from_this();
  join();
  // The engine thread is gone: the lists belong to this thread.
  for (const std::unique_ptr<Task>& task : waiting_) {
    task->error = std::make_exception_ptr(Error("ERR_DISPOSED", kDisposed));
  }
  finished_.splice(finished_.end(), waiting_);
  while (!finished_.empty()) {
    std::unique_ptr<Task> task = std::move(finished_.front());
    finished_.pop_front();
    settle(std::move(task));
  }
  close();
}

void TaskQueue::on_environment_end(void* data) {
  const std::shared_ptr<TaskQueue> queue = static_cast<TaskQueue*>(data)->shared_from_this();
  queue->join();
  queue->is_closed_ = true;  // Node closes the notifier itself
  if (queue->gpu_ != nullptr) queue->gpu_->close();
  // No JS runs any more: the promises stay as they are.
  queue->finished_.clear();
  queue->waiting_.clear();
}

}  // namespace limbeck
