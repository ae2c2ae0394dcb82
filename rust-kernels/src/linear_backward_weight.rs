//! dw (n, k) += dyᵀ x, with dy (m, n) and x (m, k); dy, and dw and x, may be columns of longer rows.
//!
//! Walking down columns of x at a stride that is a multiple of 4 KiB misses the cache at every step, so 64 columns at a
//! time are copied into panels; dy is copied once per block of rows into strips.

use crate::product::{product, Product, NONE};
use crate::round_up;
use crate::strips::{panels_of_columns, strips_of_columns};
use crate::tile::{Out, Term, ROWS};

/// Rows of dy and x per block.
const BLOCK_M: usize = 256;
/// Columns of x per block.
const BLOCK_K: usize = 64;

/// Bytes of scratch that `linear_backward_weight` wants.
#[no_mangle]
pub extern "C" fn linear_backward_weight_scratch(m: usize, n: usize, _k: usize) -> usize {
    (strips(n) + BLOCK_K) * m.min(BLOCK_M) * 4
}

/// Floats of the strips per row of dy.
fn strips(n: usize) -> usize {
    round_up(round_up(n, ROWS), 4)
}

/// Computes the formula above; the rows of dy are `n_stride` floats apart, those of dw and x `k_stride`.
///
/// # Safety
/// All arrays have the sizes above, `scratch` that of `linear_backward_weight_scratch`; dw overlaps none of them.
#[no_mangle]
pub unsafe extern "C" fn linear_backward_weight(
    dw: *mut f32,
    dy: *const f32,
    x: *const f32,
    m: usize,
    n: usize,
    k: usize,
    n_stride: usize,
    k_stride: usize,
    scratch: *mut f32,
) {
    let mut row = 0;
    while row < m {
        let depth = BLOCK_M.min(m - row);
        let panels = scratch.add(strips(n) * depth);
        strips_of_columns(scratch, dy.add(row * n_stride), n_stride, depth, n);
        let mut column = 0;
        while column < k {
            let columns = BLOCK_K.min(k - column);
            panels_of_columns(panels, x.add(row * k_stride + column), k_stride, depth, depth, columns);
            let main = Term { a: scratch, stride: depth, b: panels as *const u8, k: depth };
            let out = Out { c: dw.add(column), stride: k_stride, bias: core::ptr::null(), load: true };
            product::<true>(&Product { m: n, n: columns, main, panel: depth * 32, tail: NONE, out });
            column += columns;
        }
        row += depth;
    }
}
