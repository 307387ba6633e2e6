#include "core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>

#include <fstream>
#include <string>
#endif

namespace limbeck {
namespace {

constexpr auto kSpinTime = std::chrono::microseconds(200);
constexpr int kChecksPerClockRead = 64;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

/// Spins until done() for at most kSpinTime; whether it is.
template <typename Done>
bool spin_until(Done&& done) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kChecksPerClockRead; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return done();
}

}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> threads;

  // Written by the caller before it opens a round; read by workers that entered it.
  Function function = nullptr;
  void* context = nullptr;

  /// A worker's own part of the range: contiguous, and the same for the same count, so that what it wrote in one round
  /// is in its cache in the next. When it is done it takes from the others' parts.
  struct alignas(64) Part {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Part> parts;
  /// The round, whether it is open, and how many workers are inside. The caller closes it when nothing is left to
  /// begin, and waits for those inside alone: a worker that the machine has not scheduled yet holds up nobody.
  alignas(64) std::atomic<uint64_t> gate{0};
  static constexpr uint64_t kWorkers = (1 << 16) - 1, kIsOpen = 1 << 16, kRound = 1 << 17;
  std::atomic<bool> stops{false};

  std::mutex mutex;
  std::condition_variable wake;      // workers wait for the next round
  std::condition_variable finished;  // the caller waits for the last worker inside
  std::exception_ptr error;          // guarded by mutex

  void work(int worker) {
    const int num_workers = static_cast<int>(parts.size());
    try {
      for (int i = 0; i < num_workers; ++i) {
        Part& part = parts[static_cast<size_t>((worker + i) % num_workers)];
        for (int64_t index; (index = part.next.fetch_add(1, std::memory_order_relaxed)) < part.end;) {
          function(context, index, worker);
        }
      }
    } catch (...) {
      // What is left of the range is not begun.
      for (Part& part : parts) part.next.store(part.end, std::memory_order_relaxed);
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  }

  void stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      stops.store(true, std::memory_order_relaxed);  // the gate carries it
      gate.fetch_add(kRound, std::memory_order_release);
    }
    wake.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  void run_worker(int worker) {
    for (uint64_t seen = 0;;) {
      const auto has_news = [&] { return gate.load(std::memory_order_acquire) / kRound != seen; };
      if (!spin_until(has_news)) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, has_news);
      }
      uint64_t now = gate.load(std::memory_order_acquire);
      while ((now & kIsOpen) != 0 && !gate.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
      }
      seen = now / kRound;
      if ((now & kIsOpen) == 0) {
        // Asked after the gate was read: a stop between the two would be taken for one more closed round, and slept
        // through. Whoever sees the round that stop() counted sees that it stops.
        if (stops.load(std::memory_order_relaxed)) return;
        continue;
      }
      work(worker);
      const uint64_t left = gate.fetch_sub(1, std::memory_order_acq_rel) - 1;
      if ((left & (kIsOpen | kWorkers)) == 0) {
        const std::lock_guard<std::mutex> lock(mutex);
        finished.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>()) {
  if (num_threads <= 0) num_threads = available_threads();
  state_->parts = std::vector<State::Part>(static_cast<size_t>(num_threads));
  try {
    for (int worker = 1; worker < num_threads; ++worker) {
      state_->threads.emplace_back([state = state_.get(), worker] { state->run_worker(worker); });
    }
  } catch (...) {
    state_->stop();  // the threads that did start
    throw;
  }
}

ThreadPool::~ThreadPool() { state_->stop(); }

int ThreadPool::num_threads() const { return static_cast<int>(state_->threads.size()) + 1; }

void ThreadPool::run(int64_t count, Function function, void* context) {
  State& state = *state_;
  if (state.threads.empty() || count == 1) {
    for (int64_t index = 0; index < count; ++index) function(context, index, 0);
    return;
  }
  state.function = function;
  state.context = context;
  const auto num_workers = static_cast<int64_t>(state.parts.size());
  for (int64_t worker = 0; worker < num_workers; ++worker) {
    State::Part& part = state.parts[static_cast<size_t>(worker)];
    part.next.store(count * worker / num_workers, std::memory_order_relaxed);
    part.end = count * (worker + 1) / num_workers;
  }
  {
    // Under the lock, so that no worker falls asleep between its last look and the wake-up.
    const std::lock_guard<std::mutex> lock(state.mutex);
    state.gate.fetch_add(State::kRound + State::kIsOpen, std::memory_order_release);
  }
  state.wake.notify_all();
  state.work(0);
  state.gate.fetch_sub(State::kIsOpen, std::memory_order_acq_rel);
  const auto is_done = [&] { return (state.gate.load(std::memory_order_acquire) & State::kWorkers) == 0; };
  if (!spin_until(is_done)) {
    std::unique_lock<std::mutex> lock(state.mutex);
    state.finished.wait(lock, is_done);
  }
  std::exception_ptr error;
  {
    const std::lock_guard<std::mutex> lock(state.mutex);
    std::swap(error, state.error);
  }
  if (error) std::rethrow_exception(error);
}

int available_threads() {
  int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#ifdef __linux__
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) threads = std::max(1, CPU_COUNT(&mask));
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (file >> quota >> period && quota != "max" && period > 0) {
    const int limit = static_cast<int>(std::stod(quota) / period + 0.5);
    threads = std::clamp(limit, 1, threads);
  }
#endif
  return threads;
}

}  // namespace limbeck
