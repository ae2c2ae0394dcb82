//! x (m, k) as integers for the dot products of bytes: blocks of 32, each a sum of one or two terms sx q.
//!
//! ```text
//! q = round(x / sx)   sx = max |x| / 127 over the block, / 63 against int8, whose products must not need 8 bits of q
//! ```
//!
//! The second term is the same of what the first one leaves. Against int8 every block has it; against int4, whose weights
//! are rougher, the blocks whose maximum is OUTLIER times the usual one of their row: they would bring most of the error.
//!
//! A record is the 32 q of one term, then sx 2^56, -8 Σ q (an integer), sx 2^56 Σ q, and an integer, 0 where another
//! term of the same block follows. The relaxed dot product is the same in every engine only if one factor is in
//! 0 ..= 127 (KERNELS §8): nibbles are; against int8 it is q + 64. STRIP rows lie together, record by record, behind the
//! number of their records, so that a tile reads them at constant offsets.

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
/// Bytes before the records of a strip.
pub const HEAD: usize = 16;
/// What is added to q against int8.
const Q_OFFSET: i32 = 64;
/// Square of how far the maximum of a block may be above the root mean square of its row's.
const OUTLIER: f32 = 2.0;
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

/// Bytes of a strip.
pub const fn strip_bytes(m: usize, k: usize) -> usize {
    HEAD + 2 * rows_together(m) * k.div_ceil(BLOCK) * RECORD
}

/// Bytes for m rows.
pub const fn activations_bytes(m: usize, k: usize) -> usize {
    m.div_ceil(rows_together(m)) * strip_bytes(m, k)
}

/// Quantizes; rows missing of the last strip are zeros.
///
/// # Safety
/// x holds m k floats, dst the bytes of `activations_bytes`.
pub unsafe fn quantize_activations(dst: *mut u8, x: *const f32, m: usize, k: usize, int8: bool) {
    let together = rows_together(m);
    for first in (0..m).step_by(together) {
        let strip = dst.add(first / together * strip_bytes(m, k));
        let rows = Rows { x: x.add(first * k), count: together.min(m - first), k };
        quantize_strip(strip, &rows, together, int8);
    }
}

struct Rows {
    x: *const f32,
    count: usize,
    k: usize,
}

type Values = [v128; 8];

/// Constants that the compiler must not know, as in `tile_integer`.
struct Hidden {
    magnitude: v128,
    round: v128,
}

impl Hidden {
    fn new() -> Self {
        let magnitude = u32x4_splat(core::hint::black_box(0x7fff_ffff));
        Hidden { magnitude, round: f32x4_splat(core::hint::black_box(ROUND)) }
    }

    /// The largest magnitude, as integers: engines take eight instructions for a maximum of floats, and the bits of a NaN
    /// are the largest.
    #[inline(always)]
    fn largest(&self, v: &Values) -> f32 {
        let mut most = v128_and(v[0], self.magnitude);
        for i in 1..8 {
            most = i32x4_max(most, v128_and(v[i], self.magnitude));
        }
        let most = i32x4_max(most, i32x4_shuffle::<2, 3, 0, 1>(most, most));
        f32x4_extract_lane::<0>(i32x4_max(most, i32x4_shuffle::<1, 0, 3, 2>(most, most)))
    }
}

impl Rows {
    /// 32 values of a row, zeros where there are none.
    #[inline(always)]
    unsafe fn values(&self, row: usize, from: usize) -> Values {
        let mut v = [zero(); 8];
        if row < self.count {
            let at = self.x.add(row * self.k + from);
            if self.k - from >= BLOCK {
                for i in 0..8 {
                    v[i] = load(at.add(4 * i));
                }
            } else {
                core::ptr::copy_nonoverlapping(at, v.as_mut_ptr() as *mut f32, self.k - from);
            }
        }
        v
    }

    /// The largest maximum of a block of this row that gets one term only.
    unsafe fn limit(&self, row: usize, hidden: &Hidden) -> f32 {
        let mut squares = 0.0;
        for from in (0..self.k).step_by(BLOCK) {
            let most = hidden.largest(&self.values(row, from));
            squares += most * most;
        }
        let mean = squares / self.k.div_ceil(BLOCK).max(1) as f32;
        f32x4_extract_lane::<0>(f32x4_sqrt(f32x4_splat(OUTLIER * mean)))
    }
}

#[inline(never)]
unsafe fn quantize_strip(strip: *mut u8, rows: &Rows, together: usize, int8: bool) {
    let hidden = Hidden::new();
    let mut limits = [0.0; STRIP];
    if !int8 {
        for row in 0..rows.count {
            limits[row] = rows.limit(row, &hidden);
        }
    }
    let mut to = strip.add(HEAD);
    let mut records = 0;
    for from in (0..rows.k).step_by(BLOCK) {
        let mut rests = [[zero(); 8]; STRIP];
        let mut second = int8;
        for row in 0..together {
            let (rest, most) = record(to.add(row * RECORD), &rows.values(row, from), int8, &hidden);
            if int8 || most > limits[row] {
                rests[row] = rest;
                second = true;
            }
        }
        records += 1;
        *(to.add(RECORD - 4) as *mut u32) = !second as u32;
        to = to.add(together * RECORD);
        if second {
            for row in 0..together {
                record(to.add(row * RECORD), &rests[row], int8, &hidden);
            }
            records += 1;
            *(to.add(RECORD - 4) as *mut u32) = 1;
            to = to.add(together * RECORD);
        }
    }
    *(strip as *mut u32) = records;
}

/// Writes one term of 32 values; returns what it leaves of them, and their largest magnitude.
#[inline(always)]
unsafe fn record(to: *mut u8, v: &Values, int8: bool, hidden: &Hidden) -> (Values, f32) {
    let most = hidden.largest(v);
    let levels = if int8 { 63.0 } else { 127.0 };
    let inverse = f32x4_splat(if most > f32::MIN_POSITIVE { levels / most } else { 0.0 });
    let (scale, mut rest) = (most / levels, *v);
    let (mut words, mut sums) = ([zero(); 4], zero());
    for i in 0..8 {
        // no multiply-add: where engines fuse it, another integer may come out
        let rounded = f32x4_add(f32x4_mul(v[i], inverse), hidden.round);
        let q = i32x4_sub(rounded, hidden.round);
        rest[i] = f32x4_sub(v[i], f32x4_mul(f32x4_sub(rounded, hidden.round), f32x4_splat(scale)));
        sums = i32x4_add(sums, q);
        words[i / 2] = if i % 2 == 0 { q } else { i16x8_narrow_i32x4(words[i / 2], q) };
    }
    store_words(to, words, int8);
    let pairs = i32x4_add(sums, i32x4_shuffle::<2, 3, 0, 1>(sums, sums));
    let total = i32x4_extract_lane::<0>(pairs) + i32x4_extract_lane::<1>(pairs);
    let after = to.add(Q_BYTES) as *mut f32;
    *after = scale * HALF_SHIFT;
    *(after.add(1) as *mut i32) = total * -8;
    *after.add(2) = scale * HALF_SHIFT * total as f32;
    (rest, most)
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
