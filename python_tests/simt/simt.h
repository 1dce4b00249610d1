// A small emulator of CUDA's threads, enough to run the kernels of csrc/cuda as plain C++.
//
// Blocks run one after another, a block's threads as fibers: each runs until it comes to a
// collective operation of its warp or block, and goes on when all have come there. A warp or block
// whose threads wait for different things, or for one that has ended, is an error; so is an access
// that is not aligned to its size. Shared memory starts as NaN and is as large as asked for, so
// that an address sanitizer sees what goes past its end. `reversed` turns the order of threads
// round: what comes out differently depends on an order that no barrier makes sure of.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN 1
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101
};
namespace simt {
inline cudaError_t last_error = cudaSuccess;  // kept until somebody asks, as CUDA's runtime does
}
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = simt::last_error;
  simt::last_error = cudaSuccess;
  return error;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device != 0) simt::last_error = cudaErrorInvalidDevice;
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
enum cudaDeviceAttr {
  cudaDevAttrL2CacheSize,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrClockRate,
  cudaDevAttrMemoryClockRate,
  cudaDevAttrGlobalMemoryBusWidth
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 0;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorInvalidDevice) return "invalid device ordinal";
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

namespace simt {

constexpr int kWarp = 32;
#ifdef SIMT_ASAN
constexpr size_t kStack = 256 << 10;
#else
constexpr size_t kStack = 64 << 10;
#endif

enum class Wait { kNothing, kShuffle, kAny, kSyncWarp, kSyncThreads, kEnded };

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;
  void* fake_stack = nullptr;  // the address sanitizer's
  dim3 thread;
  Wait wait = Wait::kNothing;
  int turn = 0;  // which of the two values below the next collective uses
  uint64_t values[2];
};

inline std::vector<Fiber> fibers;
inline std::unique_ptr<char[]> stacks;
inline size_t stack_count = 0;
inline Fiber scheduler;
inline Fiber* current = nullptr;
inline void (*run_body)(const void*) = nullptr;
inline const void* body = nullptr;
inline dim3 block, grid, block_size;
inline std::unique_ptr<unsigned char[]> shared;
inline std::string failure;
inline bool reversed = false;

inline unsigned char* shared_memory() { return shared.get(); }

#if defined(__x86_64__)
// Saves what a call preserves, changes stacks, restores.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*from*/, void* /*to*/) {
  __asm__ volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
#endif

#ifdef SIMT_ASAN
// The scheduler's stack, as the sanitizer tells whoever is switched to from it.
inline const void* main_bottom = nullptr;
inline size_t main_size = 0;
#endif

inline void switch_to(Fiber& from, Fiber& to, bool ends = false) {
#ifdef SIMT_ASAN
  const bool enters = &to != &scheduler;
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, enters ? to.stack : main_bottom,
                                 enters ? kStack : main_size);
#endif
#if defined(__x86_64__)
  switch_stacks(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#ifdef SIMT_ASAN
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(from.fake_stack, &bottom, &size);
  if (&from != &scheduler) main_bottom = bottom, main_size = size;
#endif
  (void)ends;
}

inline void leave(Wait wait) {
  current->wait = wait;
  switch_to(*current, scheduler, wait == Wait::kEnded);
}
// Ends the launch with an error; the fiber is never resumed.
[[noreturn]] inline void fail(const std::string& why) {
  failure = why;
  leave(Wait::kNothing);
  std::abort();
}

inline void enter() {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &main_bottom, &main_size);
#endif
  run_body(body);
  leave(Wait::kEnded);
  std::abort();
}

inline void prepare(Fiber& fiber, char* stack) {
  fiber.stack = stack;
  fiber.wait = Wait::kNothing;
  fiber.turn = 0;
#ifdef SIMT_ASAN
  ASAN_UNPOISON_MEMORY_REGION(stack, kStack);  // of the last thread's frames, which never returned
#endif
#if defined(__x86_64__)
  auto* top =
      reinterpret_cast<uintptr_t*>((reinterpret_cast<uintptr_t>(stack) + kStack) & ~uintptr_t(15));
  *--top = 0;  // as after a call: the stack is 16 bytes aligned below the return address
  *--top = reinterpret_cast<uintptr_t>(&enter);
  top -= 6;
  std::memset(top, 0, 6 * sizeof(*top));
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
#endif
}

inline void run(Fiber& fiber) {
  current = &fiber;
  fiber.wait = Wait::kNothing;
  switch_to(scheduler, fiber);
  current = nullptr;
  if (!failure.empty()) throw std::runtime_error("simt: " + failure);
}

