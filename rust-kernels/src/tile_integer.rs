//! The integer micro-kernel: sums (mr, 8) of one panel, in f32 per block of 32.
//!
//! ```text
//! sums = Σ over blocks  scale (sx Σ q w) + minimum (sx Σ q)
//! ```
//!
//! The products of a block are exact integers and the rest is one multiplication and addition after the other, never
//! fused, in the order of k: so the result of a row has the same bits in every build and engine, whatever m.
//! Relaxed build: two vectors of 4 columns x 4 k times 4 splatted q. Plain build: the same bytes, widened.

use crate::activations::{Q_BYTES, RECORD};
use crate::blocks::*;
use crate::simd::*;
#[cfg(target_feature = "relaxed-simd")]
use crate::INT8;
use crate::{INT4, INT4_MIN};

type Sums<const MR: usize> = [[v128; 2]; MR];

/// Numbers that the compiler must not know: engines build a constant vector anew for every use (three instructions), and
/// unrolled, the loads of a block would come before all products, and spill.
#[derive(Clone, Copy)]
struct Hidden {
    /// 15 in every byte.
    nibble: v128,
    /// See `load_scales`.
    half: v128,
    /// Loads of 8 k in a block.
    groups: usize,
}

impl Hidden {
    #[inline(always)]
    fn new() -> Self {
        let groups = BLOCK / 8;
        Hidden {
            nibble: i32x4_splat(core::hint::black_box(0x0f0f_0f0f)),
            half: u32x4_splat(core::hint::black_box(HALF_MASK)),
            groups: core::hint::black_box(groups),
        }
    }
}

/// Computes the formula above into `[NP][MR][8]` floats, for NP panels that are `size` bytes apart.
///
/// # Safety
/// `x` is the first of `MR` adjacent records, which are `records` times `step` bytes and go once over the panels' blocks.
#[inline(never)]
pub unsafe fn dot_panels<const DTYPE: u32, const MR: usize, const NP: usize>(
    sums: *mut f32,
    x: *const u8,
    step: usize,
    panel: *const u8,
    size: usize,
    records: usize,
) {
    let hidden = Hidden::new();
    let (mut x, mut at) = (x, FACTORS);
    let mut local = [[[zero(); 2]; MR]; NP];
    if MR > 1 {
        core::ptr::write_bytes(sums, 0, NP * MR * 8);
    }
    for _ in 0..records {
        let mut w = [panel.add(at); NP];
        for p in 1..NP {
            w[p] = panel.add(at).add(p * size);
        }
        let dots = dots::<DTYPE, MR, NP>(x, &w, &hidden);
        for p in 0..NP {
            let mut scales = [[zero(); 2]; 2];
            for i in 0..1 + (DTYPE == INT4_MIN) as usize {
                scales[i] = load_scales(w[p].add(scales_at(DTYPE) + 16 * i), hidden.half);
            }
            for i in 0..MR {
                let rest = x.add(i * RECORD + Q_BYTES) as *const f32;
                let values = floats::<DTYPE>(dots[p][i], &scales, rest);
                let to = sums.add((p * MR + i) * 8) as *mut v128;
                for half in 0..2 {
                    if MR == 1 {
                        local[p][i][half] = f32x4_add(local[p][i][half], values[half]);
                    } else {
                        // volatile: in memory they leave the registers to the integer sums
                        let sum = to.add(half).read_volatile();
                        to.add(half).write_volatile(f32x4_add(sum, values[half]));
                    }
                }
            }
        }
        at += *(x.add(RECORD - 4) as *const usize) * block_bytes(DTYPE);
        x = x.add(step);
    }
    if MR == 1 {
        for p in 0..NP {
            store(sums.add(p * 8), local[p][0][0]);
            store(sums.add(p * 8 + 4), local[p][0][1]);
        }
    }
}

/// scale sx dot + minimum sx Σ q, for one row; `rest` is what follows q in its record.
#[inline(always)]
unsafe fn floats<const DTYPE: u32>(dots: [v128; 2], scales: &[[v128; 2]; 2], rest: *const f32) -> [v128; 2] {
    let sx = splat(rest);
    let minimum = if DTYPE == INT4_MIN { splat(rest.add(2)) } else { zero() };
    [0, 1].map(|half| {
        let mut value = f32x4_mul(f32x4_mul(f32x4_convert_i32x4(dots[half]), sx), scales[0][half]);
        if DTYPE == INT4_MIN {
            value = f32x4_add(value, f32x4_mul(scales[1][half], minimum));
        }
        value
    })
}

