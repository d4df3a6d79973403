// What c10d.cpp and nccl.cpp share.
#pragma once
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <cstring>
#include <exception>

namespace {

using std::chrono::milliseconds;
using Store = c10::intrusive_ptr<c10d::Store>;
using Backend = c10::intrusive_ptr<c10d::Backend>;

// The first line, made by `malloc`: what follows are stack traces.
char *first_line(const char *message) {
  return ::strndup(message, ::strcspn(message, "\n"));
}

// Null, or an exception's first line.
template <class Call> char *guarded(Call call) {
  try {
    call();
    return nullptr;
  } catch (const c10::Error &error) {
    return first_line(error.what_without_backtrace());
  } catch (const std::exception &error) {
    return first_line(error.what());
  } catch (...) {
    return first_line("an error of another kind");
  }
}

} // namespace
