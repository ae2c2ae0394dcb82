//! x (m, k) as integers for the dot products of bytes: blocks of 32, each a sum of one or two terms sx q.
//!
//! ```text
//! q = round(x / sx)   sx = max |x| / 127 over the block, / 63 against int8, whose products must not need 8 bits of q
//! ```
//!
//! The second term is the same of what the first one leaves. Against int8 every block has it; against int4, whose weights
//! are rougher, the blocks whose maximum is twice the usual one of their row: they would bring most of the error.
//!
//! A record is the 32 q of one term, then sx 2^56, -8 Σ q (an integer), sx 2^56 Σ q, and an integer, 0 where another
//! term of the same block follows. The relaxed dot product is the same in every engine only if one factor is in
//! 0 ..= 127 (KERNELS §8): nibbles are; against int8 it is q + 64. STRIP rows lie together, record by record, behind the
//! number of their records, so that a tile reads them at constant offsets.

use crate::blocks::{BLOCK, HALF_SHIFT};
use crate::simd::*;
use crate::INT8;
use core::mem::MaybeUninit;

/// Whether the build multiplies bytes; else it multiplies 16-bit integers, with the same sums.
pub const BYTES: bool = cfg!(target_feature = "relaxed-simd");
/// Bytes of the 32 q.
pub const Q_BYTES: usize = if BYTES { BLOCK } else { 2 * BLOCK };
/// Bytes of a record.
pub const RECORD: usize = Q_BYTES + 16;
/// Rows of a strip, and of the largest tile.
pub const STRIP: usize = 5;
/// Bytes before the records of a strip.
pub const HEAD: usize = 16;
/// What is added to q against int8.
const Q_OFFSET: i8 = 64;
/// Square of how far the maximum of a block may be above the root mean square of its row's. SmolLM2, 4-bit body: with 2
/// the same likeliest token at 98.6 % of positions, with 4 at 98.4 %, without second terms at 96.8 %.
const OUTLIER: f32 = 4.0;
/// The least magnitude whose levels have a finite inverse, or more: blocks below it are zeros.
const LEAST: f32 = 7.523_164e-37; // 2^-120
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

/// Rounds the `rows` rows of x (m, k) from `first` on, a multiple of STRIP, for weights of type `dtype`, into their place
/// in `dst`; threads share the rows. Those missing of the last strip are zeros.
///
/// # Safety
/// x holds m k floats, dst the bytes of `activations_bytes`.
#[no_mangle]
pub unsafe extern "C" fn round_activations(
    dst: *mut u8,
    x: *const f32,
    m: usize,
    k: usize,
    dtype: u32,
    first: usize,
    rows: usize,
) {
    let together = rows_together(m);
    for first in (first..first + rows).step_by(together) {
        let strip = dst.add(first / together * strip_bytes(m, k));
        let rows = Rows { x: x.add(first * k), count: together.min(m - first), k };
        round_strip(strip, &rows, together, dtype == INT8);
    }
}

struct Rows {
    x: *const f32,
    count: usize,
    k: usize,
}

impl Rows {
    /// 32 values of a row: where they are, or a copy with zeros where there are none.
    #[inline(always)]
    unsafe fn block(&self, row: usize, from: usize, copy: *mut Values) -> *const f32 {
        let at = self.x.wrapping_add(row * self.k + from);
        if row < self.count && self.k - from >= BLOCK {
            return at;
        }
        *copy = [zero(); 8];
        if row < self.count {
            core::ptr::copy_nonoverlapping(at, copy as *mut f32, self.k - from);
        }
        copy as *const f32
    }

    /// The largest maximum of a block of this row that gets one term only.
    unsafe fn limit(&self, row: usize, rounder: &Rounder, copy: *mut Values) -> f32 {
        let mut squares = 0.0;
        for from in (0..self.k).step_by(BLOCK) {
            let most = rounder.largest(self.block(row, from, copy));
            squares += most * most;
        }
        let mean = squares / self.k.div_ceil(BLOCK).max(1) as f32;
        f32x4_extract_lane::<0>(f32x4_sqrt(f32x4_splat(OUTLIER * mean)))
    }
}

type Values = [v128; 8];

/// How values become integers, with constants that the compiler must not know, as in `tile_integer`.
struct Rounder {
    magnitude: v128,
    round: v128,
    levels: f32,
    offset: v128,
}

impl Rounder {
    fn new(int8: bool) -> Self {
        Rounder {
            magnitude: u32x4_splat(core::hint::black_box(0x7fff_ffff)),
            round: f32x4_splat(core::hint::black_box(ROUND)),
            levels: if int8 { 63.0 } else { 127.0 },
            offset: i8x16_splat(if int8 { Q_OFFSET } else { 0 }),
        }
    }

