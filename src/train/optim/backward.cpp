// The backward pass that gives each leaf's gradient away as soon as it is whole: libtorch's own gives all of them at the
// end. Called from backward.rs only. No exception leaves this file.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <cstring>
#include <exception>
#include <mutex>

namespace {

// Takes leaf `leaf`'s gradient, which is lent; false ends the pass.
using TakeFunction = bool (*)(void *state, size_t leaf, const at::Tensor *gradient);

struct Taking {
  TakeFunction take;
  void *state;
  std::mutex mutex; // each device's leaves come on a thread of its own
};

struct Hook final : torch::autograd::PostAccumulateGradHook {
  Taking &taking;
  size_t leaf;

  Hook(Taking &taking, size_t leaf) : taking(taking), leaf(leaf) {}

  void operator()(const at::Tensor &variable) override {
    const at::Tensor gradient = variable.grad();
    variable.mutable_grad().reset();
    std::lock_guard<std::mutex> lock(taking.mutex);
    TORCH_CHECK(taking.take(taking.state, leaf, &gradient), "a gradient was not taken");
  }
};

// The hooks of one pass, whichever way it ends.
struct Hooks {
  const std::vector<at::Tensor> &leaves;

  Hooks(const std::vector<at::Tensor> &leaves, Taking &taking) : leaves(leaves) {
    for (size_t i = 0; i < leaves.size(); ++i)
      torch::autograd::impl::set_post_acc_grad_hooks(leaves[i], std::make_unique<Hook>(taking, i));
  }
  ~Hooks() {
    for (const auto &leaf : leaves) torch::autograd::impl::set_post_acc_grad_hooks(leaf, nullptr);
  }
};

} // namespace

extern "C" {

// Runs the backward pass of `loss` as far as `leaves`. Null, or an error that `malloc` made.
char *mmx_backward(const at::Tensor *loss, at::Tensor *const *leaves, size_t count, TakeFunction take, void *state) {
  try {
    std::vector<at::Tensor> inputs;
    for (size_t i = 0; i < count; ++i) inputs.push_back(*leaves[i]);
    Taking taking{take, state, {}};
    Hooks hooks(inputs, taking);
    torch::autograd::backward({*loss}, {}, false, false, inputs);
    return nullptr;
  } catch (const std::exception &error) {
    return ::strdup(error.what());
  }
}
}
