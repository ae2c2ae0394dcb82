//! Compute kernels of `@lowrank/lora` for WebAssembly SIMD: one file per operation, named after it.
//!
//! The C ABI takes byte addresses in the module's own memory and counts. Nothing here allocates, checks or panics:
//! the TypeScript side checks shapes once and passes scratch of the size that `<operation>_scratch` returns.
//!
//! Weights are panels of 8 rows, rows padded to 8 with zeros: element (row, k) of the matrix (n, k) is in panel
//! `row / 8`, at `[k][row % 8]` for f32; for bf16 the 8 halves of one k are in the order 0 4 1 5 2 6 3 7, so that one
//! vector holds columns 0 to 3 in its low halves and columns 4 to 7 in its high halves. The narrower types are in
//! `blocks.rs`. Every panel is complete in itself, so that each kernel also runs on some panels of a weight.
#![no_std]
#![allow(clippy::too_many_arguments, clippy::needless_range_loop)]

#[cfg(not(target_arch = "wasm32"))]
compile_error!("build for wasm32-unknown-unknown (scripts/build_kernels.sh)");

mod activations;
mod blocks;
mod cache;
mod dequantize;
mod edges;
mod few_rows;
mod halves;
mod linear_integer;
mod math;
mod product;
mod simd;
mod strips;
mod tile;
mod tile_integer;

mod activation;
mod affine_rows;
mod append;
mod argmax;
mod attention;
mod attention_stream;
mod column_sums;
mod cross_entropy;
mod delta_weight;
mod elementwise;
mod embedding;
mod gather_sum;
mod layer_norm;
mod linear;
mod linear_backward_input;
mod linear_backward_weight;
mod merge;
mod merge_rows;
mod norms;
mod pack;
mod pack_blocks;
mod peak;
mod probe;
mod quantize;
mod rms_norm;
mod rope;
mod sample;
mod take_rows;
mod transpose;
mod unpack;

/// Element types of the ABI.
pub const F32: u32 = 0;
/// The upper half of an f32.
pub const BF16: u32 = 1;
/// IEEE half precision.
pub const F16: u32 = 2;
/// 8-bit integers with a scale per 32 of a column.
pub const INT8: u32 = 3;
/// 4-bit integers, less 8, with a scale per 32 of a column.
pub const INT4: u32 = 4;
/// 4-bit integers with a scale and a minimum per 32 of a column.
pub const INT4_MIN: u32 = 5;
/// QLoRA's 4-bit quantiles of a normal distribution.
pub const NF4: u32 = 6;
/// e4m3 with a scale per column.
pub const F8: u32 = 7;
/// Added to the type of a weight of integers: activations stay f32.
pub const EXACT: u32 = 16;

/// Added to the type of a cache, whose heads lie behind each other; those of a tensor lie side by side.
pub const BY_HEAD: u32 = 32;

/// Rows of a panel, and columns of a tile.
pub const PANEL: usize = 8;

/// `count` rounded up to a multiple of `to`.
#[inline(always)]
pub const fn round_up(count: usize, to: usize) -> usize {
    count.div_ceil(to) * to
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}
