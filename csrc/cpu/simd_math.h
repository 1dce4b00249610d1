// Exponentials of vectors (Cephes' range reduction and, in float, its polynomial), written once for
// every instruction set.
#pragma once

namespace gatkernels {
namespace GK_ISA {

// exp(x), or exp(x) - 1 precise near 0, for x <= 0 (above, up to where a float overflows). Errors:
// 1.5 ulp (2 without FMA) for float, 1 ulp for double. exp is 0 where it would be subnormal, NaN
// for NaN.
template <bool kLessOne, class V>
static inline V exponential(V x, float) {
  const V n = V::round(V::max(V::set(-88.0f), x) * V::set(1.44269504f));
  V r = V::fma(n, V::set(-0.693359375f), V::max(V::set(-88.0f), x));
  r = V::fma(n, V::set(2.12194440e-4f), r);
  V p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  const V one = V::set(1.0f), power = V::power_of_two(n);
  if constexpr (kLessOne) return V::fma(V::fma(r * r, p, r), power, power - one);
  return V::at_least(x, -87.33f, V::fma(r * r, p, r + one) * power);
}
template <bool kLessOne, class V>
static inline V exponential(V x, double) {
  const V n = V::round(V::max(V::set(-709.0), x) * V::set(1.4426950408889634));
  V r = V::fma(n, V::set(-6.93145751953125e-1), V::max(V::set(-709.0), x));
  r = V::fma(n, V::set(-1.42860682030941723212e-6), r);
  V p = V::set(1.0 / 6227020800.0);  // 1 / 13!
  const double factorials[] = {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0,
                               720.0,       120.0,      24.0,      6.0,      2.0};
  for (double factorial : factorials) p = V::fma(p, r, V::set(1.0 / factorial));
  const V one = V::set(1.0), power = V::power_of_two(n);
  if constexpr (kLessOne) return V::fma(V::fma(r * r, p, r), power, power - one);
  return V::at_least(x, -708.0, V::fma(r * r, p, r + one) * power);
}

template <class A>
static inline Vec<A> exp(Vec<A> x) {
  return exponential<false>(x, A());
}
template <class A>
static inline Vec<A> expm1(Vec<A> x) {
  return exponential<true>(x, A());
}

}  // namespace GK_ISA
}  // namespace gatkernels
