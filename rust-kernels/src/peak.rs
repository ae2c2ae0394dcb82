//! What the machine can do: the yardsticks that benchmarks divide by.

use crate::simd::*;

/// Independent chains: enough to hide a latency of 4 on two units, few enough for 15 registers.
const CHAINS: usize = 12;

/// Floating-point operations of one iteration of `peak_fma`.
#[no_mangle]
pub extern "C" fn peak_fma_flops() -> u32 {
    CHAINS as u32 * 4 * 2
}

/// Runs `iterations` of 12 independent multiply-adds (fused or not, as the build's tiles); returns their sum.
#[no_mangle]
pub extern "C" fn peak_fma(iterations: u32) -> f32 {
    let mut s = [zero(); CHAINS];
    for i in 0..CHAINS {
        s[i] = f32x4_splat(i as f32);
    }
    // not constants: engines load those anew for every use
    let x = f32x4_splat(iterations as f32 * 1e-10);
    let y = f32x4_sub(f32x4_splat(0.999), x);
    for _ in 0..iterations {
        for i in 0..CHAINS {
            s[i] = link(s[i], x, y);
        }
    }
    let mut total = zero();
    for i in 0..CHAINS {
        total = f32x4_add(total, s[i]);
    }
    sum(total)
}

/// One operation of a chain. The plain build's product must depend on the sum, or it would leave the loop.
#[inline(always)]
fn link(s: v128, x: v128, y: v128) -> v128 {
    if cfg!(target_feature = "relaxed-simd") {
        madd(x, y, s)
    } else {
        madd(s, y, x)
    }
}

/// Adds up a buffer in 8 chains; `bytes` is rounded down to 128.
///
/// # Safety
/// The bytes are readable.
#[no_mangle]
pub unsafe extern "C" fn peak_read(p: *const f32, bytes: usize) -> f32 {
    let mut sums = [zero(); 8];
    for block in 0..bytes / 128 {
        for i in 0..8 {
            sums[i] = f32x4_add(sums[i], load(p.add(block * 32 + i * 4)));
        }
    }
    let mut total = zero();
    for i in 0..8 {
        total = f32x4_add(total, sums[i]);
    }
    sum(total)
}
