//! Results by way of a copy of whole panels, for tiles that end beyond the last column or hold several panels.

use crate::product::Product;
use crate::simd::*;
use crate::PANEL;

/// Copies what 8 columns of the product's rows begin with: C or zero, plus the bias, and zero behind the last column.
///
/// # Safety
/// `to` holds 8 floats per row.
#[inline(never)]
pub unsafe fn gather(to: *mut f32, p: &Product, column: usize) {
    for half in [0, 4] {
        let at = column + half;
        let lanes = p.n.saturating_sub(at);
        let bias = if p.out.bias.is_null() { zero() } else { load_lanes(p.out.bias.wrapping_add(at), lanes) };
        for i in 0..p.m {
            let c = p.out.c.wrapping_add(i * p.out.stride + at);
            let sums = if p.out.load { f32x4_add(load_lanes(c, lanes), bias) } else { bias };
            store(to.add(i * PANEL + half), sums);
        }
    }
}

/// Stores 8 columns of the product's rows, as far as it has them.
///
/// # Safety
/// `from` holds 8 floats per row.
#[inline(never)]
pub unsafe fn scatter(p: &Product, column: usize, from: *const f32) {
    for half in [0, 4] {
        for i in 0..p.m {
            let c = p.out.c.wrapping_add(i * p.out.stride + column + half);
            store_lanes(c, load(from.add(i * PANEL + half)), p.n.saturating_sub(column + half));
        }
    }
}
