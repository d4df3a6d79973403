// A CUDA device of libtorch's that needs no GPU, for tests: loaded by LD_PRELOAD into a program that links libtorch, it
// registers two devices under the dispatch key CUDA, which is free as long as libtorch_cuda.so is not loaded. Every
// operator runs on the CPU; what a program can do wrong with a device ends in an error as it would with a real one:
//
// - device memory has no access rights where the program sees it: a host read or write ends the program with a
//   sentence; this file reaches the same pages through a second mapping. Fresh memory is filled with NaN;
// - an operator whose tensors are on several devices is refused;
// - what waits for the device, and what is copied to it, is counted: FAKE_CUDA_COUNTS names a file that takes the
//   counts as a JSON object when the program ends (of several processes a file each, which ends in the rank).
//
// It cannot show streams, races, limits of memory, or what CUDA's kernels compute.
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <dlfcn.h>
#include <execinfo.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

constexpr int DEVICES = 2;

// ---- counts ----

struct Counts {
  std::atomic<int64_t> operators{0}; // that ran on a device
  std::atomic<int64_t> scalars{0};   // _local_scalar_dense: a value fetched by itself
  std::atomic<int64_t> downloads{0}; // copies to the host
  std::atomic<int64_t> waits{0};     // operators that read a value back when CUDA computes them
  std::atomic<int64_t> grouped{0};   // products of grouped rows by a kernel of their own
  std::atomic<int64_t> uploads{0};   // copies from page-locked memory that nobody waits for
  std::atomic<int64_t> blocking_uploads{0}; // other copies from the host: it waits for them
  std::atomic<int64_t> peer_copies{0};      // copies from one device to the other
  std::atomic<int64_t> allocations[DEVICES]{};
  std::atomic<int64_t> bytes{0}, peak_bytes{0}; // of device memory in use, and the most at a time

  void took(int64_t size) {
    const int64_t now = bytes += size;
    int64_t most = peak_bytes;
    while (now > most && !peak_bytes.compare_exchange_weak(most, now)) {
    }
  }

  void write() const {
    const char *name = std::getenv("FAKE_CUDA_COUNTS"), *rank = std::getenv("RANK");
    if (name == nullptr || allocations[0] + allocations[1] == 0) return; // a program that used no device
    const std::string path = rank == nullptr ? name : std::string(name) + "-" + rank;
    FILE *file = std::fopen(path.c_str(), "w");
    if (file == nullptr) return;
    std::fprintf(file,
                 "{\"operators\": %ld, \"scalars\": %ld, \"downloads\": %ld, \"waits\": %ld, \"grouped\": %ld, \"uploads\": %ld, "
                 "\"blocking_uploads\": %ld, \"peer_copies\": %ld, \"allocations\": [%ld, %ld], \"peak_bytes\": %ld}\n",
                 operators.load(), scalars.load(), downloads.load(), waits.load(), grouped.load(), uploads.load(),
                 blocking_uploads.load(), peer_copies.load(), allocations[0].load(), allocations[1].load(),
                 peak_bytes.load());
    std::fclose(file);
  }
};

Counts &counts() {
  static Counts *counts = new Counts; // never destroyed: tensors may outlive everything
  return *counts;
}

// Operators within an operator: their copies are this file's, not the program's.
thread_local int depth = 0;

struct Inside {
  Inside() { ++depth; }
  ~Inside() { --depth; }
};

// ---- memory ----

// One file mapped twice: the device's addresses, which nobody may touch, and the window to them.
struct Memory {
  static constexpr size_t EACH = size_t(8) << 30; // addresses only: pages are there once they are written
  static constexpr size_t BLOCK = 512;            // as CUDA's allocator of libtorch rounds
  char *device, *window;
  std::mutex lock;
  size_t end[DEVICES] = {};
  std::multimap<size_t, char *> unused[DEVICES]; // by size

