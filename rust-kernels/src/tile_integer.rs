//! The integer micro-kernel: sums (mr, 8) of one panel, in f32 per block of 32.
//!
//! ```text
//! sums = Σ over blocks  scale (sx Σ q w) + minimum (sx Σ q)
//! ```
//!
//! The products of a block are exact integers and the rest is one multiplication and addition after the other, never
//! fused, in the order of k: so the result of a row has the same bits in every build and engine, whatever m.
//! Relaxed build: two vectors of 4 columns x 4 k times 4 splatted q. Plain build: the same bytes, widened.

use crate::activations::{Q_BYTES, RECORD, STRIP};
use crate::blocks::*;
use crate::simd::*;
#[cfg(target_feature = "relaxed-simd")]
use crate::INT8;
use crate::{INT4, INT4_MIN};

type Sums<const MR: usize> = [[v128; 2]; MR];

/// Panels that one row is multiplied by at once, each in another part of W: prefetchers stop at the end of a page, and run
/// ahead in each stream. From memory 8 streams over 4 adjacent panels 1.3x to 1.7x, over 4 streams 1.1x.
pub const STREAMS: usize = 8;
/// Streams whose sums are in registers at the same time.
pub const GROUP: usize = 4;

/// Numbers that the compiler must not know: engines build a constant vector anew for every use (three instructions), and
/// unrolled, the loads of a block would come before all products, and spill.
#[derive(Clone, Copy)]
struct Hidden {
    /// 15 in every byte.
    nibble: v128,
    /// See `load_scales`.
    half: v128,
    /// 1.5 2^23: the bits of this float plus an integer below 2^22 are those of the sum. Beginning with it and taking it
    /// away costs less than a conversion: 1.04x for strips.
    integer: v128,
    /// Loads of 4 k in a block.
    fours: usize,
}

impl Hidden {
    #[inline(always)]
    fn new() -> Self {
        Hidden {
            nibble: i32x4_splat(core::hint::black_box(0x0f0f_0f0f)),
            half: u32x4_splat(core::hint::black_box(HALF_MASK)),
            integer: u32x4_splat(core::hint::black_box(0x4b40_0000)),
            fours: core::hint::black_box(BLOCK / 4),
        }
    }
}

/// Floats that `dot_strip` needs, or `dot_streams`.
pub const SUMS: usize = 8 * if STRIP > 2 * STREAMS { STRIP } else { 2 * STREAMS };

/// Computes the formula above for a strip of rows and one panel into `[STRIP][8]` floats; the minima are left to
/// `add_minima`.
///
/// # Safety
/// `x` is the first of STRIP adjacent records, which are `records` times `step` bytes and go once over the panel's blocks;
/// `sums` holds SUMS floats.
#[inline(never)]
pub unsafe fn dot_strip<const DTYPE: u32>(sums: *mut f32, x: *const u8, step: usize, panel: *const u8, records: usize) {
    let hidden = Hidden::new();
    let (mut x, mut at) = (x, FACTORS);
    fill_zeros(sums, STRIP);
    for _ in 0..records {
        dot_block::<DTYPE, STRIP, 1>(sums, x, &[panel.add(at)], &hidden);
        at += *(x.add(RECORD - 4) as *const usize) * block_bytes(DTYPE);
        x = x.add(step);
    }
}

