// A device `cuda:0` (and more) without a GPU: its memory is the host's, its kernels are the CPU's.
//
// PyTorch asks a backend for four things, which stand here one after the other: a device guard, an allocator, the hooks
// of CUDA (generators, page-locked memory), and kernels. A fallback computes every operator on CPU tensors that share the
// memory of the card's, and refuses, as CUDA does, operators that mix the card's tensors with the host's.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include "memory.h"

#include <atomic>
#include <cstring>
#include <unordered_map>

namespace {

const c10::DispatchKeySet kCpuKeys(c10::DispatchKey::CPU), kCudaKeys(c10::DispatchKey::CUDA);

// ------------------------------------------------------------------ device guard

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::kCUDA> {
  c10::Stream stream() const noexcept { return c10::Stream(c10::Stream::DEFAULT, kCard); }
  c10::Device exchangeDevice(c10::Device) const override { return kCard; }
  c10::Device getDevice() const override { return kCard; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int = 0) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// ------------------------------------------------------------------ generators: other numbers than a CPU's, as on a GPU

struct CardGenerator final : c10::GeneratorImpl {
  at::Generator cpu = at::detail::createCPUGenerator();
  uint64_t given = 0;
  CardGenerator() : GeneratorImpl(kCard, c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) override {
    given = seed;
    cpu.set_current_seed(seed ^ 0x5DEECE66D5EEDULL);
  }
  uint64_t current_seed() const override { return given; }
  uint64_t seed() override { return cpu.seed(); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override { cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu.unsafeGetGeneratorImpl()->get_state(); }
  CardGenerator* clone_impl() const override {
    auto* copy = new CardGenerator();
    copy->cpu = cpu.clone();
    return copy;
  }
};

at::Generator& default_generator() {
  static at::Generator generator = at::make_generator<CardGenerator>();
  return generator;
}
bool default_generator_given = false;

}  // namespace

// ------------------------------------------------------------------ hooks

namespace at {

struct PretendedHooks : CUDAHooksInterface {
  PretendedHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
  Device getDeviceFromPtr(void*) const override { return kCard; }
  bool isPinnedPtr(const void* pointer) const override {
    std::lock_guard<std::mutex> guard(pinned_lock);
    const auto* place = static_cast<const char*>(pointer);
    auto found = pinned.upper_bound(place);
    if (found == pinned.begin()) return false;
    --found;
    return place < found->first + found->second;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &page_locked_memory; }
  c10::Allocator* getCUDADeviceAllocator() const override { return &card_memory; }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
  Generator getNewGenerator(DeviceIndex) const override {
    if (!default_generator_given) {
      default_generator_given = true;
      return default_generator();
    }
    return make_generator<CardGenerator>();
  }
};

// torch has asked for the hooks while it was imported, and keeps the empty ones. They have no members, so that the table
// of virtual functions is all there is to exchange.
static_assert(sizeof(PretendedHooks) == sizeof(void*) && sizeof(CUDAHooksInterface) == sizeof(void*));
static bool hooks_exchanged = [] {
  static PretendedHooks ours{CUDAHooksArgs{}};
  const CUDAHooksInterface& theirs = at::detail::getCUDAHooks();
  std::memcpy(const_cast<void*>(static_cast<const void*>(&theirs)), static_cast<void*>(&ours), sizeof(void*));
  return true;
}();

}  // namespace at

// ------------------------------------------------------------------ kernels

namespace {

using at::Tensor;
using c10::Storage;

Storage relabelled(const Storage& storage, c10::Device device, c10::Allocator* allocator) {
  c10::DataPtr data(const_cast<void*>(storage.data()), new Storage(storage),
                    [](void* context) { delete static_cast<Storage*>(context); }, device);
  return Storage(Storage::use_byte_size_t(), storage.nbytes(), std::move(data), allocator, true);
}

Tensor view_of(Storage storage, c10::DispatchKeySet keys, const Tensor& like) {
  Tensor made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

Tensor as_host(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  return view_of(relabelled(tensor.storage(), c10::Device(c10::kCPU), c10::GetCPUAllocator()), kCpuKeys, tensor);
}

// A result of the CPU's kernels: the card's from now on, counted as its memory for as long as it lives.
Storage counted(const Storage& storage) {
  const size_t bytes = storage.nbytes();
  refuse_beyond_limit(bytes);
  const size_t now = (live += bytes);
  if (now > peak) peak = now;
  struct Held {
    Storage storage;
    size_t bytes;
  };
  c10::DataPtr data(const_cast<void*>(storage.data()), new Held{storage, bytes},
                    [](void* context) {
                      auto* held = static_cast<Held*>(context);
                      live -= held->bytes;
                      delete held;
                    },
                    kCard);
  return Storage(Storage::use_byte_size_t(), bytes, std::move(data), &card_memory, true);
}

Tensor as_card(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.device().is_cpu()) return tensor;
  return view_of(counted(tensor.storage()), kCudaKeys, tensor);
}

class Call {
 public:
  bool on_card = false;
  std::string stranger;  // an argument that is the host's

  Tensor given(const Tensor& tensor, const std::string& argument, bool host_allowed) {
    if (!tensor.defined()) return tensor;
    if (tensor.is_cuda()) {
      for (auto& pair : pairs_)
        if (pair.second.is_same(tensor)) return pair.first;
      on_card = true;
      Tensor alias = as_host(tensor);
      origins_[alias.storage().unsafeGetStorageImpl()] = tensor;
      pairs_.emplace_back(alias, tensor);
      return alias;
    }
    if (tensor.device().is_cpu() && tensor.dim() > 0 && !host_allowed) stranger = argument;
    return tensor;
  }

  Tensor result(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.device().is_cpu()) return tensor;
    for (auto& pair : pairs_)
      if (pair.first.is_same(tensor)) return pair.second;
    auto origin = origins_.find(tensor.storage().unsafeGetStorageImpl());
    if (origin != origins_.end()) return view_of(origin->second.storage(), kCudaKeys, tensor);
    return as_card(tensor);
  }

  // Arguments that were resized in place.
  void update_arguments() {
    for (auto& [alias, tensor] : pairs_) {
      auto* implementation = tensor.unsafeGetTensorImpl();
      if (alias.storage().data() != tensor.storage().data())
        implementation->set_storage_keep_dtype(counted(alias.storage()));
      if (alias.sizes() != tensor.sizes() || alias.strides() != tensor.strides())
        implementation->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
    }
  }

 private:
  std::unordered_map<c10::StorageImpl*, Tensor> origins_;  // the CPU alias's storage, and the card's tensor
  std::vector<std::pair<Tensor, Tensor>> pairs_;           // CPU alias, and the card's tensor
};

// What CUDA's own kernels take from the host's memory: the indices of advanced indexing.
bool takes_host_indices(const std::string& name) {
  return name == "aten::index" || name == "aten::index_put" || name == "aten::index_put_" ||
         name == "aten::_index_put_impl_" || name == "aten::_unsafe_index" || name == "aten::_unsafe_index_put";
}

at::Generator cpu_generator(const at::Generator& generator) {
  TORCH_CHECK(generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu'");
  return static_cast<CardGenerator*>(generator.unsafeGetGeneratorImpl())->cpu;
}

void compute_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const size_t base = stack->size() - arguments.size();
  const std::string name = op.schema().name();
  Call call;
  bool self_on_host = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    c10::IValue& value = (*stack)[base + i];
    const std::string& argument = arguments[i].name();
    const bool host_allowed = argument == "indices" && takes_host_indices(name);
    if (value.isTensor()) {
      const Tensor& tensor = value.toTensor();
      if (i == 0 && tensor.defined() && tensor.device().is_cpu() && tensor.dim() > 0) self_on_host = true;
      value = call.given(tensor, argument, host_allowed);
    } else if (value.isTensorList()) {
      c10::List<Tensor> tensors;
      for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(call.given(tensor, argument, host_allowed));
      value = tensors;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> tensors;
      for (const auto& tensor : value.toOptionalTensorVector())
        tensors.push_back(tensor ? std::optional<Tensor>(call.given(*tensor, argument, host_allowed)) : std::nullopt);
      value = tensors;
    } else if (value.isDevice() && value.toDevice().is_cuda()) {
      value = c10::Device(c10::kCPU);
    } else if (value.isGenerator()) {
      value = cpu_generator(value.toGenerator());
    } else if (value.isNone() && argument == "generator") {
      value = cpu_generator(default_generator());
    }
  }
  TORCH_CHECK(!(takes_host_indices(name) && self_on_host && call.on_card),
              "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
  TORCH_CHECK(!call.on_card || call.stranger.empty(),
              "Expected all tensors to be on the same device, but got ", call.stranger,
              " is on cpu, different from other tensors on cuda:0 (when checking argument in method ", name, ")");
  op.redispatchBoxed(kCpuKeys, stack);
  call.update_arguments();
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.result(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> tensors;
      for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(call.result(tensor));
      value = tensors;
    }
  }
}

Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
             std::optional<c10::Device> device, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  TORCH_CHECK(!device || device->index() <= 0, "CUDA error: invalid device ordinal");
  return at::detail::empty_generic(size, &card_memory, kCudaKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                     std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &card_memory, kCudaKeys, c10::dtype_or_default(dtype));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  as_host(self).copy_(as_host(source));
  return self;
}

