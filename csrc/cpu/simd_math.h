// Exponentials of vectors, written once for every instruction set: x = n ln 2 + r, |r| <= ln 2 / 2,
// with ln 2 in two parts (Cody and Waite), and e^r = 1 + r + r^2 q(r). The coefficients of q make
// its largest relative error least: 3e-9 for float, 4e-18 for double.
#pragma once

namespace gatkernels {
namespace GK_ISA {

constexpr float kExp[] = {0.00138145401768013064f, 0.00836874510894259065f, 0.0416683907835479131f,
                          0.166665203990425301f, 0.499999934321292902f};
constexpr double kExpDouble[] = {2.5000018853083342e-8,  2.76303062556478574e-7,
                                 2.75575868038470707e-6, 0.0000248014929496170708,
                                 0.00019841269505773807, 0.0013888888943759984,
                                 0.00833333333349497726, 0.0416666666665297281,
                                 0.166666666666664115,   0.500000000000001067};

// exp(x), or exp(x) - 1 precise near 0, from the whole number next to x / ln 2, whose exponent of
// two `shifted` has in its last bits, and what is left of x.
template <bool kLessOne, class V, class A, int kTerms>
static inline V exponential(V shifted, V r, const A (&terms)[kTerms]) {
  V q = V::set(terms[0]);
  for (int k = 1; k < kTerms; ++k) q = V::fma(q, r, V::set(terms[k]));
  const V power = V::as_exponent(shifted), less_one = V::fma(r * r, q, r);
  return V::fma(less_one, power, kLessOne ? power - V::set(A(1)) : power);
}

// For x <= 0 (above, up to where a float overflows). Errors: 1.1 ulp. exp is 0 below -87.7 (double:
// -708.7), where it would be below the least normal number, and NaN for NaN.
template <bool kLessOne, class V>
static inline V exponential(V x, float) {
  const V whole = V::set(12583039.0f), least = V::max(V::set(-88.0f), x);  // 1.5 2^23 + 127
  const V shifted = V::fma(least, V::set(1.44269504f), whole), n = shifted - whole;
  const V r = V::fma(n, V::set(-0.693359375f), least);
  return exponential<kLessOne>(shifted, V::fma(n, V::set(2.12194440e-4f), r), kExp);
}
template <bool kLessOne, class V>
static inline V exponential(V x, double) {
  const V whole = V::set(6755399441056767.0), least = V::max(V::set(-709.0), x);  // 1.5 2^52 + 1023
  const V shifted = V::fma(least, V::set(1.4426950408889634), whole), n = shifted - whole;
  const V r = V::fma(n, V::set(-6.93145751953125e-1), least);
  return exponential<kLessOne>(shifted, V::fma(n, V::set(-1.42860682030941723212e-6), r),
                               kExpDouble);
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
