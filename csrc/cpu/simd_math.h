// Exponentials of vectors, written once for every instruction set: x = n ln 2 + r, |r| <= ln 2 / 2,
// with ln 2 in two parts (Cody and Waite), and e^r = 1 + r + r^2 q(r). The coefficients of q make
// its largest relative error least: 3e-9 for float, 4e-18 for double.
#pragma once
#include <iterator>

namespace gatkernels {
namespace GK_ISA {

// kWhole is added to a small number so that its last bits hold the whole one next to it, plus the
// exponent of 1.
template <class A>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr float kWhole = 12583039.0f, kLeast = -88.0f;  // 1.5 2^23 + 127
  static constexpr float kPerLn2 = 1.44269504f, kLn2[] = {0.693359375f, -2.12194440e-4f};
  static constexpr float kTerms[] = {0.00138145401768013064f, 0.00836874510894259065f,
                                     0.0416683907835479131f, 0.166665203990425301f,
                                     0.499999934321292902f};
};
template <>
struct Exponential<double> {
  static constexpr double kWhole = 6755399441056767.0, kLeast = -709.0;  // 1.5 2^52 + 1023
  static constexpr double kPerLn2 = 1.4426950408889634;
  static constexpr double kLn2[] = {6.93145751953125e-1, 1.42860682030941723212e-6};
  static constexpr double kTerms[] = {2.5000018853083342e-8,  2.76303062556478574e-7,
                                      2.75575868038470707e-6, 0.0000248014929496170708,
                                      0.00019841269505773807, 0.0013888888943759984,
                                      0.00833333333349497726, 0.0416666666665297281,
                                      0.166666666666664115,   0.500000000000001067};
};

// exp(x), or exp(x) - 1 precise near 0, for x <= 0 (above, up to where a float overflows). Errors:
// 1.1 ulp. exp is 0 below -87.7 (double: -708.7), and NaN for NaN.
template <bool kLessOne, class A>
static inline Vec<A> exponential(Vec<A> x) {
  using V = Vec<A>;
  using E = Exponential<A>;
  const V whole = V::set(E::kWhole), above = V::max(V::set(E::kLeast), x);
  const V shifted = V::fma(above, V::set(E::kPerLn2), whole), n = shifted - whole;
  V r = V::fma(n, V::set(-E::kLn2[0]), above);
  r = V::fma(n, V::set(-E::kLn2[1]), r);
  V q = V::set(E::kTerms[0]);
  for (size_t k = 1; k < std::size(E::kTerms); ++k) q = V::fma(q, r, V::set(E::kTerms[k]));
  const V power = V::as_exponent(shifted), less_one = V::fma(r * r, q, r);
  return V::fma(less_one, power, kLessOne ? power - V::set(A(1)) : power);
}

template <class A>
static inline Vec<A> exp(Vec<A> x) {
  return exponential<false>(x);
}
template <class A>
static inline Vec<A> expm1(Vec<A> x) {
  return exponential<true>(x);
}

}  // namespace GK_ISA
}  // namespace gatkernels
