//! The quantized panels: what one panel of 8 columns holds, for every storage type below f32 and bf16.
//!
//! A panel begins with 8 f32 column factors (f16 has none), then come its columns in one of these forms:
//!
//! ```text
//! f16        [k][8] halves, in bf16's order of columns
//! f8         [k][8] bytes of e4m3
//! int8       blocks of 32 k: 256 bytes, 8 negated column sums (i16), 8 scales (f16)
//! int4       blocks of 32 k: 128 bytes of nibbles, 8 scales (f16)
//! int4 min   the same and 8 minima (f16)
//! nf4        blocks of 64 k: 256 bytes of nibbles, 8 absolute maxima (u8); another 8 f32 (their steps) lead the panel
//! ```
//!
//! Byte (k, c) of a block is at `32 (k / 4) + 4 c + k % 4`: one vector is 4 columns of 4 k, as the dot product of four
//! bytes wants it. Nibble (k, c) is in byte `32 (k / 8) + 4 c + k % 4`, the low one if k % 8 < 4.
//! What is missing of the last block is zero.

use crate::halves::f16_bits;
use crate::simd::*;
use crate::{BF16, EXACT, F16, F32, F8, INT4, INT4_MIN, INT8, NF4};

/// Depth of a block of integers, and of the activations.
pub const BLOCK: usize = 32;
/// Depth of a block of nf4.
pub const NF4_BLOCK: usize = 64;
/// Bytes of 8 f32.
pub const FACTORS: usize = 32;
/// Block scales are f16 whose bits, moved to an f32, read 2^-112 times too small. Half of that goes to the scale of the
/// activations, half to the column factor: no product is subnormal, which would cost hundreds of cycles.
pub const HALF_SHIFT: f32 = 72_057_594_037_927_936.0; // 2^56

/// Sign, exponent and mantissa of an f16 that was shifted into place with copies of its sign.
pub const HALF_MASK: u32 = 0x8fff_e000;

/// Whether the integer kernels multiply it.
pub const fn is_integer(dtype: u32) -> bool {
    matches!(dtype, INT8 | INT4 | INT4_MIN)
}

/// Whether weights are nibbles.
pub const fn is_nibbles(dtype: u32) -> bool {
    matches!(dtype, INT4 | INT4_MIN | NF4)
}

/// Where the scales of a block begin.
pub const fn scales_at(dtype: u32) -> usize {
    if is_nibbles(dtype) {
        128
    } else {
        256 + 16
    }
}

/// Bytes of a block of 32 k (of 64 k for nf4).
pub const fn block_bytes(dtype: u32) -> usize {
    match dtype {
        INT8 => 256 + 16 + 16,
        INT4 => 128 + 16,
        INT4_MIN => 128 + 16 + 16,
        _ => 256 + 8,
    }
}

/// Bytes of a panel of depth `k`.
#[no_mangle]
pub extern "C" fn panel_size(k: usize, dtype: u32) -> usize {
    match dtype & !EXACT {
        F32 => 32 * k,
        BF16 | F16 => 16 * k,
        F8 => FACTORS + 8 * k,
        NF4 => 2 * FACTORS + k.div_ceil(NF4_BLOCK) * block_bytes(NF4),
        dtype => FACTORS + k.div_ceil(BLOCK) * block_bytes(dtype),
    }
}

/// 8 scales of a block, each 2^-112 of what it stands for before the column factor; `mask` is HALF_MASK in each lane.
///
/// # Safety
/// 16 bytes are readable at `p`.
#[inline(always)]
pub unsafe fn load_scales(p: *const u8, mask: v128) -> [v128; 2] {
    let halves = v128_load(p as *const v128);
    [v128_and(i32x4_shr(i32x4_shl(halves, 16), 3), mask), v128_and(i32x4_shr(halves, 3), mask)]
}

/// Rounds 8 values to f16 and stores them in the order that `load_scales` reads.
///
/// # Safety
/// 16 bytes are writable at `p`.
pub unsafe fn store_scales(p: *mut u8, values: [v128; 2]) {
    v128_store(p as *mut v128, v128_or(f16_bits(values[0]), u32x4_shl(f16_bits(values[1]), 16)));
}

/// 2^e by which the f16 of a column, the largest of magnitude `most`, are stored too large: all of them become normal
/// numbers if the least is above 2^-28 of the largest, and none that was an f16 before loses a bit.
#[inline(always)]
pub fn lift(most: v128) -> v128 {
    let exponent = i32x4_sub(i32x4_shr(most, 23), i32x4_splat(127));
    let e = i32x4_min(i32x4_max(i32x4_sub(i32x4_splat(14), exponent), i32x4_splat(0)), i32x4_splat(100));
    i32x4_shl(i32x4_add(e, i32x4_splat(127)), 23)
}

/// The 8 values at depth `t` of a block, as integers.
///
/// # Safety
/// The block is readable.
#[inline(always)]
pub unsafe fn quants(block: *const u8, t: usize, nibbles: bool) -> [v128; 2] {
    if nibbles {
        let at = block.add(t / 8 * 32);
        let shift = (8 * (t % 4) + t % 8 / 4 * 4) as u32;
        [at, at.add(16)].map(|p| v128_and(u32x4_shr(v128_load(p as *const v128), shift), u32x4_splat(15)))
    } else {
        let at = block.add(t / 4 * 32);
        let shift = (24 - 8 * (t % 4)) as u32;
        [at, at.add(16)].map(|p| i32x4_shr(i32x4_shl(v128_load(p as *const v128), shift), 24))
    }
}

/// Puts 8 integers at depth `t` of a block of zeros.
///
/// # Safety
/// The block is writable.
#[inline(always)]
pub unsafe fn put_quants(block: *mut u8, t: usize, nibbles: bool, values: [v128; 2]) {
    let (at, shift, mask) = if nibbles {
        (block.add(t / 8 * 32), 8 * (t % 4) + t % 8 / 4 * 4, 15)
    } else {
        (block.add(t / 4 * 32), 8 * (t % 4), 255)
    };
    for half in 0..2 {
        let p = at.add(16 * half) as *mut v128;
        let bits = u32x4_shl(v128_and(values[half], u32x4_splat(mask)), shift as u32);
        v128_store(p, v128_or(v128_load(p), bits));
    }
}
