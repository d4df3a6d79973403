// What mmx-train loads as libmmx_nccl.so where the devices are those of fake_cuda.cpp: collectives that take device
// tensors only, as NCCL's, and carry their values over gloo. Built into the same library: libmmx_nccl.so is a link to
// it. It cannot show NCCL: streams, aborts, transports, the order of sums.
#define USE_C10D_GLOO
#include "../../src/train/distributed/c10d.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace {

// An operation that has ended before its start returns.
struct Done final : c10d::Work {
  c10::intrusive_ptr<c10::ivalue::Future> future =
      c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
  explicit Done(std::vector<at::Tensor> results) { future->markCompleted(c10::IValue(std::move(results))); }
  bool isCompleted() override { return true; }
  bool isSuccess() const override { return true; }
  bool wait(milliseconds) override { return true; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future; }
};

struct FakeNccl final : c10d::Backend {
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  std::optional<at::Device> own; // that of the first tensor: a rank of NCCL's has one device

  FakeNccl(const Store &store, int rank, int size, milliseconds timeout) : Backend(rank, size) {
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options);
  }
  const std::string getBackendName() const override { return "nccl"; }

  void check(const at::Tensor &tensor) {
    TORCH_CHECK(tensor.is_cuda(), "Tensors must be CUDA and dense"); // NCCL's own words
    TORCH_CHECK(tensor.is_contiguous(), "Tensors must be contiguous");
    if (!own) own = tensor.device();
    TORCH_CHECK(tensor.device() == *own, "expected tensors on ", *own, " in this process, found ", tensor.device());
  }

  // `call` gets the values on the host; those of `output` go back to the device.
  template <class Call> c10::intrusive_ptr<c10d::Work> carry(at::Tensor &output, at::Tensor *input, Call call) {
    check(output);
    if (input != nullptr) check(*input);
    const at::AutoDispatchBelowADInplaceOrView below;
    auto results = output.cpu(), given = input != nullptr ? input->cpu() : at::Tensor();
    call(results, given)->wait();
    output.copy_(results);
    return c10::make_intrusive<Done>(std::vector<at::Tensor>{output});
  }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor> &tensors, const c10d::AllreduceOptions &options) override {
    return carry(tensors.at(0), nullptr, [&](at::Tensor &output, at::Tensor &) {
      std::vector<at::Tensor> outputs = {output};
      return gloo->allreduce(outputs, options);
    });
  }
  c10::intrusive_ptr<c10d::Work> reduce(std::vector<at::Tensor> &tensors, const c10d::ReduceOptions &options) override {
    return carry(tensors.at(0), nullptr, [&](at::Tensor &output, at::Tensor &) {
      std::vector<at::Tensor> outputs = {output};
      return gloo->reduce(outputs, options);
    });
  }
  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor> &tensors, const c10d::BroadcastOptions &options) override {
    return carry(tensors.at(0), nullptr, [&](at::Tensor &output, at::Tensor &) {
      std::vector<at::Tensor> outputs = {output};
      return gloo->broadcast(outputs, options);
    });
  }
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor &output, at::Tensor &input, const c10d::AllgatherOptions &options) override {
    return carry(output, &input, [&](at::Tensor &outputs, at::Tensor &given) { return gloo->_allgather_base(outputs, given, options); });
  }
  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(at::Tensor &output, at::Tensor &input, const c10d::ReduceScatterOptions &options) override {
    return carry(output, &input, [&](at::Tensor &outputs, at::Tensor &given) { return gloo->_reduce_scatter_base(outputs, given, options); });
  }
};

} // namespace

extern "C" char *mmx_c10d_nccl(const Store *store, int rank, int size, int64_t timeout_ms, Backend **out) {
  return guarded([&] { *out = new Backend(c10::make_intrusive<FakeNccl>(*store, rank, size, milliseconds(timeout_ms))); });
}
