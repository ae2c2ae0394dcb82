//! y (count, dim) = the rows of x (…, dim) with the indices `rows`.

/// Copies the rows.
///
/// # Safety
/// All arrays have the sizes above and every index is a row of x; y does not overlap x.
#[no_mangle]
pub unsafe extern "C" fn take_rows(y: *mut f32, x: *const f32, rows: *const u32, count: usize, dim: usize) {
    for i in 0..count {
        core::ptr::copy_nonoverlapping(x.add(*rows.add(i) as usize * dim), y.add(i * dim), dim);
    }
}
