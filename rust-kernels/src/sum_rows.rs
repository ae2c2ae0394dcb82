//! out (n) += the sum of the rows of dy (m, n).

use crate::simd::*;

/// Computes the formula above, 16 columns at a time: a cache line per row.
///
/// # Safety
/// All arrays have the sizes above.
#[no_mangle]
pub unsafe extern "C" fn sum_rows(out: *mut f32, dy: *const f32, m: usize, n: usize) {
    let mut column = 0;
    while column + 16 <= n {
        let mut sums = [zero(); 4];
        for row in 0..m {
            for i in 0..4 {
                sums[i] = f32x4_add(sums[i], load(dy.add(row * n + column + 4 * i)));
            }
        }
        for i in 0..4 {
            let at = out.add(column + 4 * i);
            store(at, f32x4_add(load(at), sums[i]));
        }
        column += 16;
    }
    by_four(n - column, |i, lanes| {
        let mut sums = zero();
        for row in 0..m {
            sums = f32x4_add(sums, load_lanes(dy.add(row * n + column + i), lanes));
        }
        let at = out.add(column + i);
        store_lanes(at, f32x4_add(load_lanes(at, lanes), sums), lanes);
    });
}
