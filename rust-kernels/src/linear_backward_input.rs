//! dx (m, k) += dy (m, n) W, with W (n, k) as the panels of the forward pass: no second copy of the weight.
//!
//! Many rows: 8x8 pieces of 64 columns are transposed into scratch panels, then the ordinary tile runs over all rows.
//! Few rows: one pass over W, each vector of 8 rows of W times the matching 8 of dy, summed across lanes.

use crate::blocks::panel_size;
use crate::dequantize::widen;
use crate::product::{product, Product, NONE};
use crate::simd::*;
use crate::tile::{Out, Term};
use crate::{round_up, F32, PANEL};

/// Columns of dx per block: whole cache lines of W, 64 KiB of scratch with BLOCK_N.
const BLOCK_K: usize = 64;
/// Rows of W per block.
const BLOCK_N: usize = 256;
/// From this many rows on the transposition pays.
const MANY: usize = 6;
/// Columns of a panel that stay in the first-level cache for the few rows.
const CHUNK: usize = 256;

/// Bytes of scratch that `linear_backward_input` wants.
#[no_mangle]
pub extern "C" fn linear_backward_input_scratch(m: usize, n: usize, k: usize, _w_dtype: u32) -> usize {
    if m < MANY {
        return 0;
    }
    round_up(k, PANEL).min(BLOCK_K) * round_up(n, PANEL).min(BLOCK_N) * 4
}

/// Computes the `columns` columns of dx from `from` on.
///
/// # Safety
/// All arrays have the sizes above, `scratch` that of `linear_backward_input_scratch`; dx overlaps none of them.
#[no_mangle]
pub unsafe extern "C" fn linear_backward_input(
    dx: *mut f32,
    dy: *const f32,
    w: *const u8,
    w_dtype: u32,
    m: usize,
    n: usize,
    k: usize,
    from: usize,
    columns: usize,
    scratch: *mut f32,
) {
    let part = Part { dx: dx.add(from), dy, w, w_dtype, m, n, k, from, columns };
    if m < MANY {
        few(&part)
    } else {
        many(&part, scratch)
    }
}

/// The `columns` columns of dx from `from` on that one call computes: dx is where they start, k the length of a row.
struct Part {
    dx: *mut f32,
    dy: *const f32,
    w: *const u8,
    w_dtype: u32,
    m: usize,
    n: usize,
    k: usize,
    from: usize,
    columns: usize,
}

impl Part {
    /// Columns of a panel as f32: where they are, or a copy in `wide`.
    #[inline(always)]
    unsafe fn columns_of(&self, panel: usize, column: usize, columns: usize, wide: *mut f32) -> *const f32 {
        let at = self.w.add(panel * panel_size(self.k, self.w_dtype));
        if self.w_dtype == F32 {
            return (at as *const f32).add((self.from + column) * PANEL);
        }
        widen(wide as *mut u8, at, self.w_dtype, self.from + column, columns);
        wide
    }
}

unsafe fn many(p: &Part, scratch: *mut f32) {
    let mut wide = [0.0f32; BLOCK_K * PANEL];
    let mut column = 0;
    while column < p.columns {
        let columns = BLOCK_K.min(p.columns - column);
        let mut row = 0;
        while row < p.n {
            let depth = BLOCK_N.min(p.n - row);
            let stored = round_up(depth, PANEL);
            for panel in 0..stored / PANEL {
                let from = p.columns_of(row / PANEL + panel, column, columns, wide.as_mut_ptr());
                turn(scratch.add(panel * PANEL * PANEL), from, columns, stored);
            }
            let main = Term { a: p.dy.add(row), stride: p.n, b: scratch as *const u8, k: depth };
            let out = Out { c: p.dx.add(column), stride: p.k, bias: core::ptr::null(), load: true };
            product::<false>(&Product { m: p.m, n: columns, main, panel: stored * 32, tail: NONE, out });
            row += depth;
        }
        column += columns;
    }
}

/// Transposes `columns` columns of 8 rows of W into 8 rows of the scratch panels, which are `stored` deep.
unsafe fn turn(scratch: *mut f32, from: *const f32, columns: usize, stored: usize) {
    by_four(columns, |t, lanes| {
        let (mut low, mut high) = ([zero(); 4], [zero(); 4]);
        for i in 0..lanes {
            let at = from.add((t + i) * PANEL);
            (low[i], high[i]) = (load(at), load(at.add(4)));
        }
        let (low, high) = (transpose(low), transpose(high));
        let panel = scratch.add(t / PANEL * stored * PANEL + t % PANEL);
        for i in 0..4 {
            store(panel.add(i * PANEL), low[i]);
            store(panel.add((i + 4) * PANEL), high[i]);
        }
    });
}

unsafe fn few(p: &Part) {
    let mut wide = [0.0f32; CHUNK * PANEL];
    let mut row = 0;
    while row < p.n {
        let mut from = 0;
        while from < p.columns {
            let columns = CHUNK.min(p.columns - from);
            let values = p.columns_of(row / PANEL, from, columns, wide.as_mut_ptr());
            for i in 0..p.m {
                let at = p.dy.add(i * p.n + row);
                let d = [load_lanes(at, p.n - row), load_lanes(at.wrapping_add(4), (p.n - row).saturating_sub(4))];
                add_panel(p.dx.add(i * p.k + from), d, values, columns);
            }
            from += columns;
        }
        row += PANEL;
    }
}

/// dx (columns) += the columns of one panel times the 8 values d.
#[inline(always)]
unsafe fn add_panel(dx: *mut f32, d: [v128; 2], panel: *const f32, columns: usize) {
    by_four(columns, |t, lanes| {
        let mut sums = [zero(); 4];
        for i in 0..lanes {
            let at = panel.add((t + i) * PANEL);
            sums[i] = madd(load(at.add(4)), d[1], f32x4_mul(load(at), d[0]));
        }
        let at = dx.add(t);
        store_lanes(at, f32x4_add(load_lanes(at, lanes), sum_each(sums)), lanes);
    });
}