    /// The largest magnitude of 32, as integers: engines take eight instructions for a maximum of floats, and the bits of
    /// a NaN are the largest.
    #[inline(always)]
    unsafe fn largest(&self, x: *const f32) -> f32 {
        let mut most = v128_and(load(x), self.magnitude);
        for i in 1..8 {
            most = i32x4_max(most, v128_and(load(x.add(4 * i)), self.magnitude));
        }
        let most = i32x4_max(most, i32x4_shuffle::<2, 3, 0, 1>(most, most));
        f32x4_extract_lane::<0>(i32x4_max(most, i32x4_shuffle::<1, 0, 3, 2>(most, most)))
    }

    /// 1 / sx.
    #[inline(always)]
    fn inverse(&self, most: f32) -> v128 {
        f32x4_splat(if most >= LEAST { self.levels / most } else { 0.0 })
    }

    /// q + ROUND. No multiply-add: where engines fuse it, another integer may come out.
    #[inline(always)]
    unsafe fn rounded(&self, x: *const f32, inverse: v128) -> v128 {
        f32x4_add(f32x4_mul(load(x), inverse), self.round)
    }

    /// Writes one term of 32 values; returns their largest magnitude.
    #[inline(never)]
    unsafe fn record(&self, to: *mut u8, x: *const f32) -> f32 {
        let most = self.largest(x);
        let inverse = self.inverse(most);
        let mut sums = zero();
        for half in 0..2 {
            let q = [0, 1, 2, 3].map(|i| i32x4_sub(self.rounded(x.add(16 * half + 4 * i), inverse), self.round));
            sums = i32x4_add(sums, i32x4_add(i32x4_add(q[0], q[1]), i32x4_add(q[2], q[3])));
            let (low, high) = (i16x8_narrow_i32x4(q[0], q[1]), i16x8_narrow_i32x4(q[2], q[3]));
            if BYTES {
                let bytes = i8x16_add(i8x16_narrow_i16x8(low, high), self.offset);
                v128_store((to as *mut v128).add(half), bytes);
            } else {
                v128_store((to as *mut v128).add(2 * half), low);
                v128_store((to as *mut v128).add(2 * half + 1), high);
            }
        }
        let pairs = i32x4_add(sums, i32x4_shuffle::<2, 3, 0, 1>(sums, sums));
        let total = i32x4_extract_lane::<0>(pairs) + i32x4_extract_lane::<1>(pairs);
        let (after, scale) = (to.add(Q_BYTES) as *mut f32, most / self.levels * HALF_SHIFT);
        *after = scale;
        *(after.add(1) as *mut i32) = total * -8;
        *after.add(2) = scale * total as f32;
        most
    }

    /// What the first term leaves of 32 values.
    unsafe fn rest(&self, x: *const f32, most: f32) -> Values {
        let (inverse, scale) = (self.inverse(most), f32x4_splat(most / self.levels));
        let mut rest = [zero(); 8];
        for i in 0..8 {
            let q = f32x4_sub(self.rounded(x.add(4 * i), inverse), self.round);
            rest[i] = f32x4_sub(load(x.add(4 * i)), f32x4_mul(q, scale));
        }
        rest
    }
}

#[inline(never)]
unsafe fn round_strip(strip: *mut u8, rows: &Rows, together: usize, int8: bool) {
    let rounder = Rounder::new(int8);
    let mut copy = MaybeUninit::<Values>::uninit(); // zeros would be written for every strip
    let copy = copy.as_mut_ptr();
    let mut limits = [0.0; STRIP];
    if !int8 {
        for row in 0..rows.count {
            limits[row] = rows.limit(row, &rounder, copy);
        }
    }
    let (mut to, mut records) = (strip.add(HEAD), 0);
    for from in (0..rows.k).step_by(BLOCK) {
        let (mut most, mut second) = ([0.0; STRIP], int8);
        for row in 0..together {
            most[row] = rounder.record(to.add(row * RECORD), rows.block(row, from, copy));
            second |= most[row] > limits[row];
        }
        *(to.add(RECORD - 4) as *mut u32) = !second as u32;
        to = to.add(together * RECORD);
        records += 1;
        if second {
            for row in 0..together {
                let mut rest = [zero(); 8];
                if int8 || most[row] > limits[row] {
                    rest = rounder.rest(rows.block(row, from, copy), most[row]);
                }
                rounder.record(to.add(row * RECORD), rest.as_ptr() as *const f32);
            }
            *(to.add(RECORD - 4) as *mut u32) = 1;
            to = to.add(together * RECORD);
            records += 1;
        }
    }
    *(strip as *mut u32) = records;
}
