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
    let mut sums = [zero(); CHAINS];
    for i in 0..CHAINS {
        sums[i] = f32x4_splat(i as f32);
    }
    let factor = f32x4_splat(0.999_999);
    for _ in 0..iterations {
        for i in 0..CHAINS {
            sums[i] = madd(sums[i], factor, factor);
        }
    }
    let mut total = zero();
    for i in 0..CHAINS {
        total = f32x4_add(total, sums[i]);
    }
    sum(total)
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
