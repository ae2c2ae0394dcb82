// append: cache (batch, capacity, dim) at positions past … past + length = x (batch · length, dim), bit for bit.
//   x      (batch · length, dim)
//   cache  (batch, capacity, dim)
// An invocation copies one element.

struct Params {
  groups: u32,
  size: u32,
  length: u32,
  capacity: u32,
  dim: u32,
  past: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> cache: array<u32>;

//@include elements

fn element(i: u32) {
  if (i >= p.size) {
    return;
  }
  let row = i / p.dim;
  let position = row / p.length * p.capacity + p.past + row % p.length;
  cache[position * p.dim + i % p.dim] = x[i];
}
