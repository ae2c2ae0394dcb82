//! `linear` over weights of integers: every panel is multiplied by strips of rounded activations (`round_activations`).

use crate::activations::*;
use crate::linear::slice_n;
use crate::product::{product_in_blocks, tail_of, warm, Product};
use crate::simd::*;
use crate::tile_integer::{add_minima, dot_streams, dot_strip, GROUP, STREAMS, SUMS};
use crate::{INT4, INT4_MIN, INT8, PANEL};

/// Bytes of panels that stay in the second-level cache for all rows.
const CACHED: usize = 1 << 18;
/// Bytes of panels that are read once before they are used by many rows: see `warm`.
const WARMED: usize = 1 << 14;

/// Computes y = [y] + x Wᵀ + bias + h Bᵀ as `p` describes it, W's panels being of type `dtype`.
///
/// # Safety
/// As `linear`; `activations` are x, rounded.
#[inline(never)]
pub unsafe fn linear_integer(p: &Product, dtype: u32, activations: *const u8) {
    let block = if p.m == 1 { p.n.max(1) } else { (CACHED / p.panel).max(1) * PANEL };
    let mut from = 0;
    while from < p.n {
        let part = slice_n(p, from, block.min(p.n - from));
        multiply(&part, dtype, activations);
        if p.tail.k > 0 {
            product_in_blocks(&tail_of(&part));
        }
        from += block;
    }
}

/// All rows of some panels.
unsafe fn multiply(p: &Product, dtype: u32, activations: *const u8) {
    let (k, step) = (p.main.k, rows_together(p.m) * RECORD);
    let mut sums = [0.0; SUMS];
    let panels = p.n.div_ceil(PANEL);
    let warmed = (WARMED / p.panel).max(1);
    let mut row = 0;
    while row < p.m {
        let rows = STRIP.min(p.m - row);
        let strip = activations.add(row / rows_together(p.m) * strip_bytes(p.m, k));
        let (records, x) = (*(strip as *const usize), strip.add(HEAD));
        let apart = panels.div_ceil(if rows == 1 { STREAMS } else { 1 });
        for first in 0..apart {
            let panel = p.main.b.add(first * p.panel);
            if p.m > 1 && row == 0 && first % warmed == 0 {
                warm(panel, warmed.min(panels - first), p.panel, p.panel);
            }
            let last = (panels - 1 - first) / apart;
            let mut w = [panel; STREAMS];
            for i in 0..STREAMS {
                // where there are fewer, the last one again: its sums are not used
                w[i] = panel.add(i.min(last) * apart * p.panel);
            }
            let call = Call { sums: sums.as_mut_ptr(), x, step, panels: &w, groups: last / GROUP + 1, records };
            match dtype {
                INT8 => call.run::<INT8>(rows),
                INT4 => call.run::<INT4>(rows),
                _ => call.run::<INT4_MIN>(rows),
            }
            for i in 0..=last {
                let column = (first + i * apart) * PANEL;
                finish(p, [row, rows], column, w[i] as *const f32, call.sums.add(i * rows * PANEL));
            }
        }
        row += rows;
    }
}

/// One panel against a strip of rows, or several against one row.
struct Call<'a> {
    sums: *mut f32,
    x: *const u8,
    step: usize,
    panels: &'a [*const u8; STREAMS],
    groups: usize,
    records: usize,
}

impl Call<'_> {
    #[inline(always)]
    unsafe fn run<const DTYPE: u32>(&self, rows: usize) {
        let &Call { sums, x, step, panels, groups, records } = self;
        if rows == 1 {
            dot_streams::<DTYPE>(sums, x, step, panels, groups, records);
        } else {
            dot_strip::<DTYPE>(sums, x, step, panels[0], records);
            if DTYPE == INT4_MIN {
                add_minima(sums, x, step, panels[0], records);
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
