// Functions that CUDA kernels share with the host.
#pragma once

#ifdef __CUDACC__
#define GK_HOST_DEVICE __host__ __device__
#else
#define GK_HOST_DEVICE
#endif
