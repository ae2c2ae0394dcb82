//! dst (n, k), row-major f32, from panels: the inverse of `pack`, of `quantize` and of `pack_blocks`.

use crate::blocks::panel_size;
use crate::dequantize::widen;
use crate::simd::*;
use crate::PANEL;

/// Depths that are widened at a time.
const CHUNK: usize = 64;

/// Unpacks.
///
/// # Safety
/// src holds the panels of (n, k), dst n · k floats; they do not overlap.
#[no_mangle]
pub unsafe extern "C" fn unpack(dst: *mut f32, src: *const u8, n: usize, k: usize, dtype: u32) {
    let mut wide = [0.0f32; CHUNK * PANEL];
    for row in (0..n).step_by(PANEL) {
        let panel = src.add(row / PANEL * panel_size(k, dtype));
        for from in (0..k).step_by(CHUNK) {
            let depth = CHUNK.min(k - from);
            widen(wide.as_mut_ptr() as *mut u8, panel, dtype, from, depth);
            turn(dst.add(row * k + from), k, wide.as_ptr(), depth, PANEL.min(n - row));
        }
    }
}

/// Writes `[depth][8]` as up to 8 rows.
unsafe fn turn(dst: *mut f32, stride: usize, wide: *const f32, depth: usize, rows: usize) {
    by_four(depth, |t, lanes| {
        let (mut low, mut high) = ([zero(); 4], [zero(); 4]);
        for i in 0..lanes {
            let at = wide.add((t + i) * PANEL);
            (low[i], high[i]) = (load(at), load(at.add(4)));
        }
        let turned = [transpose(low), transpose(high)];
        for i in 0..rows {
            let v = *(turned.as_ptr() as *const v128).add(i);
            store_lanes(dst.add(i * stride + t), v, lanes);
        }
    });
}