/// Computes the formula above for one row and STREAMS panels, block by block in turns, into `[STREAMS][8]` floats.
/// Those behind `groups` times GROUP are left out.
///
/// # Safety
/// As `dot_strip`, with records of one row.
#[inline(never)]
pub unsafe fn dot_streams<const DTYPE: u32>(
    sums: *mut f32,
    x: *const u8,
    step: usize,
    panels: &[*const u8; STREAMS],
    groups: usize,
    records: usize,
) {
    let hidden = Hidden::new();
    let (mut x, mut at) = (x, FACTORS);
    fill_zeros(sums, 2 * STREAMS);
    for _ in 0..records {
        for group in 0..groups {
            let mut w = [core::ptr::null(); GROUP];
            for i in 0..GROUP {
                w[i] = (*panels.as_ptr().add(group * GROUP + i)).add(at);
            }
            let sums = sums.add(group * GROUP * 8);
            dot_block::<DTYPE, 1, GROUP>(sums, x, &w, &hidden);
            if DTYPE == INT4_MIN {
                add_minima_of(sums.add(STREAMS * 8), x, &w, hidden.half);
            }
        }
        at += *(x.add(RECORD - 4) as *const usize) * block_bytes(DTYPE);
        x = x.add(step);
    }
    if DTYPE == INT4_MIN {
        for i in 0..core::hint::black_box(2 * STREAMS) {
            add(sums.add(4 * i), load(sums.add(STREAMS * 8 + 4 * i)));
        }
    }
}

/// Zeros for so many times 8 floats: a memory.fill would be a call.
#[inline(always)]
unsafe fn fill_zeros(sums: *mut f32, count: usize) {
    for i in 0..core::hint::black_box(2 * count) {
        (sums as *mut v128).add(i).write_volatile(zero());
    }
}

/// Adds scale (sx Σ q w) of one block of `NP` panels to `[NP][MR][8]` floats.
#[inline(always)]
unsafe fn dot_block<const DTYPE: u32, const MR: usize, const NP: usize>(
    sums: *mut f32,
    x: *const u8,
    w: &[*const u8; NP],
    hidden: &Hidden,
) {
    let dots = dots::<DTYPE, MR, NP>(x, w, hidden);
    for p in 0..NP {
        let scales = load_scales(w[p].add(scales_at(DTYPE)), hidden.half);
        for i in 0..MR {
            let sx = splat(x.add(i * RECORD + Q_BYTES) as *const f32);
            for half in 0..2 {
                let value = f32x4_mul(f32x4_sub(dots[p][i][half], hidden.integer), sx);
                add(sums.add((p * MR + i) * 8 + 4 * half), f32x4_mul(value, scales[half]));
            }
        }
    }
}

/// Adds minimum (sx Σ q) of one block of panels.
#[inline(always)]
unsafe fn add_minima_of(sums: *mut f32, x: *const u8, w: &[*const u8; GROUP], half_mask: v128) {
    let total = splat(x.add(Q_BYTES + 8) as *const f32);
    for p in 0..GROUP {
        let minima = load_scales(w[p].add(scales_at(INT4_MIN) + 16), half_mask);
        for half in 0..2 {
            add(sums.add(p * 8 + 4 * half), f32x4_mul(minima[half], total));
        }
    }
}

/// p += value, volatile: in memory the sums leave the registers to those of integers.
#[inline(always)]
unsafe fn add(p: *mut f32, value: v128) {
    let p = p as *mut v128;
    p.write_volatile(f32x4_add(p.read_volatile(), value));
}

/// sums += Σ over blocks minimum (sx Σ q), of a strip of rows and one panel; by itself, because the products leave it no
/// registers. A single row has its minima in `dot_streams`, with the same bits.
#[inline(never)]
pub unsafe fn add_minima(sums: *mut f32, x: *const u8, step: usize, panel: *const u8, records: usize) {
    let hidden = Hidden::new();
    let (mut x, mut block) = (x, panel.add(FACTORS + scales_at(INT4_MIN) + 16));
    let mut local = [[zero(); 2]; STRIP];
    for _ in 0..records {
        let minima = load_scales(block, hidden.half);
        for i in 0..STRIP {
            let total = splat(x.add(i * RECORD + Q_BYTES + 8) as *const f32);
            for half in 0..2 {
                local[i][half] = f32x4_add(local[i][half], f32x4_mul(minima[half], total));
            }
        }
        block = block.add(*(x.add(RECORD - 4) as *const usize) * block_bytes(INT4_MIN));
        x = x.add(step);
    }
    for i in 0..STRIP {
        for half in 0..2 {
            let to = sums.add(8 * i + 4 * half);
            store(to, f32x4_add(load(to), local[i][half]));
        }
    }
}

