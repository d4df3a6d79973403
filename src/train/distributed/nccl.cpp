// The backend between CUDA devices: a shared library of its own (libmmx_nccl.so), loaded by bridge.rs when a group on
// a CUDA device is asked for, so that mmx-train runs where libtorch has no CUDA part. No exception leaves this file.
#define USE_C10D_NCCL
#include "c10d.h"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

// Connects all ranks over NCCL; null, or the first line of an error that `malloc` made.
extern "C" __attribute__((visibility("default"))) char *mmx_c10d_nccl(const Store *store, int rank, int size, int64_t timeout_ms, Backend **out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = milliseconds(timeout_ms);
    *out = new Backend(c10::make_intrusive<c10d::ProcessGroupNCCL>(*store, rank, size, options));
  });
}
