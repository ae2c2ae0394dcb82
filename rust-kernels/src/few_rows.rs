//! Products of one to three rows, as when decoding: W comes from memory and is read once.
//!
//! Prefetchers run ahead of a stream of reads until the end of its page, a few hundred nanoseconds of work: so a tile takes
//! several panels, k by k in turns. From memory, one row: f32 1.0x to 1.4x, bf16 1.1x to 1.5x over one panel at a time.

use crate::edges::{gather, scatter};
use crate::halves::{load_panel, panel_bytes};
use crate::product::{tail_of, Product};
use crate::simd::*;
use crate::tile::Term;
use crate::PANEL;

/// Most rows that are few.
pub const FEW_ROWS: usize = 3;

/// Runs a product of `FEW_ROWS` rows or fewer; panels are f32 or (`HALF`) bf16. The sums of an element begin with C and the
/// bias and go through k in order, as those of the large tiles: a row has the same bits alone and among others.
///
/// # Safety
/// `p` describes readable operands and a writable result.
pub unsafe fn few_rows<const HALF: bool>(p: &Product) {
    main::<HALF>(p);
    if p.tail.k > 0 {
        main::<false>(&tail_of(p));
    }
}

#[inline(always)]
unsafe fn main<const HALF: bool>(p: &Product) {
    match p.m {
        1 => in_streams::<1, 4, HALF>(p),
        2 => in_streams::<2, 2, HALF>(p),
        3 => in_streams::<3, { 1 + cfg!(target_feature = "relaxed-simd") as usize }, HALF>(p),
        _ => {}
    }
}

/// The sums of `MR` rows over 8 columns of each of `NP` panels: columns 0 to 3 and 4 to 7.
type Sums<const MR: usize, const NP: usize> = [[[v128; 2]; MR]; NP];

/// Where there are fewer than `NP` panels left, the last one is repeated, for nothing.
#[inline(never)]
unsafe fn in_streams<const MR: usize, const NP: usize, const HALF: bool>(p: &Product) {
    let panels = p.n.div_ceil(PANEL);
    let mut sums: Sums<MR, NP> = [[[zero(); 2]; MR]; NP];
    for first in (0..panels).step_by(NP) {
        let mut b = [p.main.b; NP];
        for s in 0..NP {
            let j = (first + s).min(panels - 1);
            b[s] = p.main.b.add(j * p.panel);
            gather(sums[s].as_mut_ptr() as *mut f32, p, j * PANEL);
        }
        accumulate::<MR, NP, HALF>(&mut sums, &p.main, b);
        for s in 0..NP.min(panels - first) {
            scatter(p, (first + s) * PANEL, sums[s].as_ptr() as *const f32);
        }
    }
}

/// sums += A B for all panels.
#[inline(always)]
unsafe fn accumulate<const MR: usize, const NP: usize, const HALF: bool>(
    result: &mut Sums<MR, NP>,
    term: &Term,
    panels: [*const u8; NP],
) {
    let sums = &mut { *result };
    let (mut a, mut b, mut left) = (term.a, panels, term.k);
    while MR == 1 && left >= 4 {
        // one load for four elements: where the engine checks every load against the memory's end (Deno 2.9 does), 1.1x
        let x = load(a);
        step::<MR, NP, HALF>(sums, [i32x4_shuffle::<0, 0, 0, 0>(x, x); MR], &b, 0);
        step::<MR, NP, HALF>(sums, [i32x4_shuffle::<1, 1, 1, 1>(x, x); MR], &b, 1);
        step::<MR, NP, HALF>(sums, [i32x4_shuffle::<2, 2, 2, 2>(x, x); MR], &b, 2);
        step::<MR, NP, HALF>(sums, [i32x4_shuffle::<3, 3, 3, 3>(x, x); MR], &b, 3);
        a = a.add(4);
        b = b.map(|b| b.add(4 * panel_bytes(HALF)));
        left -= 4;
    }
    while left > 0 {
        let mut x = [zero(); MR];
        for i in 0..MR {
            x[i] = splat(a.add(i * term.stride));
        }
        step::<MR, NP, HALF>(sums, x, &b, 0);
        a = a.add(1);
        b = b.map(|b| b.add(panel_bytes(HALF)));
        left -= 1;
    }
    *result = *sums;
}

/// One k, `u` behind the pointers.
#[inline(always)]
unsafe fn step<const MR: usize, const NP: usize, const HALF: bool>(
    sums: &mut Sums<MR, NP>,
    x: [v128; MR],
    b: &[*const u8; NP],
    u: usize,
) {
    for s in 0..NP {
        let (low, high) = load_panel::<HALF>(b[s].add(u * panel_bytes(HALF)));
        for i in 0..MR {
            sums[s][i] = [madd(x[i], low, sums[s][i][0]), madd(x[i], high, sums[s][i][1])];
        }
    }
}
