//! ids (rows): per row of logits (rows, classes) an index i, drawn with probability e^(logits[i] / temperature) / Σ
//! among the candidates that top-k, then top-p, then min-p leave.

use crate::argmax::likeliest;
use crate::math::exp;
use crate::simd::*;

/// How candidates are chosen.
struct Filters {
    top_k: usize,
    top_p: f64,
    min_p: f32,
}

/// One row: of each logit a key that sorts as it does, and e^((logit - greatest) / temperature).
struct Row {
    keys: *mut u32,
    weights: *mut f32,
    classes: usize,
}

/// A prefix of a row in falling order, the lower index first among equals: all above `key` and the first `ties` at it.
struct Cut {
    key: u32,
    ties: usize,
}

/// Scratch bytes of `sample`.
#[no_mangle]
pub extern "C" fn sample_scratch(classes: usize) -> usize {
    classes * 8
}

/// Draws with one random word per row, in the order of the indices. Writes -1 where a logit is NaN or the greatest is
/// infinite.
///
/// # Safety
/// All arrays have the sizes above, random (rows); classes is at least 1.
#[no_mangle]
pub unsafe extern "C" fn sample(
    ids: *mut f32,
    logits: *const f32,
    random: *const u32,
    rows: usize,
    classes: usize,
    inverse_temperature: f32,
    top_k: usize,
    top_p: f64,
    min_p: f32,
    scratch: *mut f32,
) {
    let filters = Filters { top_k, top_p, min_p };
    for i in 0..rows {
        let row = Row { keys: scratch as *mut u32, weights: scratch.add(classes), classes };
        let row_logits = logits.add(i * classes);
        *ids.add(i) = likeliest(row_logits, classes).map_or(-1.0, |best| {
            row.fill(row_logits, best, inverse_temperature);
            row.draw(&filters, best, *random.add(i) as f64 / 4_294_967_296.0) as f32
        });
    }
}

impl Row {
    unsafe fn draw(&self, filters: &Filters, best: usize, uniform: f64) -> usize {
        let mut cut = Cut { key: 0, ties: self.classes };
        if filters.top_k < self.classes {
            cut = self.shorten(&cut, filters.top_k as f64, true);
        }
        if filters.top_p < 1.0 {
            cut = self.shorten(&cut, filters.top_p * self.pass(&cut, 0.0, f64::INFINITY).0, false);
        }
        let (total, _) = self.pass(&cut, filters.min_p, f64::INFINITY);
        self.pass(&cut, filters.min_p, uniform * total).1.unwrap_or(best)
    }

    /// Both zeros have one key.
    unsafe fn fill(&self, logits: *const f32, best: usize, inverse_temperature: f32) {
        let most = splat(logits.add(best));
        by_four(self.classes, |i, lanes| {
            let logit = f32x4_add(load_lanes(logits.add(i), lanes), zero());
            let key = v128_xor(logit, v128_or(i32x4_shr(logit, 31), i32x4_splat(i32::MIN)));
            store_lanes(self.keys.add(i) as *mut f32, key, lanes);
            let weight = exp(f32x4_mul(f32x4_sub(logit, most), f32x4_splat(inverse_temperature)));
            store_lanes(self.weights.add(i), weight, lanes);
        });
    }

    /// Calls `body` with the indices of the keys from `low` to `high` and those keys, until it returns false.
    #[inline(always)]
    unsafe fn between(&self, low: u32, high: u32, mut body: impl FnMut(usize, u32) -> bool) {
        let (lowest, highest) = (u32x4_splat(low), u32x4_splat(high));
        for start in (0..self.classes).step_by(4) {
            let end = self.classes.min(start + 4);
            let four = load_lanes(self.keys.add(start) as *const f32, end - start);
            if !v128_any_true(v128_and(u32x4_ge(four, lowest), u32x4_le(four, highest))) {
                continue;
            }
            for i in start..end {
                let key = *self.keys.add(i);
                if key >= low && key <= high && !body(i, key) {
                    return;
                }
            }
        }
    }

    /// Adds the weights of the candidates from `least` on, in the order of the indices, until the sum is above `limit`:
    /// the sum, and the last candidate that added to it.
    #[inline(never)]
    unsafe fn pass(&self, cut: &Cut, least: f32, limit: f64) -> (f64, Option<usize>) {
        let (mut sum, mut last, mut ties) = (0.0, None, cut.ties);
        self.between(cut.key, u32::MAX, |i, key| {
            let weight = *self.weights.add(i);
            let is_tie = key == cut.key;
            if weight < least || weight == 0.0 || (is_tie && ties == 0) {
                return true;
            }
            ties -= is_tie as usize;
            (sum, last) = (sum + weight as f64, Some(i));
            sum <= limit
        });
        (sum, last)
    }

    /// The shortest prefix of `cut` that has `need` logits, or weighs that much: its key digit by digit, from the highest.
    #[inline(never)]
    unsafe fn shorten(&self, cut: &Cut, need: f64, counted: bool) -> Cut {
        let weigh = |i: usize| if counted { 1.0 } else { *self.weights.add(i) as f64 };
        let (mut prefix, mut left) = (0, need);
        // The first digit holds sign, exponent and two bits more: few logits then share the next ones.
        for (shift, bits) in [(21, 11), (10, 11), (0, 10)] {
            let low = ((prefix as u64) << (shift + bits)) as u32;
            let high = low | ((1u64 << (shift + bits)) - 1) as u32;
            let mut bins = [0.0; 2048];
            self.between(cut.key.max(low), high, |i, key| {
                bins[(key >> shift) as usize & ((1 << bits) - 1) & 2047] += weigh(i);
                true
            });
            let mut digit = (1 << bits) - 1;
            while digit > 0 && bins[digit & 2047] < left {
                left -= bins[digit & 2047];
                digit -= 1;
            }
            prefix = prefix << bits | digit as u32;
        }
        if prefix < cut.key {
            return Cut { ..*cut }; // By rounding, all of it weighs less than that.
        }
        let limit = if prefix == cut.key { cut.ties } else { self.classes };
        let mut each = 0.0;
        self.between(prefix, prefix, |i, _| {
            each = weigh(i);
            false
        });
        Cut { key: prefix, ties: count(left, each, limit) }
    }
}

/// The fewest equal weights, at least one and at most `limit`, that reach `need`.
fn count(need: f64, each: f64, limit: usize) -> usize {
    let (mut number, mut sum) = (1, each);
    while sum < need && number < limit {
        number += 1;
        sum += each;
    }
    number
}
