//! y = s y; y = a + b; y = silu(gate) ∘ up with silu(x) = x / (1 + e⁻ˣ). All of `count` elements.

use crate::math::exp;
use crate::simd::*;

/// y (count) *= s.
///
/// # Safety
/// y holds `count` floats.
#[no_mangle]
pub unsafe extern "C" fn scale(y: *mut f32, s: f32, count: usize) {
    by_four(count, |i, lanes| {
        store_lanes(y.add(i), f32x4_mul(load_lanes(y.add(i), lanes), f32x4_splat(s)), lanes);
    });
}

/// y (count) = a + b; y may be a or b.
///
/// # Safety
/// All hold `count` floats.
#[no_mangle]
pub unsafe extern "C" fn add(y: *mut f32, a: *const f32, b: *const f32, count: usize) {
    by_four(count, |i, lanes| {
        store_lanes(y.add(i), f32x4_add(load_lanes(a.add(i), lanes), load_lanes(b.add(i), lanes)), lanes);
    });
}

/// y (count) = silu(gate) ∘ up; y may be gate or up.
///
/// # Safety
/// All hold `count` floats.
#[no_mangle]
pub unsafe extern "C" fn silu_mul(y: *mut f32, gate: *const f32, up: *const f32, count: usize) {
    by_four(count, |i, lanes| {
        let g = load_lanes(gate.add(i), lanes);
        let silu = f32x4_div(g, f32x4_add(f32x4_splat(1.0), exp(f32x4_neg(g))));
        store_lanes(y.add(i), f32x4_mul(silu, load_lanes(up.add(i), lanes)), lanes);
    });
}
