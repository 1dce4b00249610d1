// Storage of 16-bit floats; arithmetic is in float.
#pragma once
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace gatkernels {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

GK_HOST_DEVICE static inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
GK_HOST_DEVICE static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

GK_HOST_DEVICE static inline float to_float(BFloat16 x) {
  return bits_to_float(uint32_t(x.bits) << 16);
}
GK_HOST_DEVICE static inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if (value != value) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};  // to nearest, ties to even
}

GK_HOST_DEVICE static inline float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t magnitude = x.bits & 0x7FFF;
  if (magnitude >= 0x7C00) return bits_to_float(sign | 0x7F800000 | ((magnitude & 0x3FF) << 13));
  if (magnitude >= 0x0400) return bits_to_float(sign | ((magnitude << 13) + 0x38000000));
  const float subnormal = float(magnitude) * 5.9604644775390625e-8f;  // 2^-24
  return bits_to_float(sign | float_to_bits(subnormal));
}
GK_HOST_DEVICE static inline Half to_half(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return {uint16_t(sign | 0x7E00)};
  if (magnitude >= 0x477FF000) return {uint16_t(sign | 0x7C00)};  // rounds past the largest
  if (magnitude < 0x38800000) {  // subnormal: let the float adder round to a multiple of 2^-24
    const float rounded = bits_to_float(magnitude) + 0.5f;
    return {uint16_t(sign | (float_to_bits(rounded) - 0x3F000000))};
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return {uint16_t(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13))};
}

}  // namespace gatkernels
