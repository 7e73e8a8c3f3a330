// Memory of the pretended card and page-locked memory of the host, with a limit, live bytes and a peak.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

const c10::Device kCard(c10::kCUDA, 0);

std::mutex pinned_lock;
std::map<const char*, size_t> pinned;
std::atomic<size_t> live{0}, peak{0}, limit{0};

void refuse_beyond_limit(size_t bytes) {
  if (limit && live + bytes > limit)
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", bytes,
                     " bytes; the pretended card has ", limit.load());
}

struct Block {
  void* start;
  size_t bytes;
  bool page_locked;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  if (block->page_locked) {
    std::lock_guard<std::mutex> guard(pinned_lock);
    pinned.erase(static_cast<const char*>(block->start));
  } else {
    live -= block->bytes;
  }
  std::free(block->start);
  delete block;
}

struct Memory final : c10::Allocator {
  bool page_locked;
  c10::Device device;
  Memory(bool locked, c10::Device where) : page_locked(locked), device(where) {}
  c10::DataPtr allocate(size_t bytes) override {
    if (!page_locked) refuse_beyond_limit(bytes);
    void* start = nullptr;
    if (posix_memalign(&start, 64, bytes ? bytes : 1)) TORCH_CHECK(false, "pretended card: the host is out of memory");
    if (page_locked) {
      std::lock_guard<std::mutex> guard(pinned_lock);
      pinned[static_cast<const char*>(start)] = bytes ? bytes : 1;
    } else {
      const size_t now = (live += bytes);
      if (now > peak) peak = now;
    }
    return {start, new Block{start, bytes, page_locked}, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory card_memory(false, kCard), page_locked_memory(true, c10::Device(c10::kCPU));

}  // namespace
