//! y = softmax(q kᵀ / sqrt dim) v, causal: query i of a sequence sees positions 0 to past + i, the last `window` of them
//! if it is not 0, and all past + length positions if it is `EVERYTHING`. q and y (batch, length, heads, dim); keys and values (batch, capacity, kv_heads, dim).
//!
//! From a few queries on, the keys and values of one head become panels that all its query heads share, and blocks of
//! query rows run two tile products with a softmax between them. Fewer stream the cache (`attention_stream.rs`).

use crate::attention_stream::stream;
use crate::cross_entropy::{first_lanes, largest};
use crate::math::exp;
use crate::product::{product, product_in_blocks, Product, NONE};
use crate::simd::*;
use crate::strips::{panels_of_columns, panels_of_rows};
use crate::tile::{Out, Term, ROWS};
use crate::{round_up, PANEL};

/// Query rows of a block: their scores stay in the second-level cache, and little of the causal triangle is wasted.
const BLOCK: usize = 4 * ROWS;
/// Fewer queries than this stream the cache: packing it would cost as much as reading it.
const MANY: usize = 4;
/// The window of queries that see what comes after them too.
const EVERYTHING: usize = usize::MAX;
/// Floats added to the row stride of the scores, which must not be a multiple of 4 KiB.
const SKEW: usize = 16;

/// Queries, keys, values of one head, and what they see.
#[derive(Clone, Copy)]
pub struct Head {
    /// First query and result.
    pub q: *const f32,
    /// See `q`.
    pub y: *mut f32,
    /// First key and value.
    pub keys: *const f32,
    /// See `keys`.
    pub values: *const f32,
    /// Floats between queries, and between keys.
    pub q_stride: usize,
    /// See `q_stride`.
    pub kv_stride: usize,
    pub length: usize,
    pub dim: usize,
    pub past: usize,
    /// 0 for none; see `EVERYTHING`.
    pub window: usize,
}

impl Head {
    /// The positions that query `i` sees: from, and one past the last.
    #[inline(always)]
    pub fn seen(&self, i: usize) -> (usize, usize) {
        if self.window == EVERYTHING {
            return (0, self.past + self.length);
        }
        let end = self.past + i + 1;
        (if self.window == 0 { 0 } else { end.saturating_sub(self.window) }, end)
    }
}

/// Bytes of scratch that `attention` wants.
#[no_mangle]
pub extern "C" fn attention_scratch(length: usize, past: usize, _heads: usize, _kv_heads: usize, dim: usize) -> usize {
    let positions = round_up(length + past, PANEL);
    if length < MANY {
        return positions * 4;
    }
    (positions * dim + round_up(dim, PANEL) * positions + BLOCK * (positions + SKEW + 1)) * 4
}

/// Computes `count` query heads of the `batch * heads` from `from` on; threads share the heads.
///
/// # Safety
/// All arrays have the sizes above, `scratch` that of `attention_scratch`; y overlaps none of them.
#[no_mangle]
pub unsafe extern "C" fn attention(
    y: *mut f32,
    q: *const f32,
    keys: *const f32,
    values: *const f32,
    length: usize,
    capacity: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    past: usize,
    window: usize,
    from: usize,
    count: usize,
    scratch: *mut f32,
) {
    if length == 0 || count == 0 {
        return;
    }
    let (q_stride, kv_stride) = (heads * dim, kv_heads * dim);
    let first = Head { q, y, keys, values, q_stride, kv_stride, length, dim, past, window };
    let skipped = first.seen(0).0 / PANEL * PANEL;
    let mut packed = usize::MAX;
    for index in from..from + count {
        let kv = index / (heads / kv_heads);
        let (at, own) = (index / heads * length * q_stride + index % heads * dim, kv / kv_heads * capacity + skipped);
        let (q, y, own) = (q.add(at), y.add(at), own * kv_stride + kv % kv_heads * dim);
        let (keys, values) = (keys.add(own), values.add(own));
        let head = Head { q, y, keys, values, past: past - skipped, ..first };
        if length < MANY {
            stream(&head, scratch);
            continue;
        }
        let panels = Panels::new(&head, scratch);
        if core::mem::replace(&mut packed, kv) != kv {
            panels.fill(&head);
        }
        blocks(&head, &panels);
    }
}

