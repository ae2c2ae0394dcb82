//! Quantized panels from f32 panels. Every rounding is to nearest, ties to even.

use crate::blocks::*;
use crate::halves::{f16_bits, load_panel, panel_bytes};
use crate::simd::*;
use crate::{F16, F32, F8, INT4, INT4_MIN, INT8, NF4, PANEL};

/// The 16 quantiles of a normal distribution that QLoRA chose (Dettmers et al. 2023, appendix E).
pub static NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];
/// The largest e4m3.
const F8_MOST: f32 = 448.0;

/// Quantizes the panels of (n, k); returns 1 if all went, 0 if a value was not finite or too large for the type.
///
/// # Safety
/// src holds the f32 panels, dst the `panel_size` of each; they do not overlap.
#[no_mangle]
pub unsafe extern "C" fn quantize(dst: *mut u8, src: *const u8, n: usize, k: usize, dtype: u32) -> u32 {
    let mut probe = zero();
    for p in 0..n.div_ceil(PANEL) {
        let panel = dst.add(p * panel_size(k, dtype));
        probe = f32x4_add(probe, quantize_panel(panel, src.add(p * panel_size(k, F32)), k, dtype));
    }
    (sum(probe) == 0.0) as u32
}

/// Quantizes one panel; returns zeros, or NaN if a value was not finite or too large for the type.
///
/// # Safety
/// As `quantize`.
#[inline(never)]
pub unsafe fn quantize_panel(dst: *mut u8, src: *const u8, k: usize, dtype: u32) -> v128 {
    core::ptr::write_bytes(dst, 0, panel_size(k, dtype));
    let most = largest(src, k);
    // an f32 of 2^128 is infinite: this is NaN if a factor of the type could be
    let limit = f32x4_splat(match dtype {
        F16 => 65_504.0,
        INT4 | INT4_MIN | INT8 => 32_768.0,
        _ => 1e30,
    });
    let fits = v128_and(f32x4_le(most[0], limit), f32x4_le(most[1], limit));
    match dtype {
        F16 => rows(src, k, |t, v| v128_store(dst.add(t * 16) as *mut v128, pack_f16(v))),
        F8 => quantize_f8(dst, src, k, most),
        NF4 => quantize_nf4(dst, src, k),
        _ => quantize_blocks(dst, src, k, dtype, most),
    }
    v128_andnot(f32x4_splat(f32::NAN), fits)
}

#[inline(always)]
unsafe fn rows(src: *const u8, k: usize, mut body: impl FnMut(usize, [v128; 2])) {
    for t in 0..k {
        let (low, high) = load_panel::<false>(src.add(t * panel_bytes(false)));
        body(t, [low, high]);
    }
}

/// The largest magnitude of each column; NaN if one is.
unsafe fn largest(src: *const u8, k: usize) -> [v128; 2] {
    let mut most = [zero(); 2];
    rows(src, k, |_, v| most = [0, 1].map(|half| f32x4_max(most[half], f32x4_abs(v[half]))));
    most
}

/// Stores the 8 column factors at the head of a panel.
///
/// # Safety
/// 32 bytes are writable at `dst`.
pub unsafe fn store_factors(dst: *mut u8, factors: [v128; 2]) {
    store(dst as *mut f32, factors[0]);
    store((dst as *mut f32).add(4), factors[1]);
}

/// 1 / x, or 0 for what has no finite inverse.
#[inline(always)]
fn inverse(x: v128) -> v128 {
    let quotient = f32x4_div(f32x4_splat(1.0), x);
    v128_and(quotient, f32x4_le(f32x4_abs(quotient), f32x4_splat(f32::MAX)))
}

fn pack_f16(v: [v128; 2]) -> v128 {
    v128_or(f16_bits(v[0]), u32x4_shl(f16_bits(v[1]), 16))
}

