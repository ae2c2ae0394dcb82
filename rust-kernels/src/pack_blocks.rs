//! Integer panels from the blocks of a GGUF file, whose bits they keep: q8_0, q4_0 and q4_1.
//!
//! A row of W is k / 32 blocks: `d (f16), q (32 i8)`, `d, q (16 bytes)` or `d, m, q (16 bytes)`, where byte i of 16 holds
//! element i in its low and element i + 16 in its high nibble.

use crate::blocks::*;
use crate::halves::load1;
use crate::quantize::store_factors;
use crate::simd::*;
use crate::{F16, INT4_MIN, INT8, PANEL};

const HALF: usize = 2;

/// Bytes of a stored block.
fn stored_bytes(dtype: u32) -> usize {
    match dtype {
        INT8 => 34,
        INT4_MIN => 20,
        _ => 18,
    }
}

/// Packs the blocks of (n, k), k a multiple of 32; returns 1 if every scale is finite.
///
/// # Safety
/// src holds the blocks, dst the `panel_size` of each panel.
#[no_mangle]
pub unsafe extern "C" fn pack_blocks(dst: *mut u8, src: *const u8, n: usize, k: usize, dtype: u32) -> u32 {
    let mut finite = true;
    for p in 0..n.div_ceil(PANEL) {
        let panel = dst.add(p * panel_size(k, dtype));
        let rows = src.add(p * PANEL * k / BLOCK * stored_bytes(dtype));
        finite &= pack_panel(panel, rows, PANEL.min(n - p * PANEL), k / BLOCK, dtype);
    }
    finite as u32
}

/// Packs up to 8 rows of `count` blocks; tells whether every scale is finite.
unsafe fn pack_panel(panel: *mut u8, src: *const u8, rows: usize, count: usize, dtype: u32) -> bool {
    let halves = if dtype == INT4_MIN { 2 } else { 1 };
    let source = |row: usize, b: usize| src.add((row * count + b) * stored_bytes(dtype));
    let block = |b: usize| panel.add(FACTORS + b * block_bytes(dtype));
    core::ptr::write_bytes(panel, 0, FACTORS + count * block_bytes(dtype));
    let mut most = [0.0f32; PANEL];
    for row in 0..rows {
        for b in 0..count {
            for half in 0..halves {
                most[row] = larger(most[row], load1::<F16>(source(row, b), half).abs());
            }
            put_row(block(b), source(row, b).add(halves * HALF), row, dtype);
        }
    }
    let most = [load(most.as_ptr()), load(most.as_ptr().add(4))];
    let lifts = most.map(lift);
    store_factors(panel, lifts.map(|l| f32x4_div(f32x4_splat(HALF_SHIFT), l)));
    for b in 0..count {
        for half in 0..halves {
            let mut values = [0.0f32; PANEL];
            for row in 0..rows {
                values[row] = load1::<F16>(source(row, b), half);
            }
            let [low, high] = [values.as_ptr(), values.as_ptr().add(4)].map(|p| load(p));
            store_scales(
                block(b).add(scales_at(dtype) + 16 * half),
                [f32x4_mul(low, lifts[0]), f32x4_mul(high, lifts[1])],
            );
        }
    }
    let infinite = f32x4_splat(f32::INFINITY);
    i32x4_all_true(v128_and(f32x4_lt(most[0], infinite), f32x4_lt(most[1], infinite)))
}

/// The larger of two, or NaN.
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() {
        b
    } else {
        a
    }
}

/// Puts the 32 integers of one row in their places.
unsafe fn put_row(block: *mut u8, q: *const u8, row: usize, dtype: u32) {
    let at = block.add(4 * row);
    if dtype == INT8 {
        let mut sum = 0;
        for t in 0..BLOCK {
            let byte = *q.add(t);
            *at.add(t / 4 * 32 + t % 4) = byte;
            sum -= byte as i8 as i16;
        }
        *(block.add(256) as *mut i16).add(row) = sum;
        return;
    }
    for t in 0..BLOCK {
        let nibble = *q.add(t % 16) >> (t / 16 * 4) & 15;
        *at.add(t / 8 * 32 + t % 4) |= nibble << (t % 8 / 4 * 4);
    }
}
