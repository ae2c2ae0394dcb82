//! cache (batch, capacity, dim) at positions past to past + length = x (batch, length, dim).

/// Copies x into the cache.
///
/// # Safety
/// All arrays have the sizes above and past + length <= capacity; they do not overlap.
#[no_mangle]
pub unsafe extern "C" fn append(
    cache: *mut f32,
    x: *const f32,
    batch: usize,
    length: usize,
    capacity: usize,
    dim: usize,
    past: usize,
) {
    for i in 0..batch {
        let to = cache.add((i * capacity + past) * dim);
        core::ptr::copy_nonoverlapping(x.add(i * length * dim), to, length * dim);
    }
}
