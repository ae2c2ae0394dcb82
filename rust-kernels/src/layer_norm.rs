//! y (rows, dim) = (x - mean) / sqrt(variance + eps) ∘ gain + bias, mean and variance in double precision.

use crate::math::sqrt;
use crate::simd::*;

/// Computes the formula above; y may be x.
///
/// # Safety
/// All arrays have the sizes above; gain and bias (dim).
#[no_mangle]
pub unsafe extern "C" fn layer_norm(
    y: *mut f32,
    x: *const f32,
    gain: *const f32,
    bias: *const f32,
    rows: usize,
    dim: usize,
    eps: f32,
) {
    for row in 0..rows {
        let (y, x) = (y.add(row * dim), x.add(row * dim));
        let mean = moments(x, dim, 0.0).0 / dim as f64;
        let variance = moments(x, dim, mean).1 / dim as f64;
        let (center, factor) = (f64x2_splat(mean), f64x2_splat(1.0 / sqrt(variance + eps as f64)));
        by_four(dim, |i, lanes| {
            let v = load_lanes(x.add(i), lanes);
            let low = f64x2_mul(f64x2_sub(f64x2_promote_low_f32x4(v), center), factor);
            let high = f64x2_promote_low_f32x4(i64x2_shuffle::<1, 1>(v, v));
            let high = f64x2_mul(f64x2_sub(high, center), factor);
            let v = i64x2_shuffle::<0, 2>(f32x4_demote_f64x2_zero(low), f32x4_demote_f64x2_zero(high));
            let v = f32x4_add(f32x4_mul(v, load_lanes(gain.add(i), lanes)), load_lanes(bias.add(i), lanes));
            store_lanes(y.add(i), v, lanes);
        });
    }
}

/// Σ (x - center) and Σ (x - center)².
#[inline(never)]
unsafe fn moments(x: *const f32, count: usize, center: f64) -> (f64, f64) {
    let mut sums = [f64x2_splat(0.0); 2];
    let mut i = 0;
    while i + 2 <= count {
        let v = f64x2_sub(f64x2_promote_low_f32x4(v128_load64_zero(x.add(i) as *const u64)), f64x2_splat(center));
        sums[0] = f64x2_add(sums[0], v);
        sums[1] = f64x2_add(sums[1], f64x2_mul(v, v));
        i += 2;
    }
    let last = if i < count { *x.add(i) as f64 - center } else { 0.0 };
    let sum = |v| f64x2_extract_lane::<0>(v) + f64x2_extract_lane::<1>(v);
    (sum(sums[0]) + last, sum(sums[1]) + last * last)
}