/// Scratch: keys `[positions / 8][dim][8]`, values `[dim / 8][positions][8]`, scores (BLOCK, stride), sums (BLOCK).
struct Panels {
    positions: usize,
    keys: *mut f32,
    values: *mut f32,
    scores: *mut f32,
    stride: usize,
    sums: *mut f32,
}

impl Panels {
    unsafe fn new(head: &Head, scratch: *mut f32) -> Panels {
        let positions = head.past + head.length;
        let stored = round_up(positions, PANEL);
        let values = scratch.wrapping_add(stored * head.dim);
        let scores = values.wrapping_add(round_up(head.dim, PANEL) * positions);
        let stride = stored + SKEW;
        Panels { positions, keys: scratch, values, scores, stride, sums: scores.wrapping_add(BLOCK * stride) }
    }

    unsafe fn fill(&self, head: &Head) {
        panels_of_rows(self.keys, head.keys, head.kv_stride, head.dim, self.positions);
        panels_of_columns(self.values, head.values, head.kv_stride, self.positions, head.dim);
    }
}

/// One query head, a block of query rows at a time.
unsafe fn blocks(head: &Head, panels: &Panels) {
    let mut row = 0;
    while row < head.length {
        let rows = BLOCK.min(head.length - row);
        let from = head.seen(row).0 / PANEL * PANEL;
        let to = head.seen(row + rows - 1).1;
        score(head, panels, row, rows, from, to);
        for i in 0..rows {
            let (first, end) = head.seen(row + i);
            let scores = panels.scores.add(i * panels.stride);
            *panels.sums.add(i) = softmax(scores, first - from, end - from, to - from, head.dim);
        }
        weigh(head, panels, row, rows, from, to);
        row += rows;
    }
}

/// scores (rows, to - from) = q kᵀ.
unsafe fn score(head: &Head, panels: &Panels, row: usize, rows: usize, from: usize, to: usize) {
    let b = panels.keys.add(from * head.dim) as *const u8;
    let main = Term { a: head.q.add(row * head.q_stride), stride: head.q_stride, b, k: head.dim };
    let out = Out { c: panels.scores, stride: panels.stride, bias: core::ptr::null(), load: false };
    product::<false, false>(&Product { m: rows, n: to - from, main, panel: head.dim * 32, tail: NONE, out });
}

/// Scores to unnormalised weights; 0 outside first .. end of the `count`. Returns their sum.
unsafe fn softmax(scores: *mut f32, first: usize, end: usize, count: usize, dim: usize) -> f32 {
    let factor = f32x4_splat(1.0 / sqrt_of(dim));
    let most = f32x4_splat(largest(scores.add(first), end - first));
    for i in 0..first {
        *scores.add(i) = 0.0;
    }
    for i in end..count {
        *scores.add(i) = 0.0;
    }
    let mut sums = zero();
    by_four(end - first, |i, lanes| {
        let at = scores.add(first + i);
        let e = exp(f32x4_mul(f32x4_sub(load_lanes(at, lanes), most), factor));
        store_lanes(at, e, lanes);
        sums = f32x4_add(sums, if lanes < 4 { v128_and(e, first_lanes(lanes)) } else { e });
    });
    sum(sums)
}

/// Square root of a count.
#[inline(always)]
pub fn sqrt_of(count: usize) -> f32 {
    f32x4_extract_lane::<0>(f32x4_sqrt(f32x4_splat(count as f32)))
}

/// y = weights v / sums.
unsafe fn weigh(head: &Head, panels: &Panels, row: usize, rows: usize, from: usize, to: usize) {
    let y = head.y.add(row * head.q_stride);
    let b = panels.values.add(from * PANEL) as *const u8;
    let main = Term { a: panels.scores, stride: panels.stride, b, k: to - from };
    let out = Out { c: y, stride: head.q_stride, bias: core::ptr::null(), load: false };
    let panel = panels.positions * 32;
    product_in_blocks::<false>(&Product { m: rows, n: head.dim, main, panel, tail: NONE, out });
    for i in 0..rows {
        crate::elementwise::scale(y.add(i * head.q_stride), 1.0 / *panels.sums.add(i), head.dim);
    }
}
