//! y (rows, dim) = x / sqrt(mean(x²) + eps) ∘ gain (dim), the mean in double precision.

use crate::math::sqrt;
use crate::simd::*;

/// Computes the formula above; y may be x.
///
/// # Safety
/// All arrays have the sizes above.
#[no_mangle]
pub unsafe extern "C" fn rms_norm(y: *mut f32, x: *const f32, gain: *const f32, rows: usize, dim: usize, eps: f32) {
    for row in 0..rows {
        let (y, x) = (y.add(row * dim), x.add(row * dim));
        let mut squares = [f64x2_splat(0.0); 2];
        by_four(dim, |i, lanes| {
            let v = load_lanes(x.add(i), lanes);
            let low = f64x2_promote_low_f32x4(v);
            let high = f64x2_promote_low_f32x4(i64x2_shuffle::<1, 1>(v, v));
            squares[0] = f64x2_add(squares[0], f64x2_mul(low, low));
            squares[1] = f64x2_add(squares[1], f64x2_mul(high, high));
        });
        let both = f64x2_add(squares[0], squares[1]);
        let mean = (f64x2_extract_lane::<0>(both) + f64x2_extract_lane::<1>(both)) / dim as f64;
        let factor = f32x4_splat((1.0 / sqrt(mean + eps as f64)) as f32);
        by_four(dim, |i, lanes| {
            let v = f32x4_mul(load_lanes(x.add(i), lanes), factor);
            store_lanes(y.add(i), f32x4_mul(v, load_lanes(gain.add(i), lanes)), lanes);
        });
    }
}
