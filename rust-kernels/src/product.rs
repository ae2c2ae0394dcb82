//! C (m, n) = [C | 0] + bias + A (m, k) B (k, n) + tail, over panels of B: the loops around the micro-kernel.

use crate::halves::panel_bytes;
use crate::simd::{load_lanes, store_lanes};
use crate::tile::{tile_of, Out, Term, HALF_ROWS, ROWS};
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

/// Runs a product without splitting k: strips of rows outside, panels inside.
///
/// # Safety
/// `p` describes readable operands and a writable result.
#[inline(never)]
pub unsafe fn product<const STRIP: bool, const HALF: bool>(p: &Product) {
    let most = if HALF { HALF_ROWS } else { ROWS };
    let mut i = 0;
    while i < p.m {
        let mr = most.min(p.m - i);
        let (mut main, mut tail, mut out) = (p.main, p.tail, p.out);
        main.a = p.main.a.add(i * p.main.stride);
        tail.a = p.tail.a.wrapping_add(i * p.tail.stride);
        out.c = p.out.c.add(i * p.out.stride);
        let mut j = 0;
        while j < p.n {
            if p.n - j >= PANEL {
                tile_of::<STRIP, HALF>(mr, &main, &tail, &out);
            } else {
                let narrow = Narrow { mr, columns: p.n - j, out };
                narrow.run(|buffer| tile_of::<STRIP, HALF>(mr, &main, &tail, buffer));
            }
            main.b = main.b.wrapping_add(p.panel);
            tail.b = tail.b.wrapping_add(tail.k * panel_bytes(false));
            out.c = out.c.wrapping_add(PANEL);
            if !out.bias.is_null() {
                out.bias = out.bias.wrapping_add(PANEL);
            }
            j += PANEL;
        }
        i += mr;
    }
}

/// A tile of fewer than 8 columns: it runs on a copy, so that tiles know only whole rows.
struct Narrow {
    mr: usize,
    columns: usize,
    out: Out,
}

impl Narrow {
    #[inline(always)]
    unsafe fn run(&self, tile: impl FnOnce(&Out)) {
        let mut copy = [0.0f32; (ROWS + 1) * PANEL];
        let c = copy.as_mut_ptr();
        let mut buffer = Out { c, stride: PANEL, ..self.out };
        if self.out.load {
            self.copy_rows(c, PANEL, self.out.c, self.out.stride, self.mr);
        }
        if !self.out.bias.is_null() {
            self.copy_rows(c.add(ROWS * PANEL), PANEL, self.out.bias, 0, 1);
            buffer.bias = c.add(ROWS * PANEL);
        }
        tile(&buffer);
        self.copy_rows(self.out.c, self.out.stride, c, PANEL, self.mr);
    }

    #[inline(never)]
    unsafe fn copy_rows(&self, to: *mut f32, to_stride: usize, from: *const f32, from_stride: usize, rows: usize) {
        for i in 0..rows {
            let (to, from) = (to.add(i * to_stride), from.add(i * from_stride));
            store_lanes(to, load_lanes(from, self.columns), self.columns);
            let rest = self.columns.saturating_sub(4);
            store_lanes(to.wrapping_add(4), load_lanes(from.wrapping_add(4), rest), rest);
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

/// The part of a product with depths `from` to `from + depth` of A and B; bias with the first, tail with the last.
///
/// # Safety
/// The depths lie within the product.
#[inline(always)]
pub unsafe fn slice_k<const HALF: bool>(p: &Product, from: usize, depth: usize) -> Product {
    let mut part = *p;
    part.main.a = p.main.a.wrapping_add(from);
    part.main.b = p.main.b.wrapping_add(from * panel_bytes(HALF));
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

/// Runs a product of rows in blocks of k.
///
/// # Safety
/// As `product`.
#[inline(never)]
pub unsafe fn product_in_blocks<const HALF: bool>(p: &Product) {
    let block = block_depth(p.m, p.main.k);
    let mut from = 0;
    loop {
        let depth = block.min(p.main.k - from);
        let part = slice_k::<HALF>(p, from, depth);
        if p.m >= WARM_M {
            warm(part.main.b, p.n.div_ceil(PANEL), p.panel, depth * panel_bytes(HALF));
        }
        product::<false, HALF>(&part);
        from += depth;
        if from >= p.main.k {
            return;
        }
    }
}