  Memory() {
    const int file = memfd_create("fake-cuda", 0);
    const bool sized = file >= 0 && ftruncate(file, DEVICES * EACH) == 0;
    void *first = mmap(nullptr, DEVICES * EACH, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
    void *second = mmap(nullptr, DEVICES * EACH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (!sized || first == MAP_FAILED || second == MAP_FAILED) {
      std::perror("fake CUDA: memory");
      std::abort();
    }
    close(file);
    device = static_cast<char *>(first);
    window = static_cast<char *>(second);
  }

  bool holds(const void *at) const {
    const char *address = static_cast<const char *>(at);
    return address >= device && address < device + DEVICES * EACH;
  }
  int device_of(const void *at) const { return int((static_cast<const char *>(at) - device) / EACH); }
  void *reach(const void *at) const { return window + (static_cast<const char *>(at) - device); }

  char *take(size_t size, int index) {
    std::lock_guard<std::mutex> hold(lock);
    const auto found = unused[index].find(size);
    char *at = nullptr;
    if (found != unused[index].end()) {
      at = found->second;
      unused[index].erase(found);
    } else {
      TORCH_CHECK(end[index] + size <= EACH, "fake CUDA: cuda:", index, ": out of memory");
      at = device + index * EACH + end[index];
      end[index] += size;
    }
    std::memset(reach(at), 0xff, size); // NaN in every float type, -1 in the others
    return at;
  }
  void give_back(char *at, size_t size) {
    std::lock_guard<std::mutex> hold(lock);
    unused[device_of(at)].emplace(size, at);
  }
  size_t left(int index) {
    std::lock_guard<std::mutex> hold(lock);
    size_t left = EACH - end[index];
    for (const auto &block : unused[index]) left += block.first;
    return left;
  }
};

Memory &memory() {
  static Memory *memory = new Memory; // never destroyed, as the counts
  return *memory;
}

thread_local c10::DeviceIndex current = 0;

struct DeviceAllocator final : c10::Allocator {
  struct Block {
    char *at;
    size_t size;
  };
  static void free(void *context) {
    std::unique_ptr<Block> block(static_cast<Block *>(context));
    counts().took(-int64_t(block->size));
    memory().give_back(block->at, block->size);
  }
  c10::DataPtr allocate(size_t wanted) override {
    const c10::Device device(c10::kCUDA, current);
    if (wanted == 0) return {nullptr, device};
    const size_t size = (wanted + Memory::BLOCK - 1) / Memory::BLOCK * Memory::BLOCK;
    auto *block = new Block{memory().take(size, current), size};
    ++counts().allocations[current];
    counts().took(int64_t(size));
    return {block->at, block, &free, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void *to, const void *from, size_t count) const override {
    std::memcpy(memory().reach(to), memory().reach(from), count);
  }
};

DeviceAllocator device_allocator;

// Host memory that counts as page-locked.
struct PinnedAllocator final : c10::Allocator {
  static std::mutex lock;
  static std::map<const char *, size_t> blocks;
  static void free(void *at) {
    std::lock_guard<std::mutex> hold(lock);
    blocks.erase(static_cast<const char *>(at));
    std::free(at);
  }
  c10::DataPtr allocate(size_t wanted) override {
    const size_t size = wanted == 0 ? 64 : (wanted + 63) / 64 * 64;
    void *at = std::aligned_alloc(64, size);
    TORCH_CHECK(at != nullptr, "fake CUDA: no page-locked memory");
    std::lock_guard<std::mutex> hold(lock);
    blocks[static_cast<const char *>(at)] = size;
    return {at, at, &free, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void *to, const void *from, size_t count) const override { default_copy_data(to, from, count); }

  static bool holds(const void *at) {
    std::lock_guard<std::mutex> hold(lock);
    const auto *address = static_cast<const char *>(at);
    auto after = blocks.upper_bound(address);
    if (after == blocks.begin()) return false;
    --after;
    return address < after->first + after->second;
  }
};

std::mutex PinnedAllocator::lock;
std::map<const char *, size_t> PinnedAllocator::blocks;
PinnedAllocator pinned_allocator;

// ---- a host access ----

struct sigaction before;

void on_fault(int signal, siginfo_t *info, void *) {
  if (memory().holds(info->si_addr)) {
    char text[96];
    const int length = std::snprintf(text, sizeof text, "error: the host touched device memory of cuda:%d\n",
                                     memory().device_of(info->si_addr));
    [[maybe_unused]] auto written = write(STDERR_FILENO, text, length);
    void *frames[48];
    backtrace_symbols_fd(frames, backtrace(frames, 48), STDERR_FILENO);
  }
  sigaction(signal, &before, nullptr); // the instruction is run again, and ends the program
}

const bool watched = [] {
  memory();
  std::atexit([] { counts().write(); });
  void *frames[1];
  backtrace(frames, 1); // loads what it needs, which a handler may not
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGSEGV, &action, &before) == 0;
}();

// ---- devices ----

struct Guard final : c10::impl::DeviceGuardImplInterface {
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto old = getDevice();
    setDevice(device);
    return old;
  }
  c10::Device getDevice() const override { return {c10::kCUDA, current}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() >= 0 && device.index() < DEVICES, "fake CUDA: no device ", device);
    current = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
  void record(void **, const c10::Stream &, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void *, const c10::Stream &) const override {}
  bool queryEvent(void *) const override { return true; }
  bool queryStream(const c10::Stream &) const override { return true; }
  void synchronizeStream(const c10::Stream &) const override { ++counts().waits; }
  void synchronizeEvent(void *) const override { ++counts().waits; }
  void synchronizeDevice(const c10::DeviceIndex) const override { ++counts().waits; }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  int getNumGPUs() const override { return DEVICES; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  c10::DeviceIndex current_device() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex device) const override { current = device; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override { return std::exchange(current, device); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return device < 0 ? current : exchangeDevice(device);
  }
  void deviceSynchronize(c10::DeviceIndex) const override { ++counts().waits; }
  bool isPinnedPtr(const void *at) const override { return PinnedAllocator::holds(at); }
  c10::Allocator *getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  c10::Allocator *getCUDADeviceAllocator() const override { return &device_allocator; }
  c10::Device getDeviceFromPtr(void *at) const override {
    return {c10::kCUDA, c10::DeviceIndex(memory().device_of(at))};
  }
};

// ---- operators ----

// The same elements where the host may read them.
at::Tensor reach(const at::Tensor &tensor) {
  if (!tensor.is_cuda()) return tensor;
  const auto options = tensor.options().device(c10::kCPU).requires_grad(false);
  if (tensor.numel() == 0) return at::empty(tensor.sizes(), options);
  return at::from_blob(memory().reach(tensor.data_ptr()), tensor.sizes(), tensor.strides(), options);
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> kind, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device.value_or(c10::Device(c10::kCUDA, current)));
  return at::detail::empty_generic(size, &device_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   c10::dtype_or_default(kind), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> kind,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device.value_or(c10::Device(c10::kCUDA, current)));
  return at::detail::empty_strided_generic(size, stride, &device_allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(kind));
}

const at::Tensor &resize_(const at::Tensor &self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto *tensor = self.unsafeGetTensorImpl();
  auto *storage = tensor->unsafe_storage().unsafeGetStorageImpl();
  const size_t needed = at::detail::computeStorageNbytesContiguous(size, self.element_size(), self.storage_offset());
  if (needed > storage->nbytes()) {
    const c10::DeviceGuard guard(self.device());
    auto fresh = device_allocator.allocate(needed);
    if (storage->nbytes() > 0) device_allocator.copy_data(fresh.mutable_get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(fresh));
    storage->set_nbytes(needed);
  }
  tensor->set_sizes_contiguous(size);
  return self;
}

void count_copy(const at::Tensor &to, const at::Tensor &from, bool non_blocking) {
  if (depth > 0 || to.numel() == 0) return;
  if (to.is_cuda() && from.is_cuda()) {
    if (to.device() != from.device()) ++counts().peer_copies;
  } else if (from.is_cuda()) {
    ++counts().downloads;
  } else if (non_blocking && PinnedAllocator::holds(from.data_ptr())) {
    ++counts().uploads;
  } else {
    ++counts().blocking_uploads;
  }
}

at::Tensor &copy_(at::Tensor &self, const at::Tensor &from, bool non_blocking) {
  count_copy(self, from, non_blocking);
  const Inside inside;
  const at::AutoDispatchBelowADInplaceOrView below;
  reach(self).copy_(reach(from));
  return self;
}

at::Tensor copy_from(const at::Tensor &self, const at::Tensor &to, bool non_blocking) {
  at::Tensor target = to;
  copy_(target, self, non_blocking);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor &self, const at::Tensor &to) {
  if (self.sizes() != to.sizes()) to.resize_(self.sizes());
  return copy_from(self, to, false);
}

at::Tensor &set_(at::Tensor &self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto *tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(std::move(source));
  tensor->set_storage_offset(offset);
  if (stride.empty() && !size.empty()) {
    tensor->set_sizes_contiguous(size);
  } else {
    tensor->set_sizes_and_strides(size, stride);
  }
  return self;
}

at::Scalar local_scalar(const at::Tensor &self) {
  if (depth == 0) ++counts().scalars;
  return at::_local_scalar_dense(reach(self));
}

// CUDA's fused attention is not there: the composition of products and softmax is.
int64_t fused_attention(const at::Tensor &, const at::Tensor &, const at::Tensor &, const std::optional<at::Tensor> &,
                        double, bool, std::optional<double>, bool) {
  return 0;
}

// Operators whose CUDA kernels read a value back before they return: a result's size, or a bound of the input.
// Source: their files in aten/src/ATen/native/cuda (Nonzero.cu, SummaryOps.cu, Unique.cu, IndexKernel.cpp, Equal.cpp,
// Repeat.cu).
const std::set<std::string> READ_BACK = {
    "aten::nonzero",  "aten::bincount",          "aten::histc",   "aten::masked_select", "aten::_unique2",
    "aten::_unique",  "aten::unique_dim",        "aten::unique_consecutive", "aten::equal",
    "aten::repeat_interleave",
};

// Compute capabilities of the devices: the first has libtorch's kernel for products of grouped rows.
constexpr int CAPABILITY[DEVICES][2] = {{9, 0}, {8, 6}};

// Source: aten/src/ATen/native/cuda/GroupedBlas.cpp. Without the kernel the ends are fetched, and rows have to begin at
// multiples of 16 bytes.
void count_grouped(const std::vector<at::Tensor> &tensors, c10::Device device) {
  bool kernel = CAPABILITY[device.index()][0] == 9;
  for (size_t i = 0; i < 2; ++i) {
    kernel = kernel && tensors.at(i).scalar_type() == at::kBFloat16;
    TORCH_CHECK(uintptr_t(tensors[i].data_ptr()) % 16 == 0, "expected data_ptr to be aligned to 16 bytes");
  }
  ++(kernel ? counts().grouped : counts().waits);
}

void fallback(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
  const auto &name = op.schema().name();
  std::optional<c10::Device> device;
  std::vector<at::Tensor> tensors;
  for (const auto &value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) {
      tensors.push_back(value.toTensor());
    } else if (value.isTensorList()) {
      for (const auto &tensor : value.toTensorVector()) tensors.push_back(tensor);
    } else if (value.isOptionalTensorList()) {
      for (const auto &tensor : value.toOptionalTensorVector()) tensors.push_back(tensor.value_or(at::Tensor()));
    }
  }
  for (const auto &tensor : tensors) {
    if (tensor.defined() && tensor.is_cuda() && !device) device = tensor.device();
  }
  for (const auto &tensor : tensors) {
    if (!tensor.defined()) continue;
    const bool scalar = tensor.device().is_cpu() && tensor.dim() == 0;
    TORCH_CHECK(scalar || !device || tensor.device() == *device, name,
                ": expected all tensors on the same device, found ", *device, " and ", tensor.device(), " (sizes ",
                tensor.sizes(), ")");
  }
  if (depth == 0) {
    ++counts().operators;
    if (READ_BACK.count(name) > 0) ++counts().waits;
    if (name == "aten::_grouped_mm") count_grouped(tensors, *device);
  }
  const Inside inside;
  const c10::OptionalDeviceGuard guard(device);
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("resize_", resize_);
  m.impl("copy_", copy_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("set_.source_Storage_storage_offset", set_);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("_fused_sdp_choice", fused_attention);
  m.impl("_grouped_mm", torch::CppFunction::makeFromBoxedFunction<&fallback>()); // CUDA's is not composed of others
}

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

} // namespace

namespace c10 {
REGISTER_ALLOCATOR(kCUDA, &device_allocator)
}

namespace at {
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks)
}

// ---- what a program calls by itself ----

extern "C" {

// libtorch_cuda.so would register its operators under the same key.
void *dlopen(const char *name, int mode) {
  constexpr char REAL[] = "libtorch_cuda.so";
  if (name != nullptr && std::strstr(name, REAL) != nullptr) return nullptr;
  using Open = void *(*)(const char *, int);
  static const Open open = reinterpret_cast<Open>(dlsym(RTLD_NEXT, "dlopen"));
  return open(name, mode);
}

int cudaSetDevice(int device) {
  if (device < 0 || device >= DEVICES) return 101; // cudaErrorInvalidDevice
  current = c10::DeviceIndex(device);
  return 0;
}

int cudaGetDevice(int *device) {
  *device = current;
  return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  const bool known = attribute == 75 || attribute == 76; // the compute capability's two numbers
  if (!known || device < 0 || device >= DEVICES) return 1; // cudaErrorInvalidValue
  *value = CAPABILITY[device][attribute - 75];
  return 0;
}

int cudaMemGetInfo(size_t *free, size_t *total) {
  *free = memory().left(current);
  *total = Memory::EACH;
  return 0;
}
}
