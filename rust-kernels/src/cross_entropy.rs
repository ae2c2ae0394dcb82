//! loss (rows) = log Σ e^logits - logits[target] per row of logits (rows, classes), sums in double precision.

use crate::math::{exp, ln};
use crate::simd::*;

/// Computes the formula above.
///
/// # Safety
/// All arrays have the sizes above and every target is below `classes`.
#[no_mangle]
pub unsafe extern "C" fn cross_entropy(
    loss: *mut f32,
    logits: *const f32,
    targets: *const u32,
    rows: usize,
    classes: usize,
) {
    for row in 0..rows {
        let l = logits.add(row * classes);
        let most = largest(l, classes);
        let mut sums = f64x2_splat(0.0);
        by_four(classes, |i, lanes| {
            let mut e = exp(f32x4_sub(load_lanes(l.add(i), lanes), f32x4_splat(most)));
            if lanes < 4 {
                e = v128_and(e, first_lanes(lanes));
            }
            let high = f64x2_promote_low_f32x4(i64x2_shuffle::<1, 1>(e, e));
            sums = f64x2_add(sums, f64x2_add(f64x2_promote_low_f32x4(e), high));
        });
        let total = f64x2_extract_lane::<0>(sums) + f64x2_extract_lane::<1>(sums);
        let target = *l.add(*targets.add(row) as usize);
        *loss.add(row) = (ln(total) + (most as f64 - target as f64)) as f32;
    }
}

/// Ones in the bits of the first `lanes` lanes.
#[inline(always)]
pub fn first_lanes(lanes: usize) -> v128 {
    i32x4_lt(i32x4(0, 1, 2, 3), i32x4_splat(lanes as i32))
}

/// Largest of `count` values, -infinity of none; a NaN may or may not win, e^(NaN - most) is NaN all the same.
///
/// # Safety
/// `count` floats are readable.
#[inline(always)]
pub unsafe fn largest(p: *const f32, count: usize) -> f32 {
    let mut most = f32x4_splat(f32::NEG_INFINITY);
    by_four(count, |i, lanes| {
        let v = load_lanes(p.add(i), lanes);
        let v = if lanes < 4 { v128_bitselect(v, most, first_lanes(lanes)) } else { v };
        most = f32x4_pmax(most, v);
    });
    maximum(most)
}
