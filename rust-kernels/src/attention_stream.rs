//! Attention of few queries (decoding): reads the cache in place, a tile of positions for all query heads of a group.

use crate::attention::{softmax, Head};
use crate::cache::TILE;
use crate::elementwise::scale;
use crate::simd::*;

/// Vectors of a value row that are summed in registers at once.
const VECTORS: usize = 8;

/// `heads` query heads of one head of the cache. `tile` has room for one, `scores` for a float per query and position.
///
/// # Safety
/// `head` describes readable operands and a writable result.
#[inline(never)]
pub unsafe fn stream(head: &Head, heads: usize, tile: *mut f32, scores: *mut f32) {
    each_tile(head, heads, tile, scores, false);
    for i in 0..heads * head.length {
        let (from, to) = head.seen(i / heads);
        let scores = scores.add(i * head.end() + from);
        scale(scores, 1.0 / softmax(scores, to - from, head.dim), to - from);
        core::ptr::write_bytes(head.y.add(i / heads * head.q_stride + i % heads * head.dim), 0, head.dim);
    }
    each_tile(head, heads, tile, scores, true);
}

/// For each tile of positions, and each query that sees some of them: scores, or `weigh`s values with what they became.
#[inline(never)]
unsafe fn each_tile(head: &Head, heads: usize, tile: *mut f32, scores: *mut f32, weigh: bool) {
    let (end, rows, dim) = (head.end(), if weigh { &head.values } else { &head.keys }, head.dim);
    let mut from = 0;
    while from < end {
        let to = end.min(from + TILE);
        let (floats, stride) = rows.floats(from, to - from, tile);
        for i in 0..head.length {
            let (first, last) = head.seen(i);
            let (first, last) = (first.max(from), last.min(to));
            if first >= last {
                continue;
            }
            let seen = Seen { rows: floats.add((first - from) * stride), stride, count: last - first, dim };
            for h in 0..heads {
                let (scores, at) = (scores.add((i * heads + h) * end + first), i * head.q_stride + h * dim);
                if weigh {
                    add_weighed(head.y.add(at), &seen, scores);
                } else {
                    score(scores, head.q.add(at), &seen);
                }
            }
        }
        from = to;
    }
}

/// Keys or values (count, dim) that a query sees.
struct Seen {
    rows: *const f32,
    stride: usize,
    count: usize,
    dim: usize,
}

/// scores (count) = q kᵀ, four positions at a time.
unsafe fn score(scores: *mut f32, q: *const f32, keys: &Seen) {
    for t in (0..keys.count).step_by(4) {
        // behind the last position it again, whose products are not stored
        let rows: [_; 4] = core::array::from_fn(|i| keys.rows.add((t + i).min(keys.count - 1) * keys.stride));
        let mut sums = [zero(); 4];
        by_four(keys.dim, |d, width| {
            let x = load_lanes(q.add(d), width);
            for i in 0..4 {
                sums[i] = madd(x, load_lanes(rows[i].add(d), width), sums[i]);
            }
        });
        store_lanes(scores.add(t), sum_each(sums), keys.count - t);
    }
}

/// y (dim) += Σ weight_t v_t.
unsafe fn add_weighed(y: *mut f32, &Seen { rows: values, stride, count, dim }: &Seen, weights: *const f32) {
    let mut column = 0;
    while column + 4 * VECTORS <= dim {
        let mut sums = [zero(); VECTORS];
        for i in 0..VECTORS {
            sums[i] = load(y.add(column + 4 * i));
        }
        for t in 0..count {
            let weight = splat(weights.add(t));
            let v = values.add(t * stride + column);
            for i in 0..VECTORS {
                sums[i] = madd(weight, load(v.add(4 * i)), sums[i]);
            }
        }
        for i in 0..VECTORS {
            store(y.add(column + 4 * i), sums[i]);
        }
        column += 4 * VECTORS;
    }
    by_four(dim - column, |c, lanes| {
        let mut sums = load_lanes(y.add(column + c), lanes);
        for t in 0..count {
            let v = load_lanes(values.add(t * stride + column + c), lanes);
            sums = madd(splat(weights.add(t)), v, sums);
        }
        store_lanes(y.add(column + c), sums, lanes);
    });
}