/// Σ q w of a block of each panel, less what q's or w's offset adds.
#[cfg(target_feature = "relaxed-simd")]
#[inline(always)]
unsafe fn dots<const DTYPE: u32, const MR: usize, const NP: usize>(
    x: *const u8,
    w: &[*const u8; NP],
    hidden: &Hidden,
) -> [Sums<MR>; NP] {
    let mut sums = [[[hidden.integer; 2]; MR]; NP];
    for p in 0..NP {
        if DTYPE == INT8 {
            let columns = w[p].add(256) as *const i16;
            let low = i32x4_shl(i32x4_load_extend_i16x4(columns), 6);
            let high = i32x4_shl(i32x4_load_extend_i16x4(columns.add(4)), 6);
            sums[p] = [[i32x4_add(low, hidden.integer), i32x4_add(high, hidden.integer)]; MR];
        }
        if DTYPE == INT4 {
            for i in 0..MR {
                sums[p][i] = [i32x4_add(hidden.integer, splat(x.add(i * RECORD + Q_BYTES + 4) as *const f32)); 2];
            }
        }
    }
    // two loops: in one, the compiler would take each sum's two products together, and spill
    let times = 1 + is_nibbles(DTYPE) as usize;
    for k in 0..times {
        let (mut x, mut w, mut left) = (x.add(4 * k), *w, hidden.fours / times);
        while left > 0 {
            for p in 0..NP {
                let w = [0, 1].map(|half| columns(DTYPE, w[p].add(16 * half), k, hidden.nibble));
                for i in 0..MR {
                    let q = splat(x.add(i * RECORD) as *const f32);
                    for half in 0..2 {
                        sums[p][i][half] = dot::<DTYPE>(w[half], q, sums[p][i][half]);
                    }
                }
            }
            x = x.add(4 * times);
            w = w.map(|w| w.add(32));
            left -= 1;
        }
    }
    sums
}

/// 4 columns at 4 k; of nibbles the first or the second 4 k.
#[inline(always)]
unsafe fn columns(dtype: u32, w: *const u8, k: usize, mask: v128) -> v128 {
    let bytes = v128_load(w as *const v128);
    match (is_nibbles(dtype), k) {
        (false, _) => bytes,
        (true, 0) => v128_and(bytes, mask),
        // x86 shifts no bytes: u8x16_shr would cost a third of the speed
        (true, _) => v128_and(u16x8_shr(bytes, 4), mask),
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
    let mut sums = [[zero(); 2]; MR];
    for half in 0..2 {
        let mut parts = [[zero(); 2]; MR];
        let times = 1 + is_nibbles(DTYPE) as usize;
        for g in 0..hidden.fours / times {
            for k in 0..times {
                let w = columns(DTYPE, w.add(32 * g + 16 * half), k, hidden.nibble);
                let (low, high) = (i16x8_extend_low_i8x16(w), i16x8_extend_high_i8x16(w));
                for i in 0..MR {
                    let q = v128_load64_splat(x.add(i * RECORD + 8 * (times * g + k)) as *const u64);
                    let [a, b] = parts[i];
                    parts[i] = [i32x4_add(a, i32x4_dot_i16x8(low, q)), i32x4_add(b, i32x4_dot_i16x8(high, q))];
                }
            }
        }
        for i in 0..MR {
            let [a, b] = parts[i];
            let pairs = i32x4_add(i32x4_shuffle::<0, 2, 4, 6>(a, b), i32x4_shuffle::<1, 3, 5, 7>(a, b));
            sums[i][half] = i32x4_add(hidden.integer, pairs);
            if DTYPE == INT4 {
                let offset = splat(x.add(i * RECORD + Q_BYTES + 4) as *const f32);
                sums[i][half] = i32x4_add(sums[i][half], offset);
            }
        }
    }
    sums
}
