//! Panels of every storage type as f32 panels: for products of f32, gradients, merging, and reading back.

use crate::blocks::*;
use crate::halves::{load_panel, panel_bytes, store_panel, widen_f16};
use crate::quantize::NF4_LEVELS;
use crate::simd::*;
use crate::{BF16, EXACT, F16, F32, F8, INT4, INT4_MIN, NF4};

/// Writes depths `from` to `from + depth` of a panel as `[depth][8]` f32.
///
/// # Safety
/// The panel holds the depths, dst as many floats.
#[inline(never)]
pub unsafe fn widen(dst: *mut u8, panel: *const u8, dtype: u32, from: usize, depth: usize) {
    match dtype & !EXACT {
        F32 => core::ptr::copy_nonoverlapping(panel.add(from * panel_bytes(false)), dst, depth * panel_bytes(false)),
        BF16 => each(dst, depth, |t| {
            let (low, high) = load_panel::<true>(panel.add((from + t) * panel_bytes(true)));
            [low, high]
        }),
        F16 => each(dst, depth, |t| {
            let halves = v128_load(panel.add((from + t) * 16) as *const v128);
            [widen_f16(v128_and(halves, u32x4_splat(0xffff))), widen_f16(u32x4_shr(halves, 16))]
        }),
        F8 => {
            let factors = factors(panel);
            each(dst, depth, |t| {
                let bytes = panel.add(FACTORS + (from + t) * 8);
                let wide = u16x8_load_extend_u8x8(bytes);
                [
                    f32x4_mul(widen_f8(u32x4_extend_low_u16x8(wide)), factors[0]),
                    f32x4_mul(widen_f8(u32x4_extend_high_u16x8(wide)), factors[1]),
                ]
            })
        }
        NF4 => widen_nf4(dst, panel, from, depth),
        dtype => widen_integers(dst, panel, dtype, from, depth),
    }
}

#[inline(always)]
unsafe fn each(dst: *mut u8, depth: usize, value: impl Fn(usize) -> [v128; 2]) {
    for t in 0..depth {
        let [low, high] = value(t);
        store_panel::<false>(dst.add(t * panel_bytes(false)), low, high);
    }
}

unsafe fn factors(panel: *const u8) -> [v128; 2] {
    [load(panel as *const f32), load((panel as *const f32).add(4))]
}

/// e4m3 in the low byte of each lane, exactly: its bits, moved to an f32, are 2^-120 too small.
#[inline(always)]
fn widen_f8(bits: v128) -> v128 {
    let moved = v128_and(i32x4_shr(u32x4_shl(bits, 24), 4), u32x4_splat(0x87f0_0000));
    f32x4_mul(moved, f32x4_splat(f32::from_bits(0x7b80_0000)))
}

unsafe fn widen_integers(dst: *mut u8, panel: *const u8, dtype: u32, from: usize, depth: usize) {
    let zero_point = i32x4_splat(if dtype == INT4 { 8 } else { 0 });
    let factors = factors(panel).map(|factor| f32x4_mul(factor, f32x4_splat(HALF_SHIFT)));
    let mut done = 0;
    while done < depth {
        let (block, first) = ((from + done) / BLOCK, (from + done) % BLOCK);
        let (block, count) = (panel.add(FACTORS + block * block_bytes(dtype)), (BLOCK - first).min(depth - done));
        let (scales, mut minima) = (scaled(block.add(scales_at(dtype)), factors), [zero(); 2]);
        if dtype == INT4_MIN {
            minima = scaled(block.add(scales_at(dtype) + 16), factors);
        }
        each(dst.add(done * panel_bytes(false)), count, |t| {
            let q = quants(block, first + t, is_nibbles(dtype));
            [0, 1].map(|half| {
                let value = f32x4_convert_i32x4(i32x4_sub(q[half], zero_point));
                f32x4_add(f32x4_mul(value, scales[half]), minima[half])
            })
        });
        done += count;
    }
}

unsafe fn scaled(halves: *const u8, factors: [v128; 2]) -> [v128; 2] {
    let scales = load_scales(halves, u32x4_splat(HALF_MASK));
    [f32x4_mul(scales[0], factors[0]), f32x4_mul(scales[1], factors[1])]
}

/// The absolute maximum of each column in an nf4 block.
///
/// # Safety
/// The panel holds the block.
#[inline(always)]
pub unsafe fn nf4_maxima(panel: *const u8, block: *const u8) -> [v128; 2] {
    let codes = u16x8_load_extend_u8x8(block.add(256));
    let (least, step) = (factors(panel), factors(panel.add(FACTORS)));
    let codes = [u32x4_extend_low_u16x8(codes), u32x4_extend_high_u16x8(codes)];
    [0, 1].map(|half| f32x4_add(f32x4_mul(f32x4_convert_u32x4(codes[half]), step[half]), least[half]))
}

unsafe fn widen_nf4(dst: *mut u8, panel: *const u8, from: usize, depth: usize) {
    let mut done = 0;
    while done < depth {
        let (block, first) = ((from + done) / NF4_BLOCK, (from + done) % NF4_BLOCK);
        let (block, count) = (panel.add(2 * FACTORS + block * block_bytes(NF4)), (NF4_BLOCK - first).min(depth - done));
        let maxima = nf4_maxima(panel, block);
        each(dst.add(done * panel_bytes(false)), count, |t| {
            let t = first + t;
            let q = quants(block.add(t / BLOCK * 128), t % BLOCK, true);
            [0, 1].map(|half| f32x4_mul(levels(q[half]), maxima[half]))
        });
        done += count;
    }
}

/// The level of each index.
#[inline(always)]
unsafe fn levels(index: v128) -> v128 {
    let at = |lane: u32| NF4_LEVELS.as_ptr().add(lane as usize) as *const u32;
    let mut v = v128_load32_zero(at(u32x4_extract_lane::<0>(index)));
    v = v128_load32_lane::<1>(v, at(u32x4_extract_lane::<1>(index)));
    v = v128_load32_lane::<2>(v, at(u32x4_extract_lane::<2>(index)));
    v128_load32_lane::<3>(v, at(u32x4_extract_lane::<3>(index)))
}
