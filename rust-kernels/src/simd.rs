//! Vector helpers: the multiply-add of the build, partial loads and stores, 4x4 transposes.

pub use core::arch::wasm32::*;

/// `a * b + c`, fused where the engine fuses (relaxed build), else two roundings.
#[inline(always)]
pub fn madd(a: v128, b: v128, c: v128) -> v128 {
    #[cfg(target_feature = "relaxed-simd")]
    return f32x4_relaxed_madd(a, b, c);
    #[cfg(not(target_feature = "relaxed-simd"))]
    return f32x4_add(f32x4_mul(a, b), c);
}

/// Four zeros.
#[inline(always)]
pub fn zero() -> v128 {
    f32x4_splat(0.0)
}

/// Loads 4 floats.
///
/// # Safety
/// 16 bytes are readable at `p`.
#[inline(always)]
pub unsafe fn load(p: *const f32) -> v128 {
    v128_load(p as *const v128)
}

/// Stores 4 floats.
///
/// # Safety
/// 16 bytes are writable at `p`.
#[inline(always)]
pub unsafe fn store(p: *mut f32, v: v128) {
    v128_store(p as *mut v128, v)
}

/// Loads one float into all lanes.
///
/// # Safety
/// 4 bytes are readable at `p`.
#[inline(always)]
pub unsafe fn splat(p: *const f32) -> v128 {
    v128_load32_splat(p as *const u32)
}

/// Loads `lanes` floats (4 if more) and zeros behind them, touching nothing else.
///
/// # Safety
/// `min(lanes, 4)` floats are readable at `p`.
#[inline(always)]
pub unsafe fn load_lanes(p: *const f32, lanes: usize) -> v128 {
    if lanes >= 4 {
        load(p)
    } else {
        load_some(p, lanes)
    }
}

/// Out of line, because tails are everywhere and must not fill the binary.
#[inline(never)]
unsafe fn load_some(p: *const f32, lanes: usize) -> v128 {
    match lanes {
        0 => zero(),
        1 => v128_load32_zero(p as *const u32),
        2 => v128_load64_zero(p as *const u64),
        _ => v128_load32_lane::<2>(v128_load64_zero(p as *const u64), p.add(2) as *const u32),
    }
}

/// Stores the first `lanes` floats (4 if more).
///
/// # Safety
/// `min(lanes, 4)` floats are writable at `p`.
#[inline(always)]
pub unsafe fn store_lanes(p: *mut f32, v: v128, lanes: usize) {
    if lanes >= 4 {
        store(p, v);
    } else {
        store_some(p, v, lanes);
    }
}

/// See `load_some`.
#[inline(never)]
unsafe fn store_some(p: *mut f32, v: v128, lanes: usize) {
    match lanes {
        0 => {}
        1 => v128_store32_lane::<0>(v, p as *mut u32),
        2 => v128_store64_lane::<0>(v, p as *mut u64),
        _ => {
            v128_store64_lane::<0>(v, p as *mut u64);
            v128_store32_lane::<2>(v, p.add(2) as *mut u32);
        }
    }
}

/// Calls `body(offset, lanes)` for each group of 4 elements and once for what is left.
#[inline(always)]
pub fn by_four(count: usize, mut body: impl FnMut(usize, usize)) {
    let mut i = 0;
    while i + 4 <= count {
        body(i, 4);
        i += 4;
    }
    if i < count {
        body(i, count - i);
    }
}

/// Transposes a 4x4 block.
#[inline(always)]
pub fn transpose(v: [v128; 4]) -> [v128; 4] {
    let (a, b) = (i32x4_shuffle::<0, 4, 1, 5>(v[0], v[1]), i32x4_shuffle::<2, 6, 3, 7>(v[0], v[1]));
    let (c, d) = (i32x4_shuffle::<0, 4, 1, 5>(v[2], v[3]), i32x4_shuffle::<2, 6, 3, 7>(v[2], v[3]));
    [i64x2_shuffle::<0, 2>(a, c), i64x2_shuffle::<1, 3>(a, c), i64x2_shuffle::<0, 2>(b, d), i64x2_shuffle::<1, 3>(b, d)]
}

/// Lane i is the sum of the lanes of `v[i]`.
#[inline(always)]
pub fn sum_each(v: [v128; 4]) -> v128 {
    let t = transpose(v);
    f32x4_add(f32x4_add(t[0], t[1]), f32x4_add(t[2], t[3]))
}

/// Sum of the lanes.
#[inline(always)]
pub fn sum(v: v128) -> f32 {
    let pairs = f32x4_add(v, i32x4_shuffle::<2, 3, 0, 1>(v, v));
    f32x4_extract_lane::<0>(pairs) + f32x4_extract_lane::<1>(pairs)
}

/// Largest lane; a NaN may or may not win.
#[inline(always)]
pub fn maximum(v: v128) -> f32 {
    let pairs = f32x4_pmax(v, i32x4_shuffle::<2, 3, 0, 1>(v, v));
    f32x4_extract_lane::<0>(f32x4_pmax(pairs, i32x4_shuffle::<1, 0, 3, 2>(pairs, pairs)))
}
