//! `linear` over weights of integers: every panel is multiplied by strips of rounded activations (`round_activations`).

use crate::activations::*;
use crate::halves::panel_bytes;
use crate::linear::slice_n;
use crate::product::{product_in_blocks, warm, Product, NONE};
use crate::simd::*;
use crate::tile_integer::{add_minima, dot_panels, sums_of};
use crate::{INT4, INT4_MIN, INT8, PANEL};

/// Bytes of panels that stay in the second-level cache for all rows.
const CACHED: usize = 1 << 18;

/// Panels that one row is multiplied by at once.
const AT_ONCE: usize = 4;
/// Bytes of panels that are read once before they are used by many rows: see `warm`.
const WARMED: usize = 1 << 14;
/// Bytes of panels that are touched ahead of a single row, from memory 1.2x over `warm`.
const AHEAD: usize = 1 << 15;
const PAGE: usize = 4096;

/// Computes y = [y] + x Wᵀ + bias + h Bᵀ as `p` describes it, W's panels being of type `dtype`.
///
/// # Safety
/// As `linear`; `activations` are x, rounded.
#[inline(never)]
pub unsafe fn linear_integer(p: &Product, dtype: u32, activations: *const u8) {
    let block = if p.m == 1 { p.n.max(1) } else { (CACHED / p.panel).max(1) * PANEL };
    let mut from = 0;
    while from < p.n {
        let mut part = slice_n(p, from, block.min(p.n - from));
        multiply(&part, dtype, activations);
        if p.tail.k > 0 {
            part.main = part.tail;
            part.panel = p.tail.k * panel_bytes(false);
            part.tail = NONE;
            part.out.load = true;
            part.out.bias = core::ptr::null();
            product_in_blocks::<false>(&part);
        }
        from += block;
    }
}

/// All rows of some panels.
unsafe fn multiply(p: &Product, dtype: u32, activations: *const u8) {
    let (k, step) = (p.main.k, rows_together(p.m) * RECORD);
    let mut sums = [0.0; sums_of(STRIP, AT_ONCE)];
    let warmed = (WARMED / p.panel).max(1) * PANEL;
    let (mut ahead, end) = (p.main.b, p.main.b.add(p.n.div_ceil(PANEL) * p.panel));
    let mut row = 0;
    while row < p.m {
        let rows = STRIP.min(p.m - row);
        let strip = activations.add(row / rows_together(p.m) * strip_bytes(p.m, k));
        let (records, x) = (*(strip as *const usize), strip.add(HEAD));
        let mut column = 0;
        while column < p.n {
            let panel = p.main.b.add(column / PANEL * p.panel);
            if p.m == 1 && panel >= ahead {
                ahead = touch(ahead, end);
            } else if p.m > 1 && row == 0 && column % warmed == 0 {
                warm(panel, warmed.min(p.n - column).div_ceil(PANEL), p.panel, p.panel);
            }
            // one row: four streams from memory, and a quarter of the loads of q: 1.5x from memory, 1.1x from the cache
            let panels = if rows == 1 { AT_ONCE.min((p.n - column).div_ceil(PANEL)) } else { 1 };
            let call = Call { sums: sums.as_mut_ptr(), x, step, panel, size: p.panel, records };
            match dtype {
                INT8 => call.run::<INT8>(rows, panels),
                INT4 => call.run::<INT4>(rows, panels),
                _ => call.run::<INT4_MIN>(rows, panels),
            }
            for i in 0..panels {
                let factors = panel.add(i * p.panel) as *const f32;
                finish(p, [row, rows], column + i * PANEL, factors, call.sums.add(i * rows * PANEL));
            }
            column += panels * PANEL;
        }
        row += rows;
    }
}

/// Reads the beginnings of the pages that come after the next ones, and returns where to do so again. Prefetchers stop at
/// the end of a page: one wait for all of them is shorter than one for each.
#[inline(never)]
unsafe fn touch(from: *const u8, end: *const u8) -> *const u8 {
    let next = from.add(AHEAD);
    for page in (0..AHEAD).step_by(PAGE) {
        let at = next.add(page) as *const u32;
        if (at.add(1) as *const u8) < end {
            at.read_volatile();
        }
    }
    next
}

/// Some panels against one row or a strip.
struct Call {
    sums: *mut f32,
    x: *const u8,
    step: usize,
    panel: *const u8,
    size: usize,
    records: usize,
}

impl Call {
    #[inline(always)]
    unsafe fn run<const DTYPE: u32>(&self, rows: usize, panels: usize) {
        let &Call { sums, x, step, panel, size, records } = self;
        if rows == 1 {
            // where there are fewer, the last one again: its sums are not used
            let w = [0, 1, 2, 3].map(|i: usize| panel.add(i.min(panels - 1) * size));
            dot_panels::<DTYPE, 1, AT_ONCE>(sums, x, step, w, records);
        } else {
            dot_panels::<DTYPE, STRIP, 1>(sums, x, step, [panel], records);
            if DTYPE == INT4_MIN {
                add_minima::<STRIP>(sums, x, step, panel, records);
            }
        }
    }
}

/// y = [y] + bias + factor sums for some rows of one panel.
#[inline(always)]
unsafe fn finish(p: &Product, [row, rows]: [usize; 2], column: usize, factors: *const f32, sums: *const f32) {
    for half in [0, 4] {
        let lanes = (p.n - column).saturating_sub(half);
        let factor = load(factors.add(half));
        let bias =
            if p.out.bias.is_null() { zero() } else { load_lanes(p.out.bias.wrapping_add(column + half), lanes) };
        for i in 0..rows {
            let c = p.out.c.wrapping_add((row + i) * p.out.stride + column + half);
            let mut value = f32x4_mul(load(sums.add(i * PANEL + half)), factor);
            if !p.out.bias.is_null() {
                value = f32x4_add(value, bias);
            }
            if p.out.load {
                value = f32x4_add(value, load_lanes(c, lanes));
            }
            store_lanes(c, value, lanes);
        }
    }
}
