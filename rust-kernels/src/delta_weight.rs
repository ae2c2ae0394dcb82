//! out (n, k) = s B A, with B (n, r) and A (r, k) as f32 panels, out row-major.

use crate::merge::Branch;
use crate::product::{product, Product, NONE};
use crate::strips::element;
use crate::tile::{Out, Term, ROWS};
use crate::{round_up, PANEL};

/// Bytes of scratch that `delta_weight` wants.
#[no_mangle]
pub extern "C" fn delta_weight_scratch(n: usize, k: usize, r: usize) -> usize {
    (round_up(n, ROWS) + round_up(k, PANEL)) * r * 4
}

/// Computes the formula above.
///
/// # Safety
/// All arrays have the sizes above, `scratch` that of `delta_weight_scratch`; out overlaps none of them.
#[no_mangle]
pub unsafe extern "C" fn delta_weight(
    out: *mut f32,
    a: *const f32,
    b: *const f32,
    s: f32,
    n: usize,
    k: usize,
    r: usize,
    scratch: *mut f32,
) {
    let panels = scratch.add(round_up(n, ROWS) * r);
    lay_out(scratch, panels, &Branch { a, b, r, s }, 0, [n, k, r]);
    let main = Term { a: scratch, stride: r, b: panels as *const u8, k: r };
    let to = Out { c: out, stride: k, bias: core::ptr::null(), load: false };
    product::<true>(&Product { m: n, n: k, main, panel: r * 32, tail: NONE, out: to });
}

/// B as strips `[n / ROWS][total][ROWS]` and s A as panels `[k / 8][total][8]`, both from rank `first` of `total` on.
///
/// # Safety
/// The branch has `n` and `k`, strips and panels have the sizes above.
#[inline(never)]
pub unsafe fn lay_out(strips: *mut f32, panels: *mut f32, branch: &Branch, first: usize, [n, k, total]: [usize; 3]) {
    for j in 0..branch.r {
        for row in 0..n {
            *strips.add((row / ROWS * total + first + j) * ROWS + row % ROWS) = element(branch.b, branch.r, row, j);
        }
        for column in 0..round_up(k, PANEL) {
            let value = if column < k { branch.s * element(branch.a, k, j, column) } else { 0.0 };
            *panels.add((column / PANEL * total + first + j) * PANEL + column % PANEL) = value;
        }
    }
}
