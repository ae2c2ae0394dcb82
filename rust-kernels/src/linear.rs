//! y (m, n) = [y] + x (m, k) Wᵀ + bias (n) + h (m, r) Bᵀ, with W (n, k) and B (n, r) as panels.
//!
//! B's r columns extend k in the same sums, so that LoRA's second factor never reads y again.

use crate::activations::activations_bytes;
use crate::blocks::{is_integer, panel_size};
use crate::dequantize::widen;
use crate::few_rows::{few_rows, FEW_ROWS};
use crate::halves::panel_bytes;
use crate::linear_integer::linear_integer;
use crate::product::{block_depth, product, product_in_blocks, slice_k, Product, NONE};
use crate::tile::{Out, Term};
use crate::{round_up, BF16, F32, PANEL};

/// Floats of a block of W: 512 KiB stay in the second-level cache for all rows. Few rows leave them little time to
/// arrive in: half the block, 128 x 4096 x 4096 1.03x.
const BLOCK: usize = 1 << 17;
/// Most rows that get half a block.
const HALF_BLOCK_M: usize = 512;
/// The same for narrower types that are widened first.
const WIDE_BLOCK: usize = 1 << 16;
/// Depth of the slices that are widened in turns, so that prefetchers run ahead in each panel: from memory bf16 1.2x. A
/// block of nf4 is as deep.
const SLICE: usize = 64;
/// From this many rows on bf16 is widened once per block; below, in the loop. From memory widening wins from 4 rows on
/// (4096 x 4096 on a busy Xeon: 1.6x for 4 rows, 1.8x for 5), from the cache it loses up to a fifth below 8.
const WIDE_M: usize = FEW_ROWS + 1;

/// Bytes of scratch that `linear` wants.
#[no_mangle]
pub extern "C" fn linear_scratch(m: usize, n: usize, k: usize, w_dtype: u32) -> usize {
    if is_integer(w_dtype) {
        return activations_bytes(m, k);
    }
    if !is_widened(m, w_dtype) {
        return 0;
    }
    let depth = block_depth(m, k);
    round_up(n, PANEL).min(block_columns(WIDE_BLOCK, depth)) * depth * 4
}

/// Whether W is multiplied as an f32 copy of its blocks: the types that the tile does not read, or that many rows pay for.
fn is_widened(m: usize, w_dtype: u32) -> bool {
    w_dtype != F32 && (w_dtype != BF16 || m >= WIDE_M)
}

/// Floats of a block of W for so many rows.
fn block_floats(m: usize, wide: bool) -> usize {
    match (wide, m <= HALF_BLOCK_M) {
        (true, _) => WIDE_BLOCK,
        (false, true) => BLOCK / 2,
        (false, false) => BLOCK,
    }
}

/// Columns of a block of so many floats.
fn block_columns(floats: usize, depth: usize) -> usize {
    round_up(floats / depth.max(1), PANEL).max(PANEL)
}

/// Computes the `columns` columns of y from `from` on, a multiple of 8; threads share a product by columns. `bias`, `h`
/// may be null; `y` is read only if `accumulate` is not 0.
///
/// # Safety
/// All arrays have the sizes above, `scratch` that of `linear_scratch`; y overlaps none of them. Over weights of integers
/// `scratch` holds what `round_activations` wrote, and x is not read.
#[no_mangle]
pub unsafe extern "C" fn linear(
    y: *mut f32,
    x: *const f32,
    w: *const u8,
    w_dtype: u32,
    bias: *const f32,
    h: *const f32,
    b: *const u8,
    m: usize,
    n: usize,
    k: usize,
    r: usize,
    from: usize,
    columns: usize,
    accumulate: u32,
    scratch: *mut u8,
) {
    let main = Term { a: x, stride: k, b: w, k };
    let tail = if h.is_null() { NONE } else { Term { a: h, stride: r, b, k: r } };
    let out = Out { c: y, stride: n, bias, load: accumulate != 0 };
    let whole = Product { m, n, main, panel: panel_size(k, w_dtype), tail, out };
    if is_integer(w_dtype) {
        return linear_integer(&slice_n(&whole, from, columns), w_dtype, scratch);
    }
    let wide = is_widened(m, w_dtype);
    let block =
        if m <= FEW_ROWS && !wide { columns.max(1) } else { block_columns(block_floats(m, wide), block_depth(m, k)) };
    let end = from + columns;
    for from in (from..end).step_by(block) {
        let part = slice_n(&whole, from, block.min(end - from));
        match (wide, w_dtype) {
            (true, _) => widened(&part, w_dtype, scratch),
            (_, BF16) => few_rows::<true>(&part),
            _ => product_in_blocks(&part),
        }
    }
}

/// The part of a product with columns `from` to `from + columns`; `from` is a multiple of 8.
///
/// # Safety
/// The columns lie within the product.
pub unsafe fn slice_n(p: &Product, from: usize, columns: usize) -> Product {
    let mut part = *p;
    part.n = columns;
    part.main.b = p.main.b.add(from / PANEL * p.panel);
    part.tail.b = p.tail.b.wrapping_add(from * p.tail.k * 4);
    part.out.c = p.out.c.add(from);
    if !p.out.bias.is_null() {
        part.out.bias = p.out.bias.add(from);
    }
    part
}

/// Runs a product on f32 copies of the blocks of B: the widening is paid once for all rows.
unsafe fn widened(p: &Product, w_dtype: u32, scratch: *mut u8) {
    let block = block_depth(p.m, p.main.k);
    let mut from = 0;
    loop {
        let depth = block.min(p.main.k - from);
        let mut part = slice_k(p, from, depth);
        for at in (0..depth).step_by(SLICE) {
            for j in 0..p.n.div_ceil(PANEL) {
                let to = scratch.add((j * depth + at) * 32);
                widen(to, p.main.b.add(j * p.panel), w_dtype, from + at, SLICE.min(depth - at));
            }
        }
        part.main.b = scratch;
        part.panel = depth * panel_bytes(false);
        product::<false>(&part);
        from += depth;
        if from >= p.main.k {
            return;
        }
    }
}
