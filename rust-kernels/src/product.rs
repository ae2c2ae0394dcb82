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

/// From this many rows on a block of B is read once before it is used.
const WARM_M: usize = 4 * ROWS;

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
        let mut rows = *p;
        rows.m = ROWS.min(p.m - i);
        rows.main.a = p.main.a.add(i * p.main.stride);
        rows.tail.a = p.tail.a.wrapping_add(i * p.tail.stride);
        rows.out.c = p.out.c.add(i * p.out.stride);
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

/// Depth of the blocks for this shape: one strip of rows streams B once and gains nothing from blocks.
pub fn block_depth(m: usize, k: usize) -> usize {
    if k <= WHOLE_K || m <= ROWS {
        k
    } else {
        BLOCK_K
    }
}

/// The part of a product with depths `from` to `from + depth` of A and B; bias with the first, tail with the last. B
/// stays where it is.
#[inline(always)]
pub fn slice_k(p: &Product, from: usize, depth: usize) -> Product {
    let mut part = *p;
    part.main.a = p.main.a.wrapping_add(from);
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

/// Reads one byte of each cache line of panels. Loads that wait for nothing reach the full rate of the memory, those
/// between products half of it: 128 x 4096 x 4096 1.07x, a token of SmolLM2 in Q4_1 1.2x.
///
/// # Safety
/// The panels are readable.
#[inline(never)]
pub unsafe fn warm(b: *const u8, panels: usize, stride: usize, bytes: usize) {
    let mut seen = 0;
    for j in 0..panels {
        let mut at = 0;
        while at < bytes {
            seen |= *b.add(j * stride + at);
            at += 64;
        }
    }
    core::hint::black_box(seen); // else the loads are dropped
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
        let mut part = slice_k(p, from, depth);
        part.main.b = p.main.b.wrapping_add(from * panel_bytes(false));
        if p.m >= WARM_M {
            warm(part.main.b, p.n.div_ceil(PANEL), p.panel, depth * panel_bytes(false));
        }
        product::<false>(&part);
        from += depth;
        if from >= p.main.k {
            return;
        }
    }
}
