//! C (m, n) = [C | 0] + bias + A (m, k) B (k, n) + tail, over panels of B: the loops around the micro-kernel.

use crate::edges::{gather, scatter};
use crate::few_rows::{few_rows, FEW_ROWS};
use crate::halves::panel_bytes;
use crate::tile::{tile_of, Out, Term, ROWS};
use crate::PANEL;

/// Depth of a block when k is above `WHOLE_K`: a panel of 16 KiB and 6 rows of A stay in the first-level cache.
/// 512 over 256: 2048³ 1.08x, as C is read and written half as often.
pub const BLOCK_K: usize = 512;
/// Largest k that is not split.
pub const WHOLE_K: usize = 1024;

/// Rows that are multiplied while a block of B arrives, and the depth of their slices. From memory, 4096 x 4096: 4 rows
/// 1.3x, 12 rows 1.55x, 128 rows 1.04x over reading the block first; from the cache 6 rows lose up to 6 %.
const LEAD: usize = 2 * ROWS;
const SLICE: usize = 32;

/// A product; the terms describe row 0 and panel 0.
#[derive(Clone, Copy)]
pub struct Product {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// A B.
    pub main: Term,
    /// Bytes between the panels of B.
    pub panel: usize,
    /// A second product in the same sums; none if its k is 0. Its panels are `[k][8]` f32, one behind the other.
    pub tail: Term,
    /// Where it goes; the bias is n values.
    pub out: Out,
}

/// No tail.
pub const NONE: Term = Term { a: core::ptr::null(), stride: 0, b: core::ptr::null(), k: 0 };

/// Runs a product over f32 panels without splitting k: strips of rows outside, panels inside.
///
/// # Safety
/// `p` describes readable operands and a writable result.
#[inline(never)]
pub unsafe fn product<const STRIP: bool>(p: &Product) {
    for i in (0..p.m).step_by(ROWS) {
        let rows = slice_m(p, i, ROWS.min(p.m - i));
        if !STRIP && rows.m <= FEW_ROWS {
            few_rows::<false>(&rows);
        } else {
            strip_of_rows::<STRIP>(rows);
        }
    }
}

/// The tiles of a strip of rows. The last one, if it has fewer than 8 columns, runs on a copy.
#[inline(always)]
unsafe fn strip_of_rows<const STRIP: bool>(p: Product) {
    let Product { n, mut main, mut tail, mut out, .. } = p;
    for j in (0..n).step_by(PANEL) {
        if n - j >= PANEL {
            tile_of::<STRIP>(p.m, &main, &tail, &out);
        } else {
            let mut copy = [0.0f32; ROWS * PANEL];
            let c = copy.as_mut_ptr();
            gather(c, &p, j);
            tile_of::<STRIP>(p.m, &main, &tail, &Out { c, stride: PANEL, bias: core::ptr::null(), load: true });
            scatter(&p, j, c);
        }
        main.b = main.b.wrapping_add(p.panel);
        tail.b = tail.b.wrapping_add(tail.k * panel_bytes(false));
        out.c = out.c.wrapping_add(PANEL);
        if !out.bias.is_null() {
            out.bias = out.bias.wrapping_add(PANEL);
        }
    }
}

/// Depth of the blocks for this shape: few rows read B once and gain nothing from blocks.
pub fn block_depth(m: usize, k: usize) -> usize {
    if k <= WHOLE_K || m <= FEW_ROWS {
        k
    } else {
        BLOCK_K
    }
}

/// The part of a product with depths `from` to `from + depth` of A and of f32 panels; bias with the first, tail
/// with the last.
pub fn slice_k(p: &Product, from: usize, depth: usize) -> Product {
    let mut part = *p;
    part.main.a = p.main.a.wrapping_add(from);
    part.main.b = p.main.b.wrapping_add(from * panel_bytes(false));
    part.main.k = depth;
    if from > 0 {
        part.out.load = true;
        part.out.bias = core::ptr::null();
    }
    if from + depth < p.main.k {
        part.tail = NONE;
    }
    part
}

/// The tail as a product of its own, added to what the rest gave.
pub fn tail_of(p: &Product) -> Product {
    let out = Out { load: true, bias: core::ptr::null(), ..p.out };
    Product { main: p.tail, panel: p.tail.k * panel_bytes(false), tail: NONE, out, ..*p }
}

/// Runs a product of rows over f32 panels in blocks of k.
///
/// # Safety
/// As `product`.
#[inline(never)]
pub unsafe fn product_in_blocks(p: &Product) {
    let block = block_depth(p.m, p.main.k);
    let mut from = 0;
    loop {
        let depth = block.min(p.main.k - from);
        let part = slice_k(p, from, depth);
        let leading = if p.m > FEW_ROWS { LEAD.min(p.m) } else { 0 };
        if leading > 0 {
            lead(&slice_m(&part, 0, leading));
        }
        product::<false>(&slice_m(&part, leading, p.m - leading));
        from += depth;
        if from >= p.main.k {
            return;
        }
    }
}

/// The first rows of a block that comes from memory, in thin slices of k: so the panels are read in turns, and prefetchers
/// run ahead in each while these rows are multiplied.
unsafe fn lead(rows: &Product) {
    let mut from = 0;
    loop {
        let depth = SLICE.min(rows.main.k - from);
        product::<false>(&slice_k(rows, from, depth));
        from += depth;
        if from >= rows.main.k {
            return;
        }
    }
}

/// The part of a product with rows `from` to `from + rows`.
unsafe fn slice_m(p: &Product, from: usize, rows: usize) -> Product {
    let mut part = *p;
    part.m = rows;
    part.main.a = p.main.a.add(from * p.main.stride);
    part.tail.a = p.tail.a.wrapping_add(from * p.tail.stride);
    part.out.c = p.out.c.add(from * p.out.stride);
    part
}
