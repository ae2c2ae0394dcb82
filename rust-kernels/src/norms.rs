//! The inverse norms 1 / ‖W + Δ‖ per row or per column, in steps: sums of squares in double precision, then roots.

use crate::math::sqrt;

/// sums += (w + delta)² by row (rows) or, where `by_column` is not 0, by column (k). w and delta (rows, k).
///
/// # Safety
/// All arrays have the sizes above.
#[no_mangle]
pub unsafe extern "C" fn add_squares(
    sums: *mut f64,
    w: *const f32,
    delta: *const f32,
    rows: usize,
    k: usize,
    by_column: u32,
) {
    for row in 0..rows {
        let (w, delta) = (w.add(row * k), delta.add(row * k));
        for t in 0..k {
            let v = (*w.add(t) + *delta.add(t)) as f64;
            *sums.add(if by_column == 0 { row } else { t }) += v * v;
        }
    }
}

/// out (count) = 1 / sqrt(sums), 0 for 0.
///
/// # Safety
/// Both arrays hold `count` numbers.
#[no_mangle]
pub unsafe extern "C" fn inverse_roots(out: *mut f32, sums: *const f64, count: usize) {
    for i in 0..count {
        let root = sqrt(*sums.add(i));
        *out.add(i) = if root == 0.0 { 0.0 } else { (1.0 / root) as f32 };
    }
}
