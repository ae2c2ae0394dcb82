//! y (count, k) = rows `ids` of a packed table (n, k), widened to f32.

use crate::{BF16, PANEL};

/// Gathers; every id is below n.
///
/// # Safety
/// All arrays have the sizes above.
#[no_mangle]
pub unsafe extern "C" fn embedding(
    y: *mut f32,
    ids: *const u32,
    w: *const u8,
    w_dtype: u32,
    count: usize,
    _n: usize,
    k: usize,
) {
    for i in 0..count {
        let id = *ids.add(i) as usize;
        let (to, from, column) = (y.add(i * k), id / PANEL * k * PANEL, id % PANEL);
        if w_dtype == BF16 {
            let halves = (w as *const u16).add(from + if column < 4 { 2 * column } else { 2 * column - 7 });
            for t in 0..k {
                *to.add(t) = f32::from_bits((*halves.add(t * PANEL) as u32) << 16);
            }
        } else {
            let floats = (w as *const f32).add(from + column);
            for t in 0..k {
                *to.add(t) = *floats.add(t * PANEL);
            }
        }
    }
}
