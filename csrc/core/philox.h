// Philox4x32-10 (Salmon et al., 2011): the same words on every backend.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace gatkernels {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// Key: the 64-bit seed. Counter: (edge id, head / 4), 64 bits each; word = head % 4.
GK_HOST_DEVICE static inline void philox(uint64_t seed, uint64_t edge, uint64_t group,
                                         uint32_t word[4]) {
  uint32_t c0 = uint32_t(edge), c1 = uint32_t(edge >> 32);
  uint32_t c2 = uint32_t(group), c3 = uint32_t(group >> 32);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = uint64_t(kPhiloxM0) * c0, p1 = uint64_t(kPhiloxM1) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(p1);
    c3 = uint32_t(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

constexpr int kPhiloxLanes = 16;

// word[w][l]: word w of counter (counter + l, 0). Lanes side by side need no transposing.
static inline void philox_lanes(uint64_t seed, uint64_t counter,
                                uint32_t (&word)[4][kPhiloxLanes]) {
  for (int l = 0; l < kPhiloxLanes; ++l) {
    word[0][l] = uint32_t(counter + l);
    word[1][l] = uint32_t((counter + l) >> 32);
    word[2][l] = word[3][l] = 0;
  }
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int l = 0; l < kPhiloxLanes; ++l) {
      const uint64_t p0 = uint64_t(kPhiloxM0) * word[0][l], p1 = uint64_t(kPhiloxM1) * word[2][l];
      word[0][l] = uint32_t(p1 >> 32) ^ word[1][l] ^ k0;
      word[2][l] = uint32_t(p0 >> 32) ^ word[3][l] ^ k1;
      word[1][l] = uint32_t(p1);
      word[3][l] = uint32_t(p0);
    }
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
}

}  // namespace gatkernels
