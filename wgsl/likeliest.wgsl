// What argmax and sample share: logits as keys that sort as they do, and the greatest of a row, by 256 invocations.
// The floats are read as bits, because WGSL may take it that there is no NaN.

var<workgroup> keys: array<u32, 256>;
var<workgroup> places: array<u32, 256>;

// Both zeros are equal, and NaN is above all.
fn key_at(i: u32) -> u32 {
  let bits = logits[i];
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return 0xffffffffu;
  }
  let negative = bits > 0x80000000u;
  return select(bits | 0x80000000u, ~bits, negative);
}

// Key and index of the greatest, the first among equals.
fn likeliest(start: u32, classes: u32, t: u32) -> vec2u {
  var key = 0u;
  var place = 0u;
  for (var i = t; i < classes; i += 256u) {
    let other = key_at(start + i);
    if (other > key) {
      key = other;
      place = i;
    }
  }
  keys[t] = key;
  places[t] = place;
  workgroupBarrier();
  for (var step = 128u; step > 0u; step >>= 1u) {
    if (t < step) {
      let other = t + step;
      if (keys[other] > keys[t] || (keys[other] == keys[t] && places[other] < places[t])) {
        keys[t] = keys[other];
        places[t] = places[other];
      }
    }
    workgroupBarrier();
  }
  let best = vec2u(keys[0], places[0]);
  workgroupBarrier();
  return best;
}

// The index as it is read back: -1 where a logit is NaN or the greatest is infinite.
fn id_of(best: vec2u, place: u32) -> f32 {
  let finite = best.x < 0xff800000u && best.x > 0x007fffffu;
  return select(-1.0, f32(place), finite);
}
