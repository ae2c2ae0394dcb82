//! W' (n, k) = W + Σ s B A, both row-major as files store them: each element rounded once to the type of W'.
//!
//! Several branches are one of their summed rank. ROWS rows of Σ s B A at a time lie in scratch, where W is added.

use crate::delta_weight::lay_out;
use crate::halves::{bytes, f16_bits, load4, round_bf16};
use crate::merge::Branch;
use crate::product::{product, Product, NONE};
use crate::simd::*;
use crate::tile::{Out, Term, ROWS};
use crate::{round_up, BF16, F16, F32, PANEL};

/// Bytes of scratch that `merge_rows` wants for branches of `total_r` ranks in sum.
#[no_mangle]
pub extern "C" fn merge_rows_scratch(n: usize, k: usize, total_r: usize) -> usize {
    ((round_up(n, ROWS) + round_up(k, PANEL)) * total_r + ROWS * k + 8) * 4
}

/// Computes the formula above for n rows of W, which B has from row `from` on, a multiple of 8; returns 0 if every result
/// is finite, else 1.
///
/// # Safety
/// All arrays have the sizes above, `branches` holds `count` records, `scratch` the bytes of `merge_rows_scratch`; dst
/// overlaps nothing. Behind w come more of its rows, or 16 bytes of zeros.
#[no_mangle]
pub unsafe extern "C" fn merge_rows(
    dst: *mut u8,
    dst_dtype: u32,
    w: *const u8,
    w_dtype: u32,
    branches: *const Branch,
    count: usize,
    n: usize,
    k: usize,
    from: usize,
    scratch: *mut f32,
) -> u32 {
    let mut total = 0;
    for i in 0..count {
        total += (*branches.add(i)).r;
    }
    let panels = scratch.add(round_up(n, ROWS) * total);
    let delta = panels.add(round_up(k, PANEL) * total);
    let mut first = 0;
    for i in 0..count {
        let Branch { a, b, r, s } = *branches.add(i);
        lay_out(scratch, panels, &Branch { a, b: b.add(from * r), r, s }, first, [n, k, total]);
        first += r;
    }
    let mut bad = zero();
    let mut row = 0;
    while row < n {
        let rows = ROWS.min(n - row);
        let main = Term { a: scratch.add(row * total), stride: total, b: panels as *const u8, k: total };
        let out = Out { c: delta, stride: k, bias: core::ptr::null(), load: false };
        product::<true>(&Product { m: rows, n: k, main, panel: total * 32, tail: NONE, out });
        let (from, to, size) = (w.add(row * k * bytes(w_dtype)), dst.add(row * k * bytes(dst_dtype)), rows * k);
        add_stored(delta, from, w_dtype, size);
        bad = v128_or(bad, round_stored(to, delta, dst_dtype, size));
        row += rows;
    }
    v128_any_true(bad) as u32
}

/// delta += w
unsafe fn add_stored(delta: *mut f32, w: *const u8, dtype: u32, count: usize) {
    match dtype {
        BF16 => add_typed::<BF16>(delta, w, count),
        F16 => add_typed::<F16>(delta, w, count),
        _ => add_typed::<F32>(delta, w, count),
    }
}

/// In fours; zeros are put behind delta.
unsafe fn add_typed<const S: u32>(delta: *mut f32, w: *const u8, count: usize) {
    store(delta.add(count), zero());
    let mut i = 0;
    while i < count {
        store(delta.add(i), f32x4_add(load4::<S>(w, i), load(delta.add(i))));
        i += 4;
    }
}

/// Rounds and writes; returns lanes that are not zero if a result is not finite.
unsafe fn round_stored(dst: *mut u8, values: *const f32, dtype: u32, count: usize) -> v128 {
    // what follows is another thread's: the last four go through a copy
    let (whole, mut rest) = (count & !3, [0u32; 4]);
    let rest = rest.as_mut_ptr() as *mut u8;
    let bad = round_fours(dst, values, dtype, whole);
    let bad = v128_or(bad, round_fours(rest, values.add(whole), dtype, count - whole));
    core::ptr::copy_nonoverlapping(rest, dst.add(whole * bytes(dtype)), (count - whole) * bytes(dtype));
    bad
}

#[inline(never)]
unsafe fn round_fours(dst: *mut u8, values: *const f32, dtype: u32, count: usize) -> v128 {
    match dtype {
        BF16 => round_typed::<BF16>(dst, values, count),
        F16 => round_typed::<F16>(dst, values, count),
        _ => round_typed::<F32>(dst, values, count),
    }
}

/// In fours.
unsafe fn round_typed<const D: u32>(dst: *mut u8, values: *const f32, count: usize) -> v128 {
    let mut bad = zero();
    let mut i = 0;
    while i < count {
        let value = load(values.add(i));
        let (bits, exponent) = match D {
            BF16 => (u32x4_shr(round_bf16(value), 16), u32x4_splat(0x7f80)),
            F16 => (f16_bits(value), u32x4_splat(0x7c00)),
            _ => (value, u32x4_splat(0x7f80_0000)),
        };
        bad = v128_or(bad, i32x4_eq(v128_and(bits, exponent), exponent));
        let to = dst.add(i * bytes(D));
        if D == F32 {
            store(to as *mut f32, bits);
        } else {
            v128_store64_lane::<0>(u16x8_narrow_i32x4(bits, bits), to as *mut u64);
        }
        i += 4;
    }
    bad
}
