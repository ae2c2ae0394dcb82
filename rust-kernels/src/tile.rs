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

/// sums += A B, with A as rows or (`STRIP`) as a strip.
///
/// # Safety
/// `term` describes readable memory.
#[inline(always)]
pub unsafe fn accumulate<const MR: usize, const STRIP: bool>(sums: &mut Sums<MR>, term: &Term) {
    if STRIP {
        strip::<MR>(sums, term);
    } else {
        rows::<MR>(sums, term);
    }
}

/// The row form.
#[inline(always)]
unsafe fn rows<const MR: usize>(sums: &mut Sums<MR>, term: &Term) {
    let mut a = [term.a; MR];
    for i in 0..MR {
        a[i] = term.a.add(i * term.stride);
    }
    let mut b = term.b;
    let mut left = term.k;
    while left > 0 {
        let (b0, b1) = load_panel::<false>(b);
        for i in 0..MR {
            let x = splat(a[i]);
            sums[i][0] = madd(x, b0, sums[i][0]);
            sums[i][1] = madd(x, b1, sums[i][1]);
            a[i] = a[i].add(1);
        }
        b = b.add(panel_bytes(false));
        left -= 1;
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
unsafe fn tile<const MR: usize, const STRIP: bool>(main: &Term, tail: &Term, out: &Out) {
    let mut sums = begin::<MR>(out);
    accumulate::<MR, STRIP>(&mut sums, main);
    if !STRIP && tail.k > 0 {
        accumulate::<MR, false>(&mut sums, tail);
    }
    for i in 0..MR {
        let c = out.c.add(i * out.stride);
        store(c, sums[i][0]);
        store(c.add(4), sums[i][1]);
    }
}

/// The tile of `mr` rows, 1 to `ROWS` (more than `FEW_ROWS` but in a strip), and 8 columns.
///
/// # Safety
/// The terms describe readable memory, `out` writable memory.
#[inline(always)]
pub unsafe fn tile_of<const STRIP: bool>(mr: usize, main: &Term, tail: &Term, out: &Out) {
    match mr {
        1 if STRIP => tile::<1, STRIP>(main, tail, out),
        2 if STRIP => tile::<2, STRIP>(main, tail, out),
        3 if STRIP => tile::<3, STRIP>(main, tail, out),
        4 => tile::<4, STRIP>(main, tail, out),
        5 => tile::<5, STRIP>(main, tail, out),
        _ if ROWS == 6 => tile::<6, STRIP>(main, tail, out),
        _ => {}
    }
}