// Runs the threads of a warp until each waits for the block or has ended.
inline Wait run_warp(Fiber* warp, int lanes) {
  for (;;) {
    for (int i = 0; i < lanes; ++i) run(warp[reversed ? lanes - 1 - i : i]);
    for (int i = 1; i < lanes; ++i) {
      if (warp[i].wait != warp[0].wait) {
        throw std::runtime_error("simt: a barrier that not all threads of a warp come to");
      }
    }
    if (warp[0].wait == Wait::kEnded || warp[0].wait == Wait::kSyncThreads) return warp[0].wait;
  }
}

inline void run_block(int threads) {
  std::vector<bool> ended((threads + kWarp - 1) / kWarp);
  for (int i = 0; i < threads; ++i) {
    prepare(fibers[i], stacks.get() + size_t(i) * kStack);
    fibers[i].thread = dim3(i % block_size.x, i / block_size.x, 0);
  }
  for (size_t left = ended.size(); left > 0;) {
    size_t now = 0;
    for (size_t k = 0; k < ended.size(); ++k) {
      const size_t w = reversed ? ended.size() - 1 - k : k;
      const int first = int(w) * kWarp;
      if (!ended[w] && run_warp(&fibers[first], threads - first < kWarp ? threads - first
                                                                        : kWarp) == Wait::kEnded) {
        ended[w] = true;
        ++now;
      }
    }
    if (now > 0 && now < left) {
      throw std::runtime_error("simt: a barrier that not all threads of a block come to");
    }
    left -= now;
  }
}

inline int launches = 0;

template <class Body>
void launch(dim3 grid_, dim3 block_, size_t shared_bytes, cudaStream_t, const Body& call) {
  ++launches;
  const int threads = int(block_.x * block_.y * block_.z);
  grid = grid_;
  block_size = block_;
  body = &call;
  run_body = [](const void* p) { (*static_cast<const Body*>(p))(); };
  if (stack_count < size_t(threads)) {
    stack_count = size_t(threads);
    stacks.reset(new char[stack_count * kStack]);
    fibers.resize(stack_count);
  }
  failure.clear();
  shared.reset(new unsigned char[shared_bytes]);
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      block = dim3(x, y, 0);
      std::memset(shared.get(), 0xFF, shared_bytes);
      run_block(threads);
    }
  }
  shared.reset();
}

// Gives `value` to the other lanes of the warp, and waits until all have given theirs.
template <class T>
int exchange(const T& value, Wait wait) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves up to 64 bits");
  const int turn = current->turn;
  std::memcpy(&current->values[turn], &value, sizeof(T));
  current->turn = 1 - turn;  // a lane ahead of the others must not overwrite what they read
  leave(wait);
  return turn;
}
template <class T>
T value_of(int lane_in_warp, int turn) {
  const ptrdiff_t me = current - fibers.data();
  T value;
  std::memcpy(&value, &fibers[me / kWarp * kWarp + lane_in_warp].values[turn], sizeof(T));
  return value;
}
inline int lane() { return int(current - fibers.data()) % kWarp; }

template <class T>
void check_aligned(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) {
    fail("an access of " + std::to_string(sizeof(T)) + " bytes that is not aligned");
  }
}

}  // namespace simt

#define threadIdx (simt::current->thread)
#define blockIdx (simt::block)
#define blockDim (simt::block_size)
#define gridDim (simt::grid)

template <class T>
T __shfl_sync(unsigned, T value, int source, int width = 32) {
  const int turn = simt::exchange(value, simt::Wait::kShuffle);
  const int first = simt::lane() / width * width;
  return simt::value_of<T>(first + (source & (width - 1)), turn);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const int turn = simt::exchange(value, simt::Wait::kShuffle);
  return simt::value_of<T>(simt::lane() ^ mask, turn);
}
inline int __any_sync(unsigned, bool predicate) {
  const int turn = simt::exchange(int(predicate), simt::Wait::kAny);
  int any = 0;
  for (int lane = 0; lane < simt::kWarp; ++lane) any |= simt::value_of<int>(lane, turn);
  return any;
}
inline void __syncwarp() { simt::leave(simt::Wait::kSyncWarp); }
inline void __syncthreads() { simt::leave(simt::Wait::kSyncThreads); }

template <class T>
T __ldg(const T* p) {
  simt::check_aligned(p);
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return __ldg(p);
}
template <class T>
void __stcs(T* p, T value) {
  simt::check_aligned(p);
  *p = value;
}
