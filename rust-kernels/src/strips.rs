//! Copies that make operands of the strip tile: strips `[depth][ROWS]` of A and panels `[depth][8]` of B.

use crate::simd::*;
use crate::tile::ROWS;
use crate::PANEL;

/// Element (row, depth) of panels of f32 with depth `k`.
///
/// # Safety
/// The panels hold the element.
#[inline(always)]
pub unsafe fn element(panels: *const f32, k: usize, row: usize, depth: usize) -> f32 {
    *panels.add((row / PANEL * k + depth) * PANEL + row % PANEL)
}

/// Copies the columns of src (depth, columns) with row stride `stride` into strips; what is missing of the last is zero.
///
/// # Safety
/// `dst` holds `columns` rounded up to ROWS times `depth` floats.
#[inline(never)]
pub unsafe fn strips_of_columns(dst: *mut f32, src: *const f32, stride: usize, depth: usize, columns: usize) {
    for t in 0..depth {
        let row = src.add(t * stride);
        let mut from = 0;
        while from < columns {
            let strip = dst.add(from * depth + t * ROWS);
            let count = ROWS.min(columns - from);
            store_lanes(strip, load_lanes(row.add(from), count), 4);
            let rest = count.saturating_sub(4);
            store_lanes(strip.add(4), load_lanes(row.wrapping_add(from + 4), rest), ROWS - 4);
            from += ROWS;
        }
    }
}

/// Copies the columns of src (count, columns) with row stride `stride` into panels of depth `depth`; what is missing of the
/// last is zero.
///
/// # Safety
/// `dst` is in panels of `columns` rounded up to 8 columns, with room for `count` in each.
#[inline(never)]
pub unsafe fn panels_of_columns(
    dst: *mut f32,
    src: *const f32,
    stride: usize,
    count: usize,
    depth: usize,
    columns: usize,
) {
    for t in 0..count {
        let row = src.add(t * stride);
        let mut from = 0;
        while from < columns {
            let panel = dst.add(from * depth + t * PANEL);
            let count = columns - from;
            store(panel, load_lanes(row.add(from), count));
            store(panel.add(4), load_lanes(row.wrapping_add(from + 4), count.saturating_sub(4)));
            from += PANEL;
        }
    }
}

/// Copies the rows of src (rows, depth) with row stride `stride` into panels; what is missing of the last is zero.
///
/// # Safety
/// `dst` holds `rows` rounded up to 8 times `depth` floats.
#[inline(never)]
pub unsafe fn panels_of_rows(dst: *mut f32, src: *const f32, stride: usize, depth: usize, rows: usize) {
    let mut from = 0;
    while from < rows {
        let panel = dst.add(from * depth);
        let here = src.add(from * stride);
        by_four(depth, |t, lanes| {
            for half in [0, 4] {
                let mut block = [zero(); 4];
                for c in 0..4 {
                    if from + half + c < rows {
                        block[c] = load_lanes(here.add((half + c) * stride + t), lanes);
                    }
                }
                let turned = transpose(block);
                for i in 0..lanes {
                    store(panel.add((t + i) * PANEL + half), turned[i]);
                }
            }
        });
        from += PANEL;
    }
}