Tensor& set_storage(Tensor& self, Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto* implementation = self.unsafeGetTensorImpl();
  implementation->set_storage_keep_dtype(std::move(storage));
  if (stride.data() == nullptr || (stride.empty() && !size.empty())) {
    implementation->set_storage_offset(offset);
    implementation->set_sizes_contiguous(size);
  } else {
    implementation->set_sizes_and_strides(size, stride, offset);
  }
  return self;
}

Tensor& set_whole_storage(Tensor& self, Storage storage) {
  const auto elements = static_cast<int64_t>(storage.nbytes() / self.dtype().itemsize());
  return set_storage(self, std::move(storage), 0, {elements}, {});
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, c10::IntArrayRef stride,
                   c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
                   int64_t groups) {
  for (const Tensor& tensor : {input, weight, bias.value_or(Tensor())})
    TORCH_CHECK(!tensor.defined() || tensor.is_cuda(), "Expected all tensors to be on the same device (convolution)");
  TORCH_CHECK(input.scalar_type() == weight.scalar_type(), "Input type (", input.toString(), ") and weight type (",
              weight.toString(), ") should be the same");
  const std::optional<Tensor> host_bias = bias ? std::optional<Tensor>(as_host(*bias)) : bias;
  return as_card(at::convolution(as_host(input), as_host(weight), host_bias, stride, padding, dilation, transposed,
                                 output_padding, groups));
}

int64_t limit_memory(int64_t beyond) {
  limit = beyond < 0 ? 0 : live + beyond;
  return static_cast<int64_t>(live);
}

int64_t live_memory() { return static_cast<int64_t>(live); }

int64_t peak_memory(bool reset) {
  const auto before = static_cast<int64_t>(peak);
  if (reset) peak = live.load();
  return before;
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_host>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("copy_", &copy_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("convolution", &convolution);
}

TORCH_LIBRARY(pretended, m) {
  m.def("limit_memory(int beyond) -> int", &limit_memory);
  m.def("live_memory() -> int", &live_memory);
  m.def("peak_memory(bool reset) -> int", &peak_memory);
}

static bool allocator_registered = [] {
  c10::SetAllocator(c10::kCUDA, &card_memory, 1);
  return true;
}();
