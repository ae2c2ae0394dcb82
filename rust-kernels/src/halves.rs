//! Half-width floats: widening bf16 and f16, rounding to them, and the panel rows of both weight types.

use crate::simd::*;
use crate::{BF16, F16};

/// Bytes of an element.
#[inline(always)]
pub const fn bytes(dtype: u32) -> usize {
    if dtype == crate::F32 {
        4
    } else {
        2
    }
}

/// Widens f16 bits in the low half of each lane, exactly: subnormals, infinities and NaN included.
#[inline(always)]
pub fn widen_f16(bits: v128) -> v128 {
    let sign = u32x4_shl(v128_and(bits, u32x4_splat(0x8000)), 16);
    let magnitude = u32x4_shl(v128_and(bits, u32x4_splat(0x7fff)), 13);
    let finite = f32x4_mul(magnitude, f32x4_splat(f32::from_bits(0x7780_0000))); // 2^112 moves the exponent bias from 15 to 127
    let special = v128_or(magnitude, u32x4_splat(0x7f80_0000));
    v128_or(sign, v128_bitselect(special, finite, u32x4_ge(magnitude, u32x4_splat(0x0f80_0000))))
}

/// Loads elements `index` to `index + 3` of a row-major array of `S`, widened to f32.
///
/// # Safety
/// The four elements are readable.
#[inline(always)]
pub unsafe fn load4<const S: u32>(p: *const u8, index: usize) -> v128 {
    let at = p.add(index * bytes(S));
    match S {
        BF16 => u32x4_shl(v128_load16x4(at), 16),
        F16 => widen_f16(v128_load16x4(at)),
        _ => v128_load(at as *const v128),
    }
}

/// Loads four halves into the low halves of the lanes.
#[inline(always)]
unsafe fn v128_load16x4(p: *const u8) -> v128 {
    u32x4_load_extend_u16x4(p as *const u16)
}

/// Loads element `index` of an array of `S`, widened to f32.
///
/// # Safety
/// The element is readable.
#[inline(always)]
pub unsafe fn load1<const S: u32>(p: *const u8, index: usize) -> f32 {
    let at = p.add(index * bytes(S));
    match S {
        BF16 => f32::from_bits(((at as *const u16).read_unaligned() as u32) << 16),
        F16 => f32x4_extract_lane::<0>(widen_f16(u32x4_splat((at as *const u16).read_unaligned() as u32))),
        _ => (at as *const f32).read_unaligned(),
    }
}

/// Rounds to the nearest bf16, ties to even, left in the upper half of each lane; NaN stays a quiet NaN.
#[inline(always)]
pub fn round_bf16(v: v128) -> v128 {
    let odd = v128_and(u32x4_shr(v, 16), u32x4_splat(1));
    let rounded = i32x4_add(v, i32x4_add(odd, u32x4_splat(0x7fff)));
    let upper = v128_or(rounded, v128_and(f32x4_ne(v, v), u32x4_splat(0x7fc0_0000)));
    v128_and(upper, u32x4_splat(0xffff_0000))
}

/// Rounds to the nearest f16, ties to even, its bits in the low half of each lane; what is too large becomes infinite.
#[inline(always)]
pub fn f16_bits(v: v128) -> v128 {
    let magnitude = v128_and(v, u32x4_splat(0x7fff_ffff));
    let odd = v128_and(u32x4_shr(magnitude, 13), u32x4_splat(1));
    // the exponent bias goes from 127 to 15
    let normal = u32x4_shr(i32x4_add(i32x4_add(magnitude, odd), u32x4_splat(0xc800_0fff)), 13);
    // 0.5 and a subnormal f16 have the same last place, so that the sum rounds to it
    let small = i32x4_sub(f32x4_add(magnitude, f32x4_splat(0.5)), u32x4_splat(0x3f00_0000));
    let finite = v128_bitselect(normal, small, u32x4_ge(magnitude, u32x4_splat(0x3880_0000)));
    let is_nan = u32x4_gt(magnitude, u32x4_splat(0x7f80_0000));
    let special = v128_or(u32x4_splat(0x7c00), v128_and(is_nan, u32x4_splat(0x0200)));
    let half = v128_bitselect(special, finite, u32x4_ge(magnitude, u32x4_splat(0x477f_f000)));
    v128_or(half, v128_and(u32x4_shr(v, 16), u32x4_splat(0x8000)))
}

/// Columns 0 to 3 and 4 to 7 at one k of a panel, f32 or bf16 (`HALF`).
///
/// # Safety
/// 32 bytes (16 if `HALF`) are readable at `p`.
#[inline(always)]
pub unsafe fn load_panel<const HALF: bool>(p: *const u8) -> (v128, v128) {
    let first = v128_load(p as *const v128);
    if HALF {
        (u32x4_shl(first, 16), v128_and(first, u32x4_splat(0xffff_0000)))
    } else {
        (first, v128_load(p.add(16) as *const v128))
    }
}

/// The value as a panel stores it: rounded to bf16 if `HALF`.
#[inline(always)]
pub fn as_stored<const HALF: bool>(v: v128) -> v128 {
    if HALF {
        round_bf16(v)
    } else {
        v
    }
}

/// Writes columns 0 to 3 and 4 to 7 at one k of a panel; the values are `as_stored`.
///
/// # Safety
/// 32 bytes (16 if `HALF`) are writable at `p`.
#[inline(always)]
pub unsafe fn store_exact<const HALF: bool>(p: *mut u8, low: v128, high: v128) {
    if HALF {
        v128_store(p as *mut v128, v128_or(u32x4_shr(low, 16), high));
    } else {
        v128_store(p as *mut v128, low);
        v128_store(p.add(16) as *mut v128, high);
    }
}

/// Writes columns 0 to 3 and 4 to 7 at one k of a panel; bf16 is rounded to nearest even.
///
/// # Safety
/// 32 bytes (16 if `HALF`) are writable at `p`.
#[inline(always)]
pub unsafe fn store_panel<const HALF: bool>(p: *mut u8, low: v128, high: v128) {
    store_exact::<HALF>(p, as_stored::<HALF>(low), as_stored::<HALF>(high));
}

/// Bytes of one k of a panel.
#[inline(always)]
pub const fn panel_bytes(half: bool) -> usize {
    if half {
        16
    } else {
        32
    }
}
