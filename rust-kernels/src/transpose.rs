//! y (batch, columns, rows) = x (batch, rows, columns) with its matrices turned.

/// Columns of a block that is turned at once, so that what is read and what is written stay in the cache.
const BLOCK: usize = 16;

/// Copies block by block.
///
/// # Safety
/// Both arrays have the sizes above and do not overlap.
#[no_mangle]
pub unsafe extern "C" fn transpose_each(y: *mut f32, x: *const f32, batch: usize, rows: usize, columns: usize) {
    for i in 0..batch {
        let (y, x) = (y.add(i * rows * columns), x.add(i * rows * columns));
        let mut first = 0;
        while first < columns {
            for row in 0..rows {
                for column in first..columns.min(first + BLOCK) {
                    *y.add(column * rows + row) = *x.add(row * columns + column);
                }
            }
            first += BLOCK;
        }
    }
}
