//! e^x for vectors and ln x for a double: what softmax, SiLU and the cross entropy need.

use crate::simd::*;

/// 1.5 · 2^23: adding it rounds to an integer, which the low bits of the sum then hold.
const ROUND: f32 = 12_582_912.0;

/// e^x within 2 ulp for every x: 0 below -104, infinity above 88.73, NaN for NaN.
///
/// x = n ln 2 + t with |t| <= ln 2 / 2; e^t by its Taylor series to t^7 (error 5e-9), times 2^n in two steps so that
/// subnormal results and n = 128 come out right. Engines need 8 instructions each for min, max and truncation, but one
/// for pmin, pmax and the addition of ROUND. LLVM 22 makes relaxed ones of pmin and pmax where it may, and these give any
/// operand for a NaN (the bound, on x86), so that it is put back at the end.
#[inline(always)]
pub fn exp(x: v128) -> v128 {
    let nan = f32x4_ne(x, x);
    let x = f32x4_pmin(f32x4_pmax(x, f32x4_splat(-104.0)), f32x4_splat(89.0));
    let shifted = f32x4_add(f32x4_mul(x, f32x4_splat(core::f32::consts::LOG2_E)), f32x4_splat(ROUND));
    let n = f32x4_sub(shifted, f32x4_splat(ROUND));
    let t = f32x4_sub(x, f32x4_mul(n, f32x4_splat(0.693_359_4))); // 355/512: exact product for |n| <= 150
    let t = f32x4_sub(t, f32x4_mul(n, f32x4_splat(-2.121_944_4e-4)));
    let mut p = f32x4_splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = madd(p, t, f32x4_splat(c));
    }
    let n = i32x4_sub(shifted, f32x4_splat(ROUND));
    let half = i32x4_shr(n, 1);
    v128_or(f32x4_mul(f32x4_mul(p, power_of_two(half)), power_of_two(i32x4_sub(n, half))), nan)
}

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn power_of_two(n: v128) -> v128 {
    i32x4_shl(i32x4_add(n, i32x4_splat(127)), 23)
}

/// ln x for a positive normal double, within a few ulp; infinity and NaN pass through.
///
/// x = 2^e m with m in [1/sqrt 2, sqrt 2): ln m = 2 atanh((m - 1) / (m + 1)), whose series ends at the 21st power.
pub fn ln(x: f64) -> f64 {
    if x.is_nan() || x == f64::INFINITY {
        return x;
    }
    let bits = x.to_bits();
    let shifted = bits.wrapping_sub(0x3fe6_a09e_667f_3bcd); // the bits of 1/sqrt 2
    let e = (shifted as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((e as u64) << 52));
    let f = (m - 1.0) / (m + 1.0);
    let square = f * f;
    let mut series = 1.0 / 21.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * square + 1.0 / odd;
    }
    e as f64 * core::f64::consts::LN_2 + 2.0 * f * series
}

/// Square root of a double (`core` has none).
#[inline(always)]
pub fn sqrt(x: f64) -> f64 {
    f64x2_extract_lane::<0>(f64x2_sqrt(f64x2_splat(x)))
}
