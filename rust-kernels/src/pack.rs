//! Panels of W (n, k) from a row-major matrix (n, k), or (k, n) if transposed; f32, bf16 or f16 to f32 or bf16.

use crate::halves::{load1, load4, panel_bytes, store_panel};
use crate::simd::*;
use crate::{BF16, F16, F32, PANEL};

/// Packs; bf16 is rounded to nearest even, rows are padded to 8 with zeros.
///
/// # Safety
/// src holds n · k elements, dst n rounded up to 8 times k; they do not overlap.
#[no_mangle]
pub unsafe extern "C" fn pack(
    dst: *mut u8,
    src: *const u8,
    n: usize,
    k: usize,
    src_dtype: u32,
    dst_dtype: u32,
    transposed: u32,
) {
    match (src_dtype, dst_dtype) {
        (BF16, BF16) => pack_as::<BF16, true>(dst, src, n, k, transposed),
        (BF16, _) => pack_as::<BF16, false>(dst, src, n, k, transposed),
        (F16, BF16) => pack_as::<F16, true>(dst, src, n, k, transposed),
        (F16, _) => pack_as::<F16, false>(dst, src, n, k, transposed),
        (_, BF16) => pack_as::<F32, true>(dst, src, n, k, transposed),
        _ => pack_as::<F32, false>(dst, src, n, k, transposed),
    }
}

unsafe fn pack_as<const S: u32, const HALF: bool>(dst: *mut u8, src: *const u8, n: usize, k: usize, transposed: u32) {
    let mut row = 0;
    while row < n {
        let panel = dst.add(row * k * (panel_bytes(HALF) / PANEL));
        let whole = n - row >= PANEL;
        match (whole, transposed != 0) {
            (true, true) => across::<S, HALF>(panel, src, n, row, k),
            (true, false) => down::<S, HALF>(panel, src, row, k),
            (false, _) => rest::<S, HALF>(panel, src, n, row, k, transposed != 0),
        }
        row += PANEL;
    }
}

/// A whole panel of a (k, n) source: its rows are what is wanted.
unsafe fn across<const S: u32, const HALF: bool>(panel: *mut u8, src: *const u8, n: usize, row: usize, k: usize) {
    for t in 0..k {
        let at = t * n + row;
        store_panel::<HALF>(panel.add(t * panel_bytes(HALF)), load4::<S>(src, at), load4::<S>(src, at + 4));
    }
}

/// A whole panel of an (n, k) source, by 4x4 transposes.
unsafe fn down<const S: u32, const HALF: bool>(panel: *mut u8, src: *const u8, row: usize, k: usize) {
    let mut t = 0;
    while t + 4 <= k {
        let (mut low, mut high) = ([zero(); 4], [zero(); 4]);
        for i in 0..4 {
            low[i] = load4::<S>(src, (row + i) * k + t);
            high[i] = load4::<S>(src, (row + i + 4) * k + t);
        }
        let (low, high) = (transpose(low), transpose(high));
        for i in 0..4 {
            store_panel::<HALF>(panel.add((t + i) * panel_bytes(HALF)), low[i], high[i]);
        }
        t += 4;
    }
    while t < k {
        gather::<S, HALF>(panel.add(t * panel_bytes(HALF)), src, row * k + t, k, PANEL);
        t += 1;
    }
}

/// The last panel, if n is no multiple of 8.
unsafe fn rest<const S: u32, const HALF: bool>(
    panel: *mut u8,
    src: *const u8,
    n: usize,
    row: usize,
    k: usize,
    transposed: bool,
) {
    for t in 0..k {
        let (at, step) = if transposed { (t * n + row, 1) } else { (row * k + t, k) };
        gather::<S, HALF>(panel.add(t * panel_bytes(HALF)), src, at, step, n - row);
    }
}

/// One k of a panel: `count` elements from `at` on, `step` apart, then zeros.
#[inline(never)]
unsafe fn gather<const S: u32, const HALF: bool>(dst: *mut u8, src: *const u8, at: usize, step: usize, count: usize) {
    let mut values = [0.0f32; PANEL];
    let to = values.as_mut_ptr();
    for i in 0..count {
        *to.add(i) = load1::<S>(src, at + i * step);
    }
    store_panel::<HALF>(dst, load(to), load(to.add(4)));
}