unsafe fn quantize_f8(dst: *mut u8, src: *const u8, k: usize, most: [v128; 2]) {
    let factors = most.map(|m| f32x4_div(m, f32x4_splat(F8_MOST)));
    store_factors(dst, factors);
    let inverses = factors.map(inverse);
    rows(src, k, |t, v| {
        let [low, high] = [0, 1].map(|half| f8_bits(f32x4_mul(v[half], inverses[half])));
        let words = u16x8_narrow_i32x4(low, high);
        v128_store64_lane::<0>(u8x16_narrow_i16x8(words, words), dst.add(FACTORS + t * 8) as *mut u64);
    });
}

/// Rounds to e4m3, in the low byte of each lane; magnitudes above 448 become 448.
fn f8_bits(v: v128) -> v128 {
    let v = f32x4_pmin(f32x4_splat(F8_MOST), f32x4_pmax(f32x4_splat(-F8_MOST), v));
    let magnitude = f32x4_mul(f32x4_abs(v), f32x4_splat(f32::from_bits(0x0380_0000))); // 2^-120
    let odd = v128_and(u32x4_shr(magnitude, 20), u32x4_splat(1));
    let rounded = u32x4_shr(i32x4_add(magnitude, i32x4_add(odd, u32x4_splat(0x7_ffff))), 20);
    v128_or(rounded, v128_and(u32x4_shr(v, 24), u32x4_splat(0x80)))
}

/// round(v inverse) as bytes of a block, and their negated column sums.
unsafe fn put_bytes(block: *mut u8, src: *const u8, depth: usize, inverses: [v128; 2]) {
    let mut sums = [zero(); 2];
    rows(src, depth, |t, v| {
        let q = [0, 1].map(|half| clamp(f32x4_nearest(f32x4_mul(v[half], inverses[half])), -127.0, 127.0));
        put_quants(block, t, false, q);
        sums = [i32x4_sub(sums[0], q[0]), i32x4_sub(sums[1], q[1])];
    });
    v128_store(block.add(256) as *mut v128, i16x8_narrow_i32x4(sums[0], sums[1]));
}

/// The integer of a whole float, held between two others.
#[inline(always)]
fn clamp(v: v128, least: f32, most: f32) -> v128 {
    i32x4_trunc_sat_f32x4(f32x4_pmin(f32x4_splat(most), f32x4_pmax(f32x4_splat(least), v)))
}

/// The types with a scale per block of 32, as ggml rounds them: q8_0, q4_0 and q4_1.
unsafe fn quantize_blocks(dst: *mut u8, src: *const u8, k: usize, dtype: u32, most: [v128; 2]) {
    let lifts = most.map(lift);
    store_factors(dst, lifts.map(|l| f32x4_div(f32x4_splat(HALF_SHIFT), l)));
    let mut from = 0;
    while from < k {
        let block = dst.add(FACTORS + from / BLOCK * block_bytes(dtype));
        let piece = src.add(from * panel_bytes(false));
        let depth = BLOCK.min(k - from);
        let at = block.add(scales_at(dtype));
        let (scale, minimum) = scale_of(piece, depth, dtype);
        let stored = put_f16(at, scale, lifts);
        let inverses = stored.map(inverse);
        match dtype {
            INT4 => put_nibbles(block, piece, depth, inverses, [f32x4_splat(8.0); 2]),
            INT4_MIN => {
                let minima = put_f16(at.add(16), minimum, lifts);
                let offsets = [0, 1].map(|half| f32x4_neg(f32x4_mul(minima[half], inverses[half])));
                put_nibbles(block, piece, depth, inverses, offsets);
            }
            _ => put_bytes(block, piece, depth, inverses),
        }
        from += BLOCK;
    }
}