/// Σ q w of a block of each panel, less what q's or w's offset adds.
#[cfg(target_feature = "relaxed-simd")]
#[inline(always)]
unsafe fn dots<const DTYPE: u32, const MR: usize, const NP: usize>(
    x: *const u8,
    w: &[*const u8; NP],
    hidden: &Hidden,
) -> [Sums<MR>; NP] {
    let mut sums = [[[zero(); 2]; MR]; NP];
    for p in 0..NP {
        if DTYPE == INT8 {
            let columns = w[p].add(256) as *const i16;
            let low = i32x4_shl(i32x4_load_extend_i16x4(columns), 6);
            let high = i32x4_shl(i32x4_load_extend_i16x4(columns.add(4)), 6);
            sums[p] = [[low, high]; MR];
        }
        if DTYPE == INT4 {
            for i in 0..MR {
                sums[p][i] = [splat(x.add(i * RECORD + Q_BYTES + 4) as *const f32); 2];
            }
        }
    }
    for g in 0..hidden.groups {
        if MR == 1 {
            let q = [0, 4].map(|k| splat(x.add(8 * g + k) as *const f32));
            for p in 0..NP {
                let (a, b) = pairs(DTYPE, w[p], g, hidden.nibble);
                for half in 0..2 {
                    sums[p][0][half] = dot::<DTYPE>(b[half], q[1], dot::<DTYPE>(a[half], q[0], sums[p][0][half]));
                }
            }
        } else {
            for p in 0..NP {
                let (a, b) = pairs(DTYPE, w[p], g, hidden.nibble);
                for (k, w) in [(0, a), (4, b)] {
                    for i in 0..MR {
                        let q = splat(x.add(i * RECORD + 8 * g + k) as *const f32);
                        for half in 0..2 {
                            sums[p][i][half] = dot::<DTYPE>(w[half], q, sums[p][i][half]);
                        }
                    }
                }
            }
        }
    }
    sums
}

/// 8 columns at k = 8 g ..= 8 g + 3, and at the next four.
#[inline(always)]
unsafe fn pairs(dtype: u32, w: *const u8, g: usize, mask: v128) -> ([v128; 2], [v128; 2]) {
    let at = |i: usize| v128_load(w.add(16 * i) as *const v128);
    if is_nibbles(dtype) {
        let q = [at(2 * g), at(2 * g + 1)];
        // x86 shifts no bytes: u8x16_shr would cost a third of the speed
        (q.map(|q| v128_and(q, mask)), q.map(|q| v128_and(u16x8_shr(q, 4), mask)))
    } else {
        ([at(4 * g), at(4 * g + 1)], [at(4 * g + 2), at(4 * g + 3)])
    }
}

/// The second factor is the one in 0 ..= 127.
#[cfg(target_feature = "relaxed-simd")]
#[inline(always)]
unsafe fn dot<const DTYPE: u32>(w: v128, q: v128, sum: v128) -> v128 {
    if is_nibbles(DTYPE) {
        i32x4_relaxed_dot_i8x16_i7x16_add(q, w, sum)
    } else {
        i32x4_relaxed_dot_i8x16_i7x16_add(w, q, sum)
    }
}

/// The same sums with 16-bit factors: a vector of 4 columns x 4 k is two of 2 columns x 4 k.
#[cfg(not(target_feature = "relaxed-simd"))]
#[inline(always)]
unsafe fn dots<const DTYPE: u32, const MR: usize, const NP: usize>(
    x: *const u8,
    w: &[*const u8; NP],
    hidden: &Hidden,
) -> [Sums<MR>; NP] {
    let mut sums = [[[zero(); 2]; MR]; NP];
    for p in 0..NP {
        sums[p] = dots_of::<DTYPE, MR>(x, w[p], hidden);
    }
    sums
}

/// The same of one panel.
#[cfg(not(target_feature = "relaxed-simd"))]
#[inline(always)]
unsafe fn dots_of<const DTYPE: u32, const MR: usize>(x: *const u8, w: *const u8, hidden: &Hidden) -> Sums<MR> {
    let mut parts = [[[zero(); 2]; 2]; MR];
    for g in 0..hidden.groups {
        let (a, b) = pairs(DTYPE, w, g, hidden.nibble);
        for (w, k) in [(a, 8 * g), (b, 8 * g + 4)] {
            for half in 0..2 {
                let (low, high) = (i16x8_extend_low_i8x16(w[half]), i16x8_extend_high_i8x16(w[half]));
                for i in 0..MR {
                    let q = v128_load64_splat(x.add(i * RECORD + 2 * k) as *const u64);
                    let into = &mut parts[i][half];
                    *into = [i32x4_add(into[0], i32x4_dot_i16x8(low, q)), i32x4_add(into[1], i32x4_dot_i16x8(high, q))];
                }
            }
        }
    }
    let mut sums = [[zero(); 2]; MR];
    for i in 0..MR {
        for half in 0..2 {
            let [a, b] = parts[i][half];
            sums[i][half] = i32x4_add(i32x4_shuffle::<0, 2, 4, 6>(a, b), i32x4_shuffle::<1, 3, 5, 7>(a, b));
            if DTYPE == INT4 {
                let offset = splat(x.add(i * RECORD + Q_BYTES + 4) as *const f32);
                sums[i][half] = i32x4_add(sums[i][half], offset);
            }
        }
    }
    sums
}
