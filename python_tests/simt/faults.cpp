// What the emulator says of a right kernel and of three wrong ones.
#include <cstdio>

#include "simt.h"

template <class Kernel>
void report(const char* name, Kernel kernel) {
  try {
    simt::launch(dim3(1), dim3(64), 64 * sizeof(int), nullptr, kernel);
    std::printf("%s: nothing\n", name);
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", name, error.what());
  }
}

int main() {
  int sum = 0;
  simt::launch(dim3(2), dim3(64), 64 * sizeof(int), nullptr, [&] {
    int* shared = reinterpret_cast<int*>(simt::shared_memory());
    const int mine = int(threadIdx.x), other = __shfl_xor_sync(~0u, mine, 16);
    shared[63 - mine] = other;  // read by a thread of the other warp
    __syncthreads();
    if (blockIdx.x == 1) sum += __any_sync(~0u, mine == 40) == (mine >= 32) ? shared[mine] : 0;
  });
  std::printf("sum: %d\n", sum);
  report("warp", [] {
    if (threadIdx.x % 2 == 0) __syncwarp();
  });
  report("block", [] {
    if (threadIdx.x < 32) __syncthreads();
  });
  report("unaligned", [] {
    alignas(16) static const float values[8] = {};
    __ldg(reinterpret_cast<const float4*>(values + 1));
  });
}
