//! `linear` over weights of integers: x is quantized once, then every panel is multiplied by strips of its rows.

use crate::activations::*;
use crate::halves::panel_bytes;
use crate::linear::slice_n;
use crate::product::{product_in_blocks, warm, Product, NONE};
use crate::simd::*;
use crate::tile_integer::dot_panel;
use crate::{INT4, INT4_MIN, INT8, PANEL};

/// Bytes of panels that stay in the second-level cache for all rows.
const CACHED: usize = 1 << 18;

/// Bytes of panels that are read once before they are used: see `warm`.
const AHEAD: usize = 1 << 14;

/// Computes y = [y] + x Wᵀ + bias + h Bᵀ as `p` describes it, W's panels being of type `dtype`.
///
/// # Safety
/// As `linear`; `scratch` holds the bytes of `activations_bytes`.
#[inline(never)]
pub unsafe fn linear_integer(p: &Product, dtype: u32, scratch: *mut u8) {
    let k = p.main.k;
    quantize_activations(scratch, p.main.a, p.m, k, dtype == INT8);
    let block = (CACHED / p.panel).max(1) * PANEL;
    let mut from = 0;
    while from < p.n {
        let mut part = slice_n(p, from, block.min(p.n - from));
        multiply(&part, dtype, scratch);
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
    let mut sums = [zero(); STRIP * 2];
    let ahead = (AHEAD / p.panel).max(1) * PANEL;
    let mut row = 0;
    while row < p.m {
        let rows = STRIP.min(p.m - row);
        let strip = activations.add(row / rows_together(p.m) * strip_bytes(p.m, k));
        let (records, x) = (*(strip as *const usize), strip.add(HEAD));
        let mut column = 0;
        while column < p.n {
            let panel = p.main.b.add(column / PANEL * p.panel);
            if row == 0 && column % ahead == 0 {
                warm(panel, ahead.min(p.n - column).div_ceil(PANEL), p.panel, p.panel);
            }
            tile(sums.as_mut_ptr() as *mut f32, x, step, panel, records, dtype, rows);
            for i in 0..rows {
                finish(p, row + i, column, panel as *const f32, (sums.as_ptr() as *const f32).add(i * PANEL));
            }
            column += PANEL;
        }
        row += rows;
    }
}

#[inline(always)]
unsafe fn tile(sums: *mut f32, x: *const u8, step: usize, panel: *const u8, records: usize, dtype: u32, rows: usize) {
    match (dtype, rows) {
        (INT8, 1) => dot_panel::<INT8, 1>(sums, x, step, panel, records),
        (INT8, _) => dot_panel::<INT8, STRIP>(sums, x, step, panel, records),
        (INT4, 1) => dot_panel::<INT4, 1>(sums, x, step, panel, records),
        (INT4, _) => dot_panel::<INT4, STRIP>(sums, x, step, panel, records),
        (_, 1) => dot_panel::<INT4_MIN, 1>(sums, x, step, panel, records),
        _ => dot_panel::<INT4_MIN, STRIP>(sums, x, step, panel, records),
    }
}

/// y = [y] + bias + factor sums for one row of one panel.
#[inline(always)]
unsafe fn finish(p: &Product, row: usize, column: usize, factors: *const f32, sums: *const f32) {
    let c = p.out.c.add(row * p.out.stride + column);
    for half in [0, 4] {
        let lanes = (p.n - column).saturating_sub(half);
        let mut value = f32x4_mul(load(sums.add(half)), load(factors.add(half)));
        if !p.out.bias.is_null() {
            value = f32x4_add(value, load_lanes(p.out.bias.wrapping_add(column + half), lanes));
        }
        if p.out.load {
            value = f32x4_add(value, load_lanes(c.wrapping_add(half), lanes));
        }
        store_lanes(c.wrapping_add(half), value, lanes);
    }
}
