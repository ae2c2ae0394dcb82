//! y = softmax(q kᵀ / sqrt dim) v, causal: query i of a sequence sees positions 0 to past + i, the last `window` of them
//! if it is not 0, and all past + length positions if it is `EVERYTHING`. q and y (batch, length, heads, dim); keys and
//! values (batch, capacity, kv_heads, dim), or as `cache.rs` stores them (`BY_HEAD`). What is masked never touches the result.
//!
//! From a few queries on, the keys and values of one head become panels that all its query heads share, and blocks of
//! query rows run two tile products with a softmax between them. Fewer stream the cache (`attention_stream.rs`).

use crate::attention_stream::stream;
use crate::cache::{block_bytes, Rows, GROUP, TILE};
use crate::cross_entropy::{first_lanes, largest};
use crate::math::exp;
use crate::product::{product, product_in_blocks, Product, NONE};
use crate::simd::*;
use crate::strips::{panels_of_columns, panels_of_rows};
use crate::tile::{Out, Term, ROWS};
use crate::{round_up, BY_HEAD, PANEL};

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
    pub keys: Rows,
    pub values: Rows,
    /// Floats between queries.
    pub q_stride: usize,
    pub length: usize,
    pub dim: usize,
    pub past: usize,
    /// 0 for none; see `EVERYTHING`.
    pub window: usize,
}

impl Head {
    /// One past the last position of the sequence.
    #[inline(always)]
    pub fn end(&self) -> usize {
        self.past + self.length
    }

    /// The positions that query `i` sees: from, and one past the last.
    #[inline(always)]
    pub fn seen(&self, i: usize) -> (usize, usize) {
        if self.window == EVERYTHING {
            return (0, self.end());
        }
        let end = self.past + i + 1;
        (if self.window == 0 { 0 } else { end.saturating_sub(self.window) }, end)
    }
}

/// Bytes of scratch that `attention` wants.
#[no_mangle]
pub extern "C" fn attention_scratch(length: usize, past: usize, heads: usize, kv_heads: usize, dim: usize) -> usize {
    let positions = round_up(length + past, PANEL);
    let rest = if length < MANY {
        heads / kv_heads * length * positions
    } else {
        positions * dim + round_up(dim, PANEL) * positions + BLOCK * (positions + SKEW + 1)
    };
    (tile_floats(dim) + rest) * 4
}

/// Floats of a widened tile, which is what scratch begins with.
fn tile_floats(dim: usize) -> usize {
    TILE * round_up(dim, GROUP)
}

/// Computes `count` query heads of the `batch * heads` from `from` on; threads share the heads.
///
/// # Safety
/// All arrays have the sizes above, `scratch` that of `attention_scratch`; y overlaps none of them.
#[no_mangle]
pub unsafe extern "C" fn attention(
    y: *mut f32,
    q: *const f32,
    keys: *const u8,
    values: *const u8,
    length: usize,
    capacity: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    past: usize,
    window: usize,
    dtype: u32,
    from: usize,
    count: usize,
    scratch: *mut f32,
) {
    if length == 0 {
        return;
    }
    let (by_head, dtype) = (dtype & BY_HEAD != 0, dtype & !BY_HEAD);
    let (group, q_stride, block) = (heads / kv_heads, heads * dim, block_bytes(dim, dtype));
    let stride = if by_head { block } else { kv_heads * block };
    let rows = |first| Rows { first, stride, dim, dtype };
    let all = Head { q, y, keys: rows(keys), values: rows(values), q_stride, length, dim, past, window };
    let skipped = all.seen(0).0 / PANEL * PANEL;
    let (mut index, end) = (from, from + count);
    while index < end {
        let kv = index / group;
        let here = end.min((kv + 1) * group) - index;
        let at = index / heads * length * q_stride + index % heads * dim;
        let side = if by_head { kv * capacity } else { kv / kv_heads * capacity * kv_heads + kv % kv_heads };
        let own = side * block + skipped * stride;
        let (keys, values) = (rows(keys.add(own)), rows(values.add(own)));
        let head = Head { q: q.add(at), y: y.add(at), keys, values, past: past - skipped, ..all };
        attend(head, here, scratch);
        index += here;
    }
}

