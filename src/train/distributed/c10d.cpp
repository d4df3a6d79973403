// libtorch's c10d: the store where processes find each other, and the collectives over gloo.
// Called from bridge.rs only. Every function returns null, or the first line of an error that `malloc` made; no
// exception leaves this file.
#define USE_C10D_GLOO
#include "c10d.h"

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <condition_variable>
#include <cstdlib>
#include <mutex>

C10_DECLARE_int(caffe2_log_level);

namespace {

// Set once an operation has ended, well or not.
struct Ended {
  std::mutex mutex;
  std::condition_variable changed;
  bool is = false;
};

// An operation that has begun, with the tensors that it reads and writes.
struct Pending {
  c10::intrusive_ptr<c10d::Work> work;
  at::Tensor output, input;
  int64_t part = -1; // the part of `input` that becomes `output` in the end
  std::shared_ptr<Ended> ended = std::make_shared<Ended>();
};

enum Operation { all_reduce, broadcast, all_gather, reduce_scatter, reduce };

} // namespace

extern "C" {

// c10d tells its errors twice: as exceptions, which mmx shows, and with stack traces on stderr, which it need not.
// Whoever wants to see those sets libtorch's own variable.
void mmx_c10d_quiet() {
  if (::getenv("TORCH_CPP_LOG_LEVEL") != nullptr) {
    c10::initLogging();
  } else {
    FLAGS_caffe2_log_level = 3; // fatal errors only
  }
}

// Connects to the store at an address, or serves it there; keys are kept below `prefix`.
char *mmx_c10d_store(const char *host, uint16_t port, bool serve, const char *prefix, int64_t timeout_ms, Store **out) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serve;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *out = new Store(c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(store)));
  });
}

char *mmx_c10d_set(const Store *store, const char *key, const char *value) {
  return guarded([&] { (*store)->set(key, std::string(value)); });
}

// Waits until a key is there: `out` takes its value, made by `malloc`.
char *mmx_c10d_get(const Store *store, const char *key, int64_t timeout_ms, char **out) {
  return guarded([&] {
    (*store)->wait({key}, milliseconds(timeout_ms));
    *out = ::strdup((*store)->get_to_str(key).c_str());
  });
}

void mmx_c10d_store_free(Store *store) {
  guarded([&] { delete store; });
}

// Connects all ranks over gloo, from this machine's address `host`.
char *mmx_c10d_gloo(const Store *store, const char *host, int rank, int size, int64_t timeout_ms, Backend **out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(host));
    *out = new Backend(c10::make_intrusive<c10d::ProcessGroupGloo>(*store, rank, size, options));
  });
}

// Waits for the operations that have begun.
void mmx_c10d_free(Backend *backend) {
  guarded([&] { delete backend; });
}

// Ends what waits for other ranks, where the backend can (NCCL).
char *mmx_c10d_abort(const Backend *backend) {
  return guarded([&] { (*backend)->abort(); });
}

// Begins an operation of all ranks; `input` is null where `output` is changed in place.
char *mmx_c10d_start(const Backend *backend, int operation, const at::Tensor *output, const at::Tensor *input, int root,
                     Pending **out) {
  return guarded([&] {
    auto pending = std::make_unique<Pending>();
    pending->output = *output;
    if (input != nullptr) pending->input = *input;
    std::vector<at::Tensor> tensors = {*output};
    switch (operation) {
      case all_reduce:
        pending->work = (*backend)->allreduce(tensors, {});
        break;
      case broadcast: {
        c10d::BroadcastOptions options;
        options.rootRank = root;
        pending->work = (*backend)->broadcast(tensors, options);
        break;
      }
      case reduce: {
        c10d::ReduceOptions options;
        options.rootRank = root;
        pending->work = (*backend)->reduce(tensors, options);
        break;
      }
      case all_gather:
        pending->work = (*backend)->_allgather_base(pending->output, pending->input, {});
        break;
      case reduce_scatter:
        if ((*backend)->getBackendName() == c10d::GLOO_BACKEND_NAME) {
          // gloo's own is a sum and a copy too, but its work has no future
          pending->part = (*backend)->getRank();
          pending->input = input->clone();
          tensors = {pending->input};
          pending->work = (*backend)->allreduce(tensors, {});
          break;
        }
        pending->work = (*backend)->_reduce_scatter_base(pending->output, pending->input, {});
        break;
      default:
        TORCH_CHECK(false, "operation ", operation, " is unknown");
    }
    pending->work->getFuture()->addCallback([ended = pending->ended](c10::ivalue::Future &) {
      std::lock_guard<std::mutex> lock(ended->mutex);
      ended->is = true;
      ended->changed.notify_all();
    });
    *out = pending.release();
  });
}

// Waits at most so long for an operation to end; `ended` says whether it has. On CUDA devices the host waits for
// nothing: the stream does.
char *mmx_c10d_wait(Pending *pending, int64_t limit_ms, bool *ended) {
  return guarded([&] {
    {
      auto &state = *pending->ended;
      std::unique_lock<std::mutex> lock(state.mutex);
      *ended = state.changed.wait_for(lock, milliseconds(limit_ms), [&] { return state.is; });
    }
    if (!*ended) return;
    pending->work->wait();
    if (pending->part < 0) return;
    const auto count = pending->output.numel();
    pending->output.copy_(pending->input.narrow(0, pending->part * count, count));
  });
}

void mmx_c10d_pending_free(Pending *pending) {
  guarded([&] { delete pending; });
}
}
