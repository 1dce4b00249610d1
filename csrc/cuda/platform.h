// What the kernels need of CUDA. The same files compile as plain C++ against a small emulator, for
// tests on machines without a GPU; every launch goes through GK_LAUNCH.
#pragma once

#ifndef GK_SIMT

#include <cuda_runtime.h>

#define GK_DEVICE __device__ __forceinline__
#define GK_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
// with few enough registers for so many blocks on a multiprocessor
#define GK_KERNEL_BLOCKS(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define GK_CONSTANT const __grid_constant__
#define GK_GLOBAL static __device__
#define GK_UNROLL _Pragma("unroll")
#define GK_SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#define GK_LAUNCH(kernel, grid, threads, shared, stream, call) \
  kernel<<<grid, threads, shared, stream>>>(call)

#else

#include "simt.h"

#define GK_DEVICE inline
#define GK_KERNEL(threads) void
#define GK_KERNEL_BLOCKS(threads, blocks) void
#define GK_CONSTANT const
#define GK_GLOBAL static
#define GK_UNROLL
#define GK_SHARED_MEMORY(name) unsigned char* name = simt::shared_memory()
#define GK_LAUNCH(kernel, grid, threads, shared, stream, call) \
  simt::launch(grid, threads, shared, stream, [&] { kernel(call); })

#endif

namespace gatkernels {
namespace cuda {

constexpr unsigned kFull = 0xFFFFFFFFu;  // all lanes of a warp
constexpr int kWarp = 32;
constexpr int kWarps = 4;  // of a block
constexpr int kThreads = kWarp * kWarps;

GK_GLOBAL uint4 zeros[2];  // what vectors and fields that are none read

}  // namespace cuda
}  // namespace gatkernels
