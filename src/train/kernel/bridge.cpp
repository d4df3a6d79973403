// What tch does not wrap: operators of our own in libtorch's automatic differentiation, grouped products, CPU threads.
// Called from autograd.rs, grouped.rs and parallel.rs only. No exception leaves this file.
#include <ATen/Parallel.h>
#include <ATen/ops/_grouped_mm.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <cstring>
#include <exception>

namespace {

using torch::autograd::variable_list;

// Gradients of an operator's inputs from those of its outputs: `given[i]` is null where output i was not used,
// `wanted[i]` says whether input i needs one, `made[i]` takes it (or stays null: zero). Null, or an error that
// `malloc` made.
using BackwardFunction = char *(*)(const void *state, at::Tensor **given, const bool *wanted, at::Tensor **made);
using DropFunction = void (*)(void *state);

char *copied(const char *message) {
  return ::strdup(message);
}

struct Backward final : torch::autograd::Node {
  BackwardFunction function;
  DropFunction drop;
  void *state;

  Backward(BackwardFunction function, DropFunction drop, void *state)
      : function(function), drop(drop), state(state) {}
  ~Backward() override { release_variables(); }

  void release_variables() override {
    if (state != nullptr) drop(state);
    state = nullptr;
  }

  std::string name() const override { return "MmxBackward"; }

  variable_list apply(variable_list &&gradients) override {
    TORCH_CHECK(state != nullptr, "the graph is gone: it was used before");
    const auto inputs = num_outputs();
    std::vector<at::Tensor *> given, made(inputs, nullptr);
    for (auto &gradient : gradients) given.push_back(gradient.defined() ? &gradient : nullptr);
    std::unique_ptr<bool[]> wanted(new bool[inputs]);
    for (size_t i = 0; i < inputs; ++i) wanted[i] = task_should_compute_output(i);
    char *error = function(state, given.data(), wanted.get(), made.data());
    variable_list out(inputs);
    for (size_t i = 0; i < inputs; ++i) {
      if (made[i] == nullptr) continue;
      out[i] = std::move(*made[i]);
      delete made[i];
    }
    if (error != nullptr) {
      std::string message(error);
      ::free(error);
      TORCH_CHECK(false, message);
    }
    return out;
  }
};

} // namespace

extern "C" {

// Makes `outputs`, computed from `inputs` without automatic differentiation, differentiable by `function`, where an
// input is; takes `state` over. Null, or an error.
char *mmx_differentiable(at::Tensor **inputs, size_t input_count, at::Tensor **outputs, size_t output_count,
                         BackwardFunction function, DropFunction drop, void *state) {
  try {
    std::shared_ptr<Backward> node(new Backward(function, drop, state), torch::autograd::deleteNode);
    variable_list from;
    for (size_t i = 0; i < input_count; ++i) from.push_back(*inputs[i]);
    if (!torch::autograd::compute_requires_grad(from)) return nullptr;
    node->set_next_edges(torch::autograd::collect_next_edges(from));
    for (size_t i = 0; i < output_count; ++i) torch::autograd::set_history(*outputs[i], node);
    return nullptr;
  } catch (const std::exception &error) {
    return copied(error.what());
  }
}

// The product of rows grouped by matrix, see grouped.rs. Null, and `out` takes the new tensor; or an error.
char *mmx_grouped_mm(const at::Tensor *a, const at::Tensor *b, const at::Tensor *ends, at::Tensor **out) {
  try {
    *out = new at::Tensor(at::_grouped_mm(*a, *b, *ends));
    return nullptr;
  } catch (const std::exception &error) {
    return copied(error.what());
  }
}

// Calls `part(state, begin, end)` on libtorch's threads with ranges that make up 0..count.
void mmx_parallel(int64_t count, int64_t grain, void (*part)(const void *, int64_t, int64_t), const void *state) {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { part(state, begin, end); });
}
}
