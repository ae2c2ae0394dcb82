//! How keys and values are stored: (batch, heads, capacity) blocks of `dim` elements, a multiple of 8 with those that pad
//! them, but for f32. A block of f16 is its halves; one of int8 is an f32 scale, the largest magnitude / 127, and its bytes. A block of
//! int8 with an element that is not finite has a scale that is not: all of it reads as NaN.

use core::hint::black_box;

use crate::halves::f16_bits;
use crate::simd::*;
use crate::{round_up, F16, F32, INT8};

/// Positions that are widened at once: the rows of a head then stay in the first-level cache for all its query heads.
pub const TILE: usize = 32;

/// Elements that are widened at once.
pub const GROUP: usize = 8;

/// Bytes of a block.
#[inline(always)]
pub fn block_bytes(dim: usize, dtype: u32) -> usize {
    match dtype {
        F16 => 2 * round_up(dim, GROUP),
        INT8 => 4 + round_up(dim, GROUP),
        _ => 4 * dim,
    }
}

/// Puts x (batch, length, heads, dim), rounded to nearest even, into the cache at positions past to past + length.
///
/// # Safety
/// The cache holds (batch, heads, capacity) blocks, and past + length <= capacity.
#[no_mangle]
pub unsafe extern "C" fn append_heads(
    cache: *mut u8,
    x: *const f32,
    batch: usize,
    length: usize,
    capacity: usize,
    heads: usize,
    dim: usize,
    past: usize,
    dtype: u32,
) {
    for block in 0..batch * length * heads {
        let (row, x) = (block / heads, x.add(block * dim));
        let position = (row / length * heads + block % heads) * capacity + past + row % length;
        let to = cache.add(position * block_bytes(dim, dtype));
        match dtype {
            F16 => round_f16(to, x, dim),
            INT8 => round_int8(to, x, dim),
            _ => core::ptr::copy_nonoverlapping(x, to as *mut f32, dim),
        }
    }
}

unsafe fn round_f16(to: *mut u8, x: *const f32, dim: usize) {
    for i in (0..round_up(dim, GROUP)).step_by(4) {
        let bits = f16_bits(load_lanes(x.wrapping_add(i), dim.saturating_sub(i)));
        v128_store64_lane::<0>(u16x8_narrow_i32x4(bits, bits), to.add(2 * i) as *mut u64);
    }
}

unsafe fn round_int8(to: *mut u8, x: *const f32, dim: usize) {
    let mut most = zero();
    for i in (0..dim).step_by(4) {
        // unlike pmax, max passes NaN on
        most = f32x4_max(most, f32x4_abs(load_lanes(x.add(i), dim - i)));
    }
    most = f32x4_max(most, i32x4_shuffle::<2, 3, 0, 1>(most, most));
    most = f32x4_max(most, i32x4_shuffle::<1, 0, 3, 2>(most, most));
    let scale = f32x4_div(most, f32x4_splat(127.0));
    v128_store32_lane::<0>(scale, to as *mut u32);
    for i in (0..round_up(dim, GROUP)).step_by(4) {
        // 0 / 0 becomes 0
        let q = i32x4_trunc_sat_f32x4(f32x4_nearest(f32x4_div(
            load_lanes(x.wrapping_add(i), dim.saturating_sub(i)),
            scale,
        )));
        let q = i16x8_narrow_i32x4(q, q);
        v128_store32_lane::<0>(i8x16_narrow_i16x8(q, q), to.add(4 + i) as *mut u32);
    }
}

/// Keys or values of one head.
#[derive(Clone, Copy)]
pub struct Rows {
    /// The block of the first position.
    pub first: *const u8,
    /// Bytes between positions.
    pub stride: usize,
    pub dim: usize,
    pub dtype: u32,
}

impl Rows {
    /// `count` positions from `from` on as f32, and the floats between them: in place, or widened into `tile`.
    ///
    /// # Safety
    /// The positions are readable; the tile holds TILE rows of `dim` rounded up to 8, and `count` is at most TILE.
    #[inline(never)]
    pub unsafe fn floats(&self, from: usize, count: usize, tile: *mut f32) -> (*const f32, usize) {
        let (rows, stride) = (self.first.add(from * self.stride), round_up(self.dim, GROUP));
        if self.dtype == F32 {
            return (rows as *const f32, self.stride / 4);
        }
        for t in 0..count {
            let (block, row) = (rows.add(t * self.stride), tile.add(t * stride));
            if self.dtype == F16 {
                widen_halves(row, block, stride);
            } else {
                widen_bytes(row, block, stride);
            }
        }
        (tile, stride)
    }
}

/// f16, exactly, as `widen_f16` does, but for what is not finite without a test of each element.
#[inline(always)]
unsafe fn widen_halves(row: *mut f32, block: *const u8, count: usize) {
    // engines would build each constant anew in every turn
    let mask = black_box(u32x4_splat(0x8fff_e000));
    let factor = black_box(u32x4_splat(0x7780_0000));
    let mut most = zero();
    for i in (0..count).step_by(GROUP) {
        let halves = v128_load(block.add(2 * i) as *const v128);
        most = u16x8_max(most, i16x8_add(halves, halves));
        // sign, exponent and mantissa in place, the exponent 112 too small
        let low = v128_and(i32x4_shl(i32x4_load_extend_i16x4(block.add(2 * i) as *const i16), 13), mask);
        let high = v128_and(i32x4_shl(i32x4_load_extend_i16x4(block.add(2 * i + 8) as *const i16), 13), mask);
        store(row.add(i), f32x4_mul(low, factor));
        store(row.add(i + 4), f32x4_mul(high, factor));
    }
    if v128_any_true(u16x8_ge(most, u16x8_splat(0xf800))) {
        for i in (0..count).step_by(4) {
            let v = load(row.add(i));
            let special = f32x4_ge(f32x4_abs(v), f32x4_splat(65536.0));
            store(row.add(i), v128_or(v, v128_and(special, f32x4_splat(f32::INFINITY))));
        }
    }
}

#[inline(always)]
unsafe fn widen_bytes(row: *mut f32, block: *const u8, count: usize) {
    let scale = v128_load32_splat(block as *const u32);
    for i in (0..count).step_by(GROUP) {
        let bytes = i16x8_load_extend_i8x8(block.add(4 + i) as *const i8);
        let halves = [i32x4_extend_low_i16x8(bytes), i32x4_extend_high_i16x8(bytes)];
        store(row.add(i), f32x4_mul(f32x4_convert_i32x4(halves[0]), scale));
        store(row.add(i + 4), f32x4_mul(f32x4_convert_i32x4(halves[1]), scale));
    }
}
