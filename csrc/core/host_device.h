// Functions that CUDA kernels share with the host.
#pragma once

#ifdef __CUDACC__
#define GK_HOST_DEVICE __host__ __device__
#define GK_INLINE __host__ __device__ __forceinline__
#else
#define GK_HOST_DEVICE
#define GK_INLINE __attribute__((always_inline)) inline
#endif
