//! Per row t and head with halves (u, v): (u cos_t - v sin_t, v cos_t + u sin_t). x (rows, heads, 2 half);
//! cos and sin (rows, half).

use crate::simd::*;

/// Computes the formula above; y may be x.
///
/// # Safety
/// All arrays have the sizes above.
#[no_mangle]
pub unsafe extern "C" fn rope(
    y: *mut f32,
    x: *const f32,
    cos: *const f32,
    sin: *const f32,
    rows: usize,
    heads: usize,
    half: usize,
) {
    for row in 0..rows {
        let (cos, sin) = (cos.add(row * half), sin.add(row * half));
        for head in 0..heads {
            let at = (row * heads + head) * 2 * half;
            let (x, y) = (x.add(at), y.add(at));
            by_four(half, |i, lanes| {
                let (u, v) = (load_lanes(x.add(i), lanes), load_lanes(x.add(half + i), lanes));
                let (c, s) = (load_lanes(cos.add(i), lanes), load_lanes(sin.add(i), lanes));
                store_lanes(y.add(i), f32x4_sub(f32x4_mul(u, c), f32x4_mul(v, s)), lanes);
                store_lanes(y.add(half + i), f32x4_add(f32x4_mul(v, c), f32x4_mul(u, s)), lanes);
            });
        }
    }
}