/// `heads` query heads of one head of the cache.
unsafe fn attend(mut head: Head, heads: usize, scratch: *mut f32) {
    let rest = scratch.add(tile_floats(head.dim));
    if head.length < MANY {
        return stream(&head, heads, scratch, rest);
    }
    let panels = Panels::new(&head, rest);
    panels.fill(&head, scratch);
    // a block would multiply the masked values of its last rows by 0
    let rows = if panels.are_finite(head.dim) { BLOCK } else { 1 };
    for _ in 0..heads {
        blocks(&head, &panels, rows);
        (head.q, head.y) = (head.q.add(head.dim), head.y.add(head.dim));
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
        let positions = head.end();
        let stored = round_up(positions, PANEL);
        let values = scratch.wrapping_add(stored * head.dim);
        let scores = values.wrapping_add(round_up(head.dim, PANEL) * positions);
        let stride = stored + SKEW;
        Panels { positions, keys: scratch, values, scores, stride, sums: scores.wrapping_add(BLOCK * stride) }
    }

    unsafe fn fill(&self, head: &Head, tile: *mut f32) {
        let (mut from, positions) = (0, self.positions);
        while from < positions {
            let count = TILE.min(positions - from);
            let (keys, stride) = head.keys.floats(from, count, tile);
            panels_of_rows(self.keys.add(from * head.dim), keys, stride, head.dim, count);
            let (values, stride) = head.values.floats(from, count, tile);
            panels_of_columns(self.values.add(from * PANEL), values, stride, count, positions, head.dim);
            from += count;
        }
    }

    /// Whether all values are: 0 times anything else is NaN.
    unsafe fn are_finite(&self, dim: usize) -> bool {
        let mut sums = zero();
        for i in 0..round_up(dim, PANEL) * self.positions / 4 {
            sums = f32x4_add(sums, f32x4_mul(load(self.values.add(4 * i)), zero()));
        }
        sum(sums) == 0.0
    }
}

/// One query head, a block of `most` query rows at a time.
unsafe fn blocks(head: &Head, panels: &Panels, most: usize) {
    let mut row = 0;
    while row < head.length {
        let rows = most.min(head.length - row);
        let from = head.seen(row).0 / PANEL * PANEL;
        let to = head.seen(row + rows - 1).1;
        score(head, panels, row, rows, from, to);
        for i in 0..rows {
            let (first, end) = head.seen(row + i);
            let (scores, seen) = (panels.scores.add(i * panels.stride), first - from..end - from);
            for masked in (0..seen.start).chain(seen.end..to - from) {
                *scores.add(masked) = 0.0;
            }
            *panels.sums.add(i) = softmax(scores.add(seen.start), seen.len(), head.dim);
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
    product::<false>(&Product { m: rows, n: to - from, main, panel: head.dim * 32, tail: NONE, out });
}

/// Products of queries and keys to unnormalised weights. Returns their sum.
///
/// # Safety
/// `count` floats are at `scores`.
#[inline(never)]
pub unsafe fn softmax(scores: *mut f32, count: usize, dim: usize) -> f32 {
    let factor = f32x4_splat(1.0 / sqrt_of(dim));
    let most = f32x4_splat(largest(scores, count));
    let mut sums = zero();
    by_four(count, |i, lanes| {
        let e = exp(f32x4_mul(f32x4_sub(load_lanes(scores.add(i), lanes), most), factor));
        store_lanes(scores.add(i), e, lanes);
        sums = f32x4_add(sums, if lanes < 4 { v128_and(e, first_lanes(lanes)) } else { e });
    });
    sum(sums)
}

/// Square root of a count.
#[inline(always)]
fn sqrt_of(count: usize) -> f32 {
    f32x4_extract_lane::<0>(f32x4_sqrt(f32x4_splat(count as f32)))
}

/// y = weights v / sums.
unsafe fn weigh(head: &Head, panels: &Panels, row: usize, rows: usize, from: usize, to: usize) {
    let y = head.y.add(row * head.q_stride);
    let first = head.seen(row).0;
    let b = panels.values.add(first * PANEL) as *const u8;
    let main = Term { a: panels.scores.add(first - from), stride: panels.stride, b, k: to - first };
    let out = Out { c: y, stride: head.q_stride, bias: core::ptr::null(), load: false };
    let panel = panels.positions * 32;
    product_in_blocks(&Product { m: rows, n: head.dim, main, panel, tail: NONE, out });
    for i in 0..rows {
        crate::elementwise::scale(y.add(i * head.q_stride), 1.0 / *panels.sums.add(i), head.dim);
    }
}
