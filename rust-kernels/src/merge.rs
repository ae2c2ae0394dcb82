//! W' (n, k) = W + Σ s B A in the panels themselves, each element rounded once to W's type.
//!
//! The tile is turned: its rows are ROWS values of k, its columns the 8 rows of W of a panel, so that it reads and writes
//! 192 contiguous bytes of W. A lies as strips with s folded in; several branches are one of their summed rank.
//! Quantized panels are merged as f32 copies and rounded again, which may lose as much as the branches add: the sums of
//! squares of both are returned.

use crate::blocks::panel_size;
use crate::dequantize::widen;
use crate::halves::{as_stored, load_panel, panel_bytes, store_exact};
use crate::quantize::quantize_panel;
use crate::simd::*;
use crate::strips::element;
use crate::tile::{accumulate, Term, ROWS};
use crate::{round_up, BF16, EXACT, F32, PANEL};

/// One branch, as the caller lays it out.
#[repr(C)]
pub struct Branch {
    /// A (r, k), f32 panels.
    pub a: *const f32,
    /// B (n, r), f32 panels.
    pub b: *const f32,
    /// Its rank.
    pub r: usize,
    /// Its scale.
    pub s: f32,
}

/// Bytes of scratch that `merge` wants for branches of `total_r` ranks in sum.
#[no_mangle]
pub extern "C" fn merge_scratch(k: usize, total_r: usize, w_dtype: u32) -> usize {
    let copies = if is_float(w_dtype) { 0 } else { 2 };
    (round_up(k, ROWS) + PANEL) * total_r * 4 + copies * panel_size(k, F32)
}

/// Whether the tile reads and writes the panels themselves.
fn is_float(w_dtype: u32) -> bool {
    w_dtype == F32 || w_dtype == BF16
}

/// Merges `panels` panels from panel `from` on, with `total` ranks in sum; returns 0 if every result is finite, else 1.
/// `dst` may be `w`; padded rows stay zero. `squares` grow by those of what rounding quantized panels lost, and of what
/// the branches add.
///
/// # Safety
/// All arrays have the sizes above, `branches` holds `count` records, `scratch` the bytes of `merge_scratch`.
#[no_mangle]
pub unsafe extern "C" fn merge(
    dst: *mut u8,
    w: *const u8,
    w_dtype: u32,
    branches: *const Branch,
    count: usize,
    total: usize,
    k: usize,
    from: usize,
    panels: usize,
    scratch: *mut f32,
    squares: *mut f64,
) -> u32 {
    fill_strips(scratch, branches, count, k, total);
    let b = scratch.add(round_up(k, ROWS) * total);
    let copies = b.add(PANEL * total) as *mut u8;
    let mut probe = zero();
    for p in from..from + panels {
        gather_b(b, branches, count, p);
        let at = p * panel_size(k, w_dtype);
        let (dst, w) = (dst.add(at), w.add(at));
        let seen = match w_dtype {
            BF16 => merge_panel::<true>(dst, w, scratch, b, k, total),
            F32 => merge_panel::<false>(dst, w, scratch, b, k, total),
            _ => {
                let merged = copies.add(panel_size(k, F32));
                widen(copies, w, w_dtype, 0, k);
                let seen = merge_panel::<false>(merged, copies, scratch, b, k, total);
                f32x4_add(seen, round_panel(dst, merged, copies, k, w_dtype, squares))
            }
        };
        probe = f32x4_add(probe, seen);
    }
    (sum(probe) != 0.0) as u32
}

/// Quantizes a merged panel; `before` is what it was, and then what is left of it. Returns as `quantize_panel`.
unsafe fn round_panel(
    dst: *mut u8,
    merged: *const u8,
    before: *mut u8,
    k: usize,
    w_dtype: u32,
    squares: *mut f64,
) -> v128 {
    *squares.add(1) += square_distance(merged, before, k);
    let fits = quantize_panel(dst, merged, k, w_dtype & !EXACT);
    widen(before, dst, w_dtype, 0, k);
    *squares += square_distance(merged, before, k);
    fits
}

/// Σ (a - b)² over two f32 panels.
unsafe fn square_distance(a: *const u8, b: *const u8, k: usize) -> f64 {
    let mut total = 0.0;
    for i in 0..k * PANEL {
        let difference = (*(a as *const f32).add(i) - *(b as *const f32).add(i)) as f64;
        total += difference * difference;
    }
    total
}

/// s A as strips `[k / ROWS][total][ROWS]`.
unsafe fn fill_strips(strips: *mut f32, branches: *const Branch, count: usize, k: usize, total: usize) {
    let mut first = 0;
    for i in 0..count {
        let branch = &*branches.add(i);
        for j in 0..branch.r {
            for depth in 0..round_up(k, ROWS) {
                let value = if depth < k { branch.s * element(branch.a, k, j, depth) } else { 0.0 };
                *strips.add((depth / ROWS * total + first + j) * ROWS + depth % ROWS) = value;
            }
        }
        first += branch.r;
    }
}

/// Panel `p` of all B, one behind the other.
unsafe fn gather_b(b: *mut f32, branches: *const Branch, count: usize, p: usize) {
    let mut to = b;
    for i in 0..count {
        let branch = &*branches.add(i);
        let floats = branch.r * PANEL;
        core::ptr::copy_nonoverlapping(branch.b.add(p * floats), to, floats);
        to = to.add(floats);
    }
}

/// Merges one panel; returns zeros, or NaN if a result is not finite.
unsafe fn merge_panel<const HALF: bool>(
    dst: *mut u8,
    w: *const u8,
    strips: *const f32,
    b: *const f32,
    k: usize,
    total: usize,
) -> v128 {
    let mut probe = zero();
    let mut from = 0;
    while from < k {
        let term =
            Term { a: strips.add(from / ROWS * ROWS * total + from % ROWS), stride: 0, b: b as *const u8, k: total };
        let at = from * panel_bytes(HALF);
        let (dst, w) = (dst.add(at), w.add(at));
        if from % ROWS == 0 && k - from >= ROWS {
            probe = merge_tile::<ROWS, HALF>(dst, w, &term, probe);
            from += ROWS;
        } else {
            probe = merge_tile::<1, HALF>(dst, w, &term, probe);
            from += 1;
        }
    }
    probe
}

/// `MR` values of k of one panel. The products are summed first, then added to W: one rounding at W's magnitude.
#[inline(always)]
unsafe fn merge_tile<const MR: usize, const HALF: bool>(dst: *mut u8, w: *const u8, term: &Term, probe: v128) -> v128 {
    let mut sums = [[zero(); 2]; MR];
    accumulate::<MR, true>(&mut sums, term);
    let mut probe = probe;
    for i in 0..MR {
        let at = i * panel_bytes(HALF);
        let (low, high) = load_panel::<HALF>(w.add(at));
        let low = as_stored::<HALF>(f32x4_add(low, sums[i][0]));
        let high = as_stored::<HALF>(f32x4_add(high, sums[i][1]));
        store_exact::<HALF>(dst.add(at), low, high);
        // 0 times a finite number is 0, times infinity or NaN it is NaN
        probe = madd(high, zero(), madd(low, zero(), probe));
    }
    probe
}
