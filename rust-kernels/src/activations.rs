//! x (m, k) as integers for the dot products of bytes: blocks of 32 with a scale each.
//!
//! ```text
//! q = round(x / sx)   sx = max |x| / 127 over the block, / 63 against int8, whose products must not need 8 bits of q
//! ```
//!
//! A record is the 32 q, then sx 2^56, -8 Σ q (an integer), sx 2^56 Σ q, and 4 bytes of nothing. The relaxed dot product is
//! the same in every engine only if one factor is in 0 ..= 127 (KERNELS §8): nibbles are; against int8 it is q + 64.
//! Blocks of STRIP rows lie together, so that a tile reads them at constant offsets.

use crate::blocks::{BLOCK, HALF_SHIFT};
use crate::simd::*;

/// Whether the build multiplies bytes; else it multiplies 16-bit integers, with the same sums.
pub const BYTES: bool = cfg!(target_feature = "relaxed-simd");
/// Bytes of the 32 q.
pub const Q_BYTES: usize = if BYTES { BLOCK } else { 2 * BLOCK };
/// Bytes of a record.
pub const RECORD: usize = Q_BYTES + 16;
/// Rows of a strip, and of the largest tile.
pub const STRIP: usize = 4;
/// What is added to q against int8.
pub const Q_OFFSET: i32 = 64;
/// 1.5 2^23: adding it rounds to an integer, ties to even, which the low bits of the sum then hold.
const ROUND: f32 = 12_582_912.0;

/// Rows that lie together: a single row needs no strip.
pub const fn rows_together(m: usize) -> usize {
    if m == 1 {
        1
    } else {
        STRIP
    }
}

/// Bytes for m rows.
pub const fn activations_bytes(m: usize, k: usize) -> usize {
    m.div_ceil(rows_together(m)) * rows_together(m) * k.div_ceil(BLOCK) * RECORD
}

/// Where row `row` begins.
pub const fn row_at(m: usize, k: usize, row: usize) -> usize {
    let together = rows_together(m);
    (row / together * together * k.div_ceil(BLOCK) + row % together) * RECORD
}

/// Quantizes; rows missing of the last strip are zeros.
///
/// # Safety
/// x holds m k floats, dst the bytes of `activations_bytes`.
pub unsafe fn quantize_activations(dst: *mut u8, x: *const f32, m: usize, k: usize, int8: bool) {
    let whole = m / rows_together(m) * rows_together(m);
    let tail = row_at(m, k, whole);
    core::ptr::write_bytes(dst.add(tail), 0, activations_bytes(m, k) - tail);
    for row in 0..m {
        let mut to = dst.add(row_at(m, k, row));
        let mut from = 0;
        while from < k {
            record(to, x.add(row * k + from), BLOCK.min(k - from), int8);
            to = to.add(rows_together(m) * RECORD);
            from += BLOCK;
        }
    }
}

#[inline(never)]
unsafe fn record(to: *mut u8, x: *const f32, count: usize, int8: bool) {
    let mut v = [zero(); 8];
    let mut most = zero();
    for i in 0..8 {
        v[i] = if count == BLOCK { load(x.add(4 * i)) } else { some(x, 4 * i, count) };
        most = f32x4_max(most, f32x4_abs(v[i]));
    }
    let most = f32x4_max(most, i32x4_shuffle::<2, 3, 0, 1>(most, most));
    let most = f32x4_extract_lane::<0>(f32x4_max(most, i32x4_shuffle::<1, 0, 3, 2>(most, most)));
    let levels = if int8 { 63.0 } else { 127.0 };
    let inverse = f32x4_splat(if most > f32::MIN_POSITIVE { levels / most } else { 0.0 });
    let mut words = [zero(); 4];
    let mut sums = zero();
    for i in 0..4 {
        // no multiply-add: where engines fuse it, another integer may come out
        let q = [v[2 * i], v[2 * i + 1]]
            .map(|v| i32x4_sub(f32x4_add(f32x4_mul(v, inverse), f32x4_splat(ROUND)), f32x4_splat(ROUND)));
        words[i] = i16x8_narrow_i32x4(q[0], q[1]);
        sums = i32x4_add(sums, i32x4_add(q[0], q[1]));
    }
    store_words(to, words, int8);
    let pairs = i32x4_add(sums, i32x4_shuffle::<2, 3, 0, 1>(sums, sums));
    let total = i32x4_extract_lane::<0>(pairs) + i32x4_extract_lane::<1>(pairs);
    let scale = most / levels * HALF_SHIFT;
    let rest = to.add(Q_BYTES) as *mut f32;
    *rest = scale;
    *(rest.add(1) as *mut i32) = total * -8;
    *rest.add(2) = scale * total as f32;
}

/// Elements `from` to `from + 3` of `count`, zeros behind them.
unsafe fn some(x: *const f32, from: usize, count: usize) -> v128 {
    load_lanes(x.wrapping_add(from), count.saturating_sub(from))
}

unsafe fn store_words(to: *mut u8, words: [v128; 4], int8: bool) {
    let to = to as *mut v128;
    if BYTES {
        let offset = i8x16_splat(if int8 { Q_OFFSET as i8 } else { 0 });
        v128_store(to, i8x16_add(i8x16_narrow_i16x8(words[0], words[1]), offset));
        v128_store(to.add(1), i8x16_add(i8x16_narrow_i16x8(words[2], words[3]), offset));
    } else {
        for i in 0..4 {
            v128_store(to.add(i), words[i]);
        }
    }
}
