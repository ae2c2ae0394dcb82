//! y (rows, dim) = factor · scale ∘ x + shift; scale and shift (dim), 0 for none.

use crate::simd::*;

/// Computes the formula above; y may be x.
///
/// # Safety
/// All arrays have the sizes above.
#[no_mangle]
pub unsafe extern "C" fn affine_rows(
    y: *mut f32,
    x: *const f32,
    scale: *const f32,
    shift: *const f32,
    factor: f32,
    rows: usize,
    dim: usize,
) {
    for row in 0..rows {
        let (y, x) = (y.add(row * dim), x.add(row * dim));
        by_four(dim, |i, lanes| {
            let mut v = f32x4_mul(load_lanes(x.add(i), lanes), f32x4_splat(factor));
            if !scale.is_null() {
                v = f32x4_mul(v, load_lanes(scale.add(i), lanes));
            }
            if !shift.is_null() {
                v = f32x4_add(v, load_lanes(shift.add(i), lanes));
            }
            store_lanes(y.add(i), v, lanes);
        });
    }
}
