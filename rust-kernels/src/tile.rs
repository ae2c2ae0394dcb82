//! The micro-kernel: C (mr, 8) = [C | 0] + bias + A (mr, k) B (k, 8) + tail, all sums in registers.
//!
//! x86-64 engines leave 15 vector registers. 6x8 with a fused multiply-add needs all of them (12 sums, 2 of B, 1 of A);
//! one more halves the speed, so the plain build, whose products need a register, takes 5 rows. The loops rely on
//! `-pre-RA-sched=source`: load, use twice, dead; scripts/build_kernels.sh checks that order in the binary.

use crate::halves::{load_panel, panel_bytes};
use crate::simd::*;

const RELAXED: bool = cfg!(target_feature = "relaxed-simd");

/// Rows of the largest tile; also of a strip.
pub const ROWS: usize = if RELAXED { 6 } else { 5 };
/// Rows of the largest tile that widens bf16 in its loop; for more rows `linear` widens once.
pub const HALF_ROWS: usize = 3;

/// One product: A (mr, k) times B (k, 8).
#[derive(Clone, Copy)]
pub struct Term {
    /// First element: of `mr` rows, or of a strip `[k][ROWS]`.
    pub a: *const f32,
    /// Floats between the rows of A; of a strip, its depth.
    pub stride: usize,
    /// A panel `[k][8]`.
    pub b: *const u8,
    /// Depth.
    pub k: usize,
}

/// Where the sums go.
#[derive(Clone, Copy)]
pub struct Out {
    /// First element.
    pub c: *mut f32,
    /// Floats between rows.
    pub stride: usize,
    /// 8 values to add to every row, or null.
    pub bias: *const f32,
    /// Whether to add to C; if not, C is never read.
    pub load: bool,
}

/// Sums of a tile: columns 0 to 3 and 4 to 7 of each row.
pub type Sums<const MR: usize> = [[v128; 2]; MR];

/// sums += A B, with A as rows or (`STRIP`) as a strip, B as f32 or (`HALF`) bf16.
///
/// # Safety
/// `term` describes readable memory.
#[inline(always)]
pub unsafe fn accumulate<const MR: usize, const STRIP: bool, const HALF: bool>(sums: &mut Sums<MR>, term: &Term) {
    if STRIP {
        return strip::<MR>(sums, term);
    }
    match MR {
        1 => rows::<MR, 4, HALF>(sums, term),
        2 => rows::<MR, 2, HALF>(sums, term),
        3 if RELAXED => rows::<MR, 2, HALF>(sums, term),
        _ => rows::<MR, 1, HALF>(sums, term),
    }
}

/// The row form. `U` steps of k at once keep 8 or more sums apart where MR alone gives fewer (latency 4, two units).
#[inline(always)]
unsafe fn rows<const MR: usize, const U: usize, const HALF: bool>(sums: &mut Sums<MR>, term: &Term) {
    let mut a = [term.a; MR];
    for i in 0..MR {
        a[i] = term.a.add(i * term.stride);
    }
    let mut b = term.b;
    let mut left = term.k;
    if U > 1 {
        let mut parts = [[[zero(); 2]; MR]; U];
        while left >= U {
            if MR == 1 && U == 4 {
                four_steps::<MR, U, HALF>(&mut parts, a[0], b);
            } else {
                for u in 0..U {
                    step::<MR, HALF>(&mut parts[u], &a, u, b.add(u * panel_bytes(HALF)));
                }
            }
            for i in 0..MR {
                a[i] = a[i].add(U);
            }
            b = b.add(U * panel_bytes(HALF));
            left -= U;
        }
        for u in 0..U {
            for i in 0..MR {
                sums[i] = [f32x4_add(sums[i][0], parts[u][i][0]), f32x4_add(sums[i][1], parts[u][i][1])];
            }
        }
    }
    while left > 0 {
        step::<MR, HALF>(sums, &a, 0, b);
        for i in 0..MR {
            a[i] = a[i].add(1);
        }
        b = b.add(panel_bytes(HALF));
        left -= 1;
    }
}

