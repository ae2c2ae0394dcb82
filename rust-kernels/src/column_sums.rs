//! sums (dim) += factor · Σ over the rows of x ∘ y; x and y (rows, dim), y 0 for ones.

use crate::simd::*;

/// Computes the formula above, 16 columns at a time: a cache line per row.
///
/// # Safety
/// All arrays have the sizes above.
#[no_mangle]
pub unsafe extern "C" fn column_sums(
    sums: *mut f32,
    x: *const f32,
    y: *const f32,
    factor: f32,
    rows: usize,
    dim: usize,
) {
    let mut column = 0;
    while column < dim {
        let lanes = |i: usize| (dim - column).saturating_sub(4 * i);
        let mut totals = [zero(); 4];
        for row in 0..rows {
            let at = row * dim + column;
            for i in 0..4 {
                let mut v = load_lanes(x.wrapping_add(at + 4 * i), lanes(i));
                if !y.is_null() {
                    v = f32x4_mul(v, load_lanes(y.wrapping_add(at + 4 * i), lanes(i)));
                }
                totals[i] = f32x4_add(totals[i], v);
            }
        }
        for i in 0..4 {
            let at = sums.wrapping_add(column + 4 * i);
            store_lanes(at, madd(totals[i], f32x4_splat(factor), load_lanes(at, lanes(i))), lanes(i));
        }
        column += 16;
    }
}
