//! y (count, k) = rows `ids` of a packed table (n, k), widened to f32.

use crate::blocks::panel_size;
use crate::dequantize::widen;
use crate::{F32, PANEL};

/// Depths that are widened at a time.
const CHUNK: usize = 64;

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
    let mut wide = [0.0f32; CHUNK * PANEL];
    for i in 0..count {
        let id = *ids.add(i) as usize;
        let panel = w.add(id / PANEL * panel_size(k, w_dtype));
        for from in (0..k).step_by(CHUNK) {
            let depth = CHUNK.min(k - from);
            let mut source = (panel as *const f32).wrapping_add(from * PANEL);
            if w_dtype != F32 {
                widen(wide.as_mut_ptr() as *mut u8, panel, w_dtype, from, depth);
                source = wide.as_ptr();
            }
            for t in 0..depth {
                *y.add(i * k + from + t) = *source.add(t * PANEL + id % PANEL);
            }
        }
    }
}
