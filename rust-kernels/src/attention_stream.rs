//! Attention of few queries (decoding): reads the cache once per query head, in place.

use crate::attention::{sqrt_of, Head};
use crate::cross_entropy::{first_lanes, largest};
use crate::math::exp;
use crate::simd::*;

/// Vectors of a value row that are summed in registers at once.
const VECTORS: usize = 8;

/// One query head. `scores` holds a float per position.
///
/// # Safety
/// `head` describes readable operands and a writable result.
#[inline(never)]
pub unsafe fn stream(head: &Head, scores: *mut f32) {
    for i in 0..head.length {
        let (from, to) = head.seen(i);
        let keys = head.keys.add(from * head.kv_stride);
        let values = head.values.add(from * head.kv_stride);
        let y = head.y.add(i * head.q_stride);
        score(scores, head.q.add(i * head.q_stride), keys, head, to - from);
        let total = softmax(scores, to - from);
        let factor = f32x4_splat(1.0 / total);
        let mut column = 0;
        while column + 4 * VECTORS <= head.dim {
            weigh::<VECTORS>(y.add(column), values.add(column), scores, head, to - from, factor);
            column += 4 * VECTORS;
        }
        by_four(head.dim - column, |c, lanes| {
            let mut sums = zero();
            for t in 0..to - from {
                let v = load_lanes(values.add(t * head.kv_stride + column + c), lanes);
                sums = madd(splat(scores.add(t)), v, sums);
            }
            store_lanes(y.add(column + c), f32x4_mul(sums, factor), lanes);
        });
    }
}

/// scores (count) = q · k / sqrt dim, four positions at a time.
unsafe fn score(scores: *mut f32, q: *const f32, keys: *const f32, head: &Head, count: usize) {
    let factor = f32x4_splat(1.0 / sqrt_of(head.dim));
    by_four(count, |t, lanes| {
        let mut sums = [zero(); 4];
        by_four(head.dim, |d, width| {
            let x = load_lanes(q.add(d), width);
            for i in 0..lanes {
                let k = load_lanes(keys.add((t + i) * head.kv_stride + d), width);
                sums[i & 3] = madd(x, k, sums[i & 3]);
            }
        });
        store_lanes(scores.add(t), f32x4_mul(sum_each(sums), factor), lanes);
    });
}

/// Scores to unnormalised weights; returns their sum.
unsafe fn softmax(scores: *mut f32, count: usize) -> f32 {
    let most = f32x4_splat(largest(scores, count));
    let mut sums = zero();
    by_four(count, |i, lanes| {
        let e = exp(f32x4_sub(load_lanes(scores.add(i), lanes), most));
        store_lanes(scores.add(i), e, lanes);
        sums = f32x4_add(sums, if lanes < 4 { v128_and(e, first_lanes(lanes)) } else { e });
    });
    sum(sums)
}

/// y (4 N) = factor Σ weight_t v_t.
#[inline(always)]
unsafe fn weigh<const N: usize>(
    y: *mut f32,
    values: *const f32,
    weights: *const f32,
    head: &Head,
    count: usize,
    factor: v128,
) {
    let mut sums = [zero(); N];
    for t in 0..count {
        let weight = splat(weights.add(t));
        let v = values.add(t * head.kv_stride);
        for i in 0..N {
            sums[i] = madd(weight, load(v.add(4 * i)), sums[i]);
        }
    }
    for i in 0..N {
        store(y.add(4 * i), f32x4_mul(sums[i], factor));
    }
}
