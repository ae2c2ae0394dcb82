//! y (count, dim): row i = Σ weights[j] x[rows[j]] for j from offsets[i] below offsets[i + 1]; no weights are ones.

use crate::simd::*;

/// Computes the formula above; a row without terms is zero.
///
/// # Safety
/// All arrays have the sizes above, every index is a row of x; y does not overlap x.
#[no_mangle]
pub unsafe extern "C" fn gather_sum(
    y: *mut f32,
    x: *const f32,
    offsets: *const u32,
    rows: *const u32,
    weights: *const f32,
    count: usize,
    dim: usize,
) {
    for i in 0..count {
        let y = y.add(i * dim);
        let (from, to) = (*offsets.add(i) as usize, *offsets.add(i + 1) as usize);
        by_four(dim, |column, lanes| {
            let mut sums = zero();
            for j in from..to {
                let v = load_lanes(x.add(*rows.add(j) as usize * dim + column), lanes);
                let weight = if weights.is_null() { f32x4_splat(1.0) } else { splat(weights.add(j)) };
                sums = madd(v, weight, sums);
            }
            store_lanes(y.add(column), sums, lanes);
        });
    }
}
