//! gelu(x) = x / 2 · (1 + erf(x / sqrt 2)), its approximation by tanh, and tanh. All of `count` elements.

use crate::math::exp;
use crate::simd::*;

/// sqrt(2 / π) and the cubic term of the approximation (Hendrycks and Gimpel 2016), doubled.
const TANH_SLOPE: f32 = 2.0 * 0.797_884_6;
const TANH_CUBE: f32 = 0.044_715;

/// y (count) = f(x), four elements at a call: `f` is large, and its tail would double it.
#[inline(never)]
unsafe fn map(y: *mut f32, x: *const f32, count: usize, f: fn(v128) -> v128) {
    by_four(count, |i, lanes| store_lanes(y.add(i), f(load_lanes(x.add(i), lanes)), lanes));
}

/// y (count) = x / 2 · (1 + erf(x / sqrt 2)); y may be x.
///
/// # Safety
/// Both hold `count` floats.
#[no_mangle]
pub unsafe extern "C" fn gelu(y: *mut f32, x: *const f32, count: usize) {
    map(y, x, count, |v| {
        let tail = erfc(f32x4_mul(f32x4_abs(v), f32x4_splat(core::f32::consts::FRAC_1_SQRT_2)));
        // 1 + erf(z) is erfc(-z): no digits are lost where it is small.
        let factor = v128_bitselect(tail, f32x4_sub(f32x4_splat(2.0), tail), f32x4_lt(v, zero()));
        f32x4_mul(f32x4_mul(v, f32x4_splat(0.5)), factor)
    });
}

/// y (count) = x / (1 + e^(-2u)), u = sqrt(2 / π) (x + 0.044715 x³): x / 2 · (1 + tanh u); y may be x.
///
/// # Safety
/// Both hold `count` floats.
#[no_mangle]
pub unsafe extern "C" fn gelu_tanh(y: *mut f32, x: *const f32, count: usize) {
    map(y, x, count, |v| {
        let cube = f32x4_mul(f32x4_mul(v, v), f32x4_mul(v, f32x4_splat(TANH_CUBE)));
        let u = f32x4_mul(f32x4_add(v, cube), f32x4_splat(-TANH_SLOPE));
        f32x4_div(v, f32x4_add(f32x4_splat(1.0), exp(u)))
    });
}

/// y (count) = tanh x; y may be x.
///
/// # Safety
/// Both hold `count` floats.
#[no_mangle]
pub unsafe extern "C" fn tanh(y: *mut f32, x: *const f32, count: usize) {
    map(y, x, count, |v| {
        let size = f32x4_abs(v);
        let e = exp(f32x4_mul(size, f32x4_splat(-2.0)));
        let large = f32x4_div(f32x4_sub(f32x4_splat(1.0), e), f32x4_add(f32x4_splat(1.0), e));
        let large = v128_bitselect(v, large, f32x4_splat(-0.0));
        let small = f32x4_add(v, f32x4_mul(v, tanh_series(f32x4_mul(v, v))));
        v128_bitselect(small, large, f32x4_lt(size, f32x4_splat(0.625)))
    });
}

/// (tanh x - x) / x for |x| < 0.625 and its square, within an ulp of tanh (Moshier, Cephes `tanhf`).
#[inline(always)]
fn tanh_series(square: v128) -> v128 {
    let mut p = f32x4_splat(-5.704_988_7e-3);
    for c in [2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = madd(p, square, f32x4_splat(c));
    }
    f32x4_mul(p, square)
}

/// erfc z for z >= 0 with a relative error below 1.2e-7 (Press et al., Numerical Recipes, `erfcc`).
#[inline(always)]
fn erfc(z: v128) -> v128 {
    let t = f32x4_div(f32x4_splat(1.0), madd(z, f32x4_splat(0.5), f32x4_splat(1.0)));
    let mut p = f32x4_splat(0.170_872_77);
    for c in [
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ] {
        p = madd(p, t, f32x4_splat(c));
    }
    f32x4_mul(t, exp(f32x4_sub(p, f32x4_mul(z, z))))
}
