//! dst (n, k), row-major f32, from panels: the inverse of `pack`.

use crate::halves::{load_panel, panel_bytes};
use crate::simd::*;
use crate::{BF16, PANEL};

/// Unpacks.
///
/// # Safety
/// src holds the panels of (n, k), dst n · k floats; they do not overlap.
#[no_mangle]
pub unsafe extern "C" fn unpack(dst: *mut f32, src: *const u8, n: usize, k: usize, dtype: u32) {
    if dtype == BF16 {
        unpack_as::<true>(dst, src, n, k);
    } else {
        unpack_as::<false>(dst, src, n, k);
    }
}

unsafe fn unpack_as<const HALF: bool>(dst: *mut f32, src: *const u8, n: usize, k: usize) {
    let mut row = 0;
    while row < n {
        let panel = src.add(row * k * (panel_bytes(HALF) / PANEL));
        by_four(k, |t, lanes| {
            let (mut low, mut high) = ([zero(); 4], [zero(); 4]);
            for i in 0..lanes {
                (low[i], high[i]) = load_panel::<HALF>(panel.add((t + i) * panel_bytes(HALF)));
            }
            let turned = [transpose(low), transpose(high)];
            for i in 0..PANEL.min(n - row) {
                let v = *(turned.as_ptr() as *const v128).add(i);
                store_lanes(dst.add((row + i) * k + t), v, lanes);
            }
        });
        row += PANEL;
    }
}