/// Four steps of k of one row, whose elements come in one load: where the engine checks every load against the memory's
/// end (Deno 2.9 does), 1.1x for f32 and 1.15x for bf16 weights over four splats.
#[inline(always)]
unsafe fn four_steps<const MR: usize, const U: usize, const HALF: bool>(
    parts: &mut [Sums<MR>; U],
    a: *const f32,
    b: *const u8,
) {
    let x = load(a);
    let splats = [
        i32x4_shuffle::<0, 0, 0, 0>(x, x),
        i32x4_shuffle::<1, 1, 1, 1>(x, x),
        i32x4_shuffle::<2, 2, 2, 2>(x, x),
        i32x4_shuffle::<3, 3, 3, 3>(x, x),
    ];
    for u in 0..4 {
        let (b0, b1) = load_panel::<HALF>(b.add(u * panel_bytes(HALF)));
        parts[u][0][0] = madd(splats[u], b0, parts[u][0][0]);
        parts[u][0][1] = madd(splats[u], b1, parts[u][0][1]);
    }
}

/// One step of k.
#[inline(always)]
unsafe fn step<const MR: usize, const HALF: bool>(sums: &mut Sums<MR>, a: &[*const f32; MR], u: usize, b: *const u8) {
    let (b0, b1) = load_panel::<HALF>(b);
    for i in 0..MR {
        let x = splat(a[i].add(u));
        sums[i][0] = madd(x, b0, sums[i][0]);
        sums[i][1] = madd(x, b1, sums[i][1]);
    }
}

/// The strip form: the splats sit at constant offsets of one pointer.
#[inline(always)]
unsafe fn strip<const MR: usize>(sums: &mut Sums<MR>, term: &Term) {
    let (mut a, mut b) = (term.a, term.b);
    let mut left = term.k;
    while left > 0 {
        let (b0, b1) = load_panel::<false>(b);
        for i in 0..MR {
            let x = splat(a.add(i));
            sums[i][0] = madd(x, b0, sums[i][0]);
            sums[i][1] = madd(x, b1, sums[i][1]);
        }
        a = a.add(ROWS);
        b = b.add(panel_bytes(false));
        left -= 1;
    }
}

/// Sums to start from: C or zero, plus the bias.
#[inline(always)]
unsafe fn begin<const MR: usize>(out: &Out) -> Sums<MR> {
    let mut sums = [[zero(); 2]; MR];
    if out.load {
        for i in 0..MR {
            let c = out.c.add(i * out.stride);
            sums[i] = [load(c), load(c.add(4))];
        }
    }
    if !out.bias.is_null() {
        let (low, high) = (load(out.bias), load(out.bias.add(4)));
        for i in 0..MR {
            sums[i] = [f32x4_add(sums[i][0], low), f32x4_add(sums[i][1], high)];
        }
    }
    sums
}

/// One tile. The tail is a second product in the same sums (rows and f32): LoRA's xa Bᵀ costs no second pass over C.
#[inline(never)]
unsafe fn tile<const MR: usize, const STRIP: bool, const HALF: bool>(main: &Term, tail: &Term, out: &Out) {
    let mut sums = begin::<MR>(out);
    accumulate::<MR, STRIP, HALF>(&mut sums, main);
    if !STRIP && tail.k > 0 {
        accumulate::<MR, false, false>(&mut sums, tail);
    }
    for i in 0..MR {
        let c = out.c.add(i * out.stride);
        store(c, sums[i][0]);
        store(c.add(4), sums[i][1]);
    }
}

/// The tile of `mr` rows, 1 to `ROWS` (`HALF_ROWS` if `HALF`), and 8 columns.
///
/// # Safety
/// The terms describe readable memory, `out` writable memory.
#[inline(always)]
pub unsafe fn tile_of<const STRIP: bool, const HALF: bool>(mr: usize, main: &Term, tail: &Term, out: &Out) {
    match mr {
        1 => tile::<1, STRIP, HALF>(main, tail, out),
        2 => tile::<2, STRIP, HALF>(main, tail, out),
        3 => tile::<3, STRIP, HALF>(main, tail, out),
        4 if !HALF => tile::<4, STRIP, HALF>(main, tail, out),
        5 if !HALF => tile::<5, STRIP, HALF>(main, tail, out),
        _ if !HALF && ROWS == 6 => tile::<6, STRIP, HALF>(main, tail, out),
        _ => {}
    }
}
