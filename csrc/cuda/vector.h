// A lane's piece of a row: V values read in one access, up to 128 bits, and what they hold.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../core/half.h"
#include "platform.h"

namespace gatkernels {
namespace cuda {

// Sums are in float, and in double for double.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <int kBytes>
using Word = std::conditional_t<
    kBytes == 16, uint4,
    std::conditional_t<kBytes == 8, uint2,
                       std::conditional_t<kBytes == 4, unsigned, unsigned short>>>;

// Values of T in one access, of V that lie side by side.
template <class T, int V>
constexpr int kAtOnce = sizeof(T) * V > 16 ? 16 / int(sizeof(T)) : V;

GK_DEVICE float widen(float x) { return x; }
GK_DEVICE double widen(double x) { return x; }
GK_DEVICE float widen(BFloat16 x) { return to_float(x); }
#ifdef __CUDACC__  // one instruction each, and no need of CUDA's large headers
GK_DEVICE float widen(Half x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}
GK_DEVICE void narrow(float x, Half& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
GK_DEVICE void narrow(float x, BFloat16& to) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
}
#else
GK_DEVICE float widen(Half x) { return to_float(x); }
GK_DEVICE void narrow(float x, BFloat16& to) { to = to_bfloat16(x); }
GK_DEVICE void narrow(float x, Half& to) { to = to_half(x); }
#endif
GK_DEVICE void narrow(float x, float& to) { to = x; }
GK_DEVICE void narrow(double x, double& to) { to = x; }

// Values as they lie in memory; zeros until loaded.
template <class T, int V>
struct Raw {
  using Words = Word<sizeof(T) * V>;
  Words words;

  GK_DEVICE Raw() : words() {}
  GK_DEVICE void load(const T* p) { words = __ldg(reinterpret_cast<const Words*>(p)); }
  GK_DEVICE void get(Sum<T> (&to)[V]) const {
    T values[V];
    std::memcpy(values, &words, sizeof(words));
    GK_UNROLL
    for (int v = 0; v < V; ++v) to[v] = widen(values[v]);
  }
  GK_DEVICE void add_to(Sum<T> (&to)[V]) const {
    Sum<T> values[V];
    get(values);
    GK_UNROLL
    for (int v = 0; v < V; ++v) to[v] += values[v];
  }
};

// visit(k, v) for each of K times V values, such as a lane's V in each of K vectors
template <int K, int V, class Visit>
GK_DEVICE void each_value(Visit visit) {
  GK_UNROLL
  for (int k = 0; k < K; ++k) {
    GK_UNROLL
    for (int v = 0; v < V; ++v) visit(k, v);
  }
}

template <class T, int V>
GK_DEVICE void load(const T* p, Sum<T> (&to)[V]) {
  constexpr int kPart = kAtOnce<T, V>;  // less than V for sums of a vector of 16-bit values
  GK_UNROLL
  for (int v = 0; v < V; v += kPart) {
    Raw<T, kPart> raw;
    Sum<T> part[kPart];
    raw.load(p + v);
    raw.get(part);
    GK_UNROLL
    for (int k = 0; k < kPart; ++k) to[v + k] = part[k];
  }
}

// The same from memory that this launch writes.
template <class A, int V>
GK_DEVICE void load_plain(const A* p, A (&to)[V]) {
  constexpr int kPart = kAtOnce<A, V>;
  using Words = Word<sizeof(A) * kPart>;
  GK_UNROLL
  for (int v = 0; v < V; v += kPart) {
    const Words words = *reinterpret_cast<const Words*>(p + v);
    std::memcpy(&to[v], &words, sizeof(words));
  }
}

template <class A, int V>
GK_DEVICE void store_plain(A* p, const A (&from)[V]) {
  constexpr int kPart = kAtOnce<A, V>;
  using Words = Word<sizeof(A) * kPart>;
  GK_UNROLL
  for (int v = 0; v < V; v += kPart) {
    Words words;
    std::memcpy(&words, &from[v], sizeof(words));
    *reinterpret_cast<Words*>(p + v) = words;
  }
}

// Streaming: nothing in the same launch reads it again.
template <class T, int V>
GK_DEVICE void store(T* p, const Sum<T> (&from)[V]) {
  constexpr int kPart = kAtOnce<T, V>;
  using Words = Word<sizeof(T) * kPart>;
  GK_UNROLL
  for (int v = 0; v < V; v += kPart) {
    T values[kPart];
    GK_UNROLL
    for (int k = 0; k < kPart; ++k) narrow(from[v + k], values[k]);
    Words words;
    std::memcpy(&words, values, sizeof(words));
    __stcs(reinterpret_cast<Words*>(p + v), words);
  }
}

// Four sums side by side: what an edge needs of the node at its other end, per head.
template <class A>
struct Fields {
  A values[4];
};
GK_DEVICE Fields<float> load_fields(const float* p) {
  const float4 f = __ldg(reinterpret_cast<const float4*>(p));
  return {{f.x, f.y, f.z, f.w}};
}
GK_DEVICE Fields<double> load_fields(const double* p) {
  const double2 a = __ldg(reinterpret_cast<const double2*>(p));
  const double2 b = __ldg(reinterpret_cast<const double2*>(p) + 1);
  return {{a.x, a.y, b.x, b.y}};
}

GK_DEVICE float exponential(float x) { return expf(x); }
GK_DEVICE double exponential(double x) { return exp(x); }
template <class A>
GK_DEVICE A larger(A a, A b) {
  return a > b ? a : b;
}
template <class A>
GK_DEVICE A lowest() {
  constexpr A value = -std::numeric_limits<A>::max();
  return value;
}
template <class A>
GK_DEVICE A minus_infinity() {
  constexpr A value = -std::numeric_limits<A>::infinity();
  return value;
}
// exp(x - top), zero where both are -inf (every edge so far is masked)
template <class A>
GK_DEVICE A exp_below(A x, A top) {
  return exponential(x - larger(top, lowest<A>()));
}
// What sums kept under an old maximum are multiplied with under a new one.
template <class A>
GK_DEVICE A rescale(A old_top, A new_top) {
  return old_top == new_top ? A(1) : exponential(old_top - new_top);
}

}  // namespace cuda
}  // namespace gatkernels