/// Scale and minimum of a block.
unsafe fn scale_of(src: *const u8, depth: usize, dtype: u32) -> ([v128; 2], [v128; 2]) {
    let (mut least, mut most) = ([f32x4_splat(f32::MAX); 2], [f32x4_splat(f32::MIN); 2]);
    rows(src, depth, |_, v| {
        least = [0, 1].map(|half| f32x4_pmin(least[half], v[half]));
        most = [0, 1].map(|half| f32x4_pmax(most[half], v[half]));
    });
    let scale = [0, 1].map(|half| {
        let (least, most) = (least[half], most[half]);
        let below = f32x4_gt(f32x4_neg(least), most);
        match dtype {
            INT4_MIN => f32x4_div(f32x4_sub(most, least), f32x4_splat(15.0)),
            INT4 => f32x4_div(v128_bitselect(least, most, below), f32x4_splat(-8.0)),
            _ => f32x4_div(f32x4_pmax(f32x4_neg(least), most), f32x4_splat(127.0)),
        }
    });
    (scale, least)
}

/// Stores values as lifted f16, and returns what they then are.
unsafe fn put_f16(at: *mut u8, values: [v128; 2], lifts: [v128; 2]) -> [v128; 2] {
    store_scales(at, [f32x4_mul(values[0], lifts[0]), f32x4_mul(values[1], lifts[1])]);
    let stored = load_scales(at, u32x4_splat(HALF_MASK));
    let shift = f32x4_splat(HALF_SHIFT);
    [0, 1].map(|half| f32x4_div(f32x4_mul(f32x4_mul(stored[half], shift), shift), lifts[half]))
}

unsafe fn put_nibbles(block: *mut u8, src: *const u8, depth: usize, inverses: [v128; 2], offsets: [v128; 2]) {
    rows(src, depth, |t, v| {
        let q = [0, 1]
            .map(|half| clamp(f32x4_nearest(f32x4_add(f32x4_mul(v[half], inverses[half]), offsets[half])), 0.0, 15.0));
        put_quants(block, t, true, q);
    });
}

/// QLoRA's double quantization: the absolute maxima of a column's blocks are 256 steps between the least and the largest.
unsafe fn quantize_nf4(dst: *mut u8, src: *const u8, k: usize) {
    let piece = |b: usize| (src.add(b * NF4_BLOCK * panel_bytes(false)), NF4_BLOCK.min(k - b * NF4_BLOCK));
    let (mut least, mut most) = ([f32x4_splat(f32::MAX); 2], [zero(); 2]);
    for b in 0..k.div_ceil(NF4_BLOCK) {
        let (src, depth) = piece(b);
        let maxima = largest(src, depth);
        least = [0, 1].map(|half| f32x4_pmin(least[half], maxima[half]));
        most = [0, 1].map(|half| f32x4_pmax(most[half], maxima[half]));
    }
    let steps = [0, 1].map(|half| f32x4_div(f32x4_sub(most[half], least[half]), f32x4_splat(255.0)));
    store_factors(dst, least);
    store_factors(dst.add(FACTORS), steps);
    for b in 0..k.div_ceil(NF4_BLOCK) {
        let (src, depth) = piece(b);
        let block = dst.add(2 * FACTORS + b * block_bytes(NF4));
        let maxima = largest(src, depth);
        let [low, high] = [0, 1].map(|half| {
            clamp(f32x4_nearest(f32x4_mul(f32x4_sub(maxima[half], least[half]), inverse(steps[half]))), 0.0, 255.0)
        });
        let words = u16x8_narrow_i32x4(low, high);
        v128_store64_lane::<0>(u8x16_narrow_i16x8(words, words), block.add(256) as *mut u64);
        let inverses = crate::dequantize::nf4_maxima(dst, block).map(inverse);
        rows(src, depth, |t, v| {
            let q = [0, 1].map(|half| nearest_level(f32x4_mul(v[half], inverses[half])));
            put_quants(block.add(t / BLOCK * 128), t % BLOCK, true, q);
        });
    }
}

/// How many of the midpoints between levels lie below.
fn nearest_level(v: v128) -> v128 {
    let mut index = i32x4_splat(0);
    for i in 0..15 {
        let middle = f32x4_splat((NF4_LEVELS[i] + NF4_LEVELS[i + 1]) * 0.5);
        index = i32x4_sub(index, f32x4_gt(v, middle));
    }
    index
}
