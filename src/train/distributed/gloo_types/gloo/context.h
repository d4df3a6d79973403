// The part of gloo's types that libtorch's ProcessGroupGloo.hpp names: the wheel has gloo's code and not its headers.
// Only pointers to them pass through mmx, no object is made here and no function of gloo's is called, so nothing
// depends on their layout; rendezvous::Store is a base class in that header and needs its virtual functions declared.
#pragma once
#include <chrono>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
} // namespace gloo
