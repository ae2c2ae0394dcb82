//! What the engine's relaxed dot product means.

use crate::simd::*;

/// Whether it is exact for first factors in -128 ..= 127 and second ones in 0 ..= 127: 1 if it is. Engines may take a
/// second factor above 127 as they like and may saturate pairs of 16 bits, which this range never reaches (KERNELS §8).
/// The plain build has none, and answers 1.
#[no_mangle]
pub extern "C" fn dot_is_exact(least: u32) -> u32 {
    // the factors depend on a parameter, or the compiler would answer
    let first = i8x16_splat(least as u8 as i8);
    let second = v128_not(first);
    let alternating = v128_xor(first, i32x4_splat(0x00ff_00ff));
    let [a, b] = [first, alternating].map(|first| dot(first, second, i32x4_splat(1)));
    let (wanted_a, wanted_b) = (i32x4_splat(4 * -128 * 127 + 1), i32x4_splat(2 * (127 - 128) * 127 + 1));
    i32x4_all_true(v128_and(i32x4_eq(a, wanted_a), i32x4_eq(b, wanted_b))) as u32
}

#[cfg(target_feature = "relaxed-simd")]
fn dot(a: v128, b: v128, sum: v128) -> v128 {
    i32x4_relaxed_dot_i8x16_i7x16_add(a, b, sum)
}

#[cfg(not(target_feature = "relaxed-simd"))]
fn dot(a: v128, b: v128, sum: v128) -> v128 {
    let low = i32x4_dot_i16x8(i16x8_extend_low_i8x16(a), i16x8_extend_low_i8x16(b));
    let high = i32x4_dot_i16x8(i16x8_extend_high_i8x16(a), i16x8_extend_high_i8x16(b));
    let pairs = i32x4_add(i32x4_shuffle::<0, 2, 4, 6>(low, high), i32x4_shuffle::<1, 3, 5, 7>(low, high));
    i32x4_add(sum, pairs)
}
