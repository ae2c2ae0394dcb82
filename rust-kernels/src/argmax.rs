//! ids (rows): the index of the greatest of each row of logits (rows, classes).

use crate::cross_entropy::largest;
use crate::simd::*;

/// Writes the ids as floats: the first among equals, or -1 where a logit is NaN or the greatest is infinite.
///
/// # Safety
/// All arrays have the sizes above; classes is at least 1.
#[no_mangle]
pub unsafe extern "C" fn argmax(ids: *mut f32, logits: *const f32, rows: usize, classes: usize) {
    for row in 0..rows {
        *ids.add(row) = likeliest(logits.add(row * classes), classes).map_or(-1.0, |id| id as f32);
    }
}

/// The first of the greatest logits; none if one is NaN or the greatest is infinite.
///
/// # Safety
/// `count` floats are readable at `p`.
pub unsafe fn likeliest(p: *const f32, count: usize) -> Option<usize> {
    let mut nan = zero();
    by_four(count, |i, lanes| {
        let v = load_lanes(p.add(i), lanes);
        nan = v128_or(nan, f32x4_ne(v, v));
    });
    let most = largest(p, count);
    if v128_any_true(nan) || !most.is_finite() {
        return None;
    }
    (0..count).find(|&i| *p.add(i) == most)
}
