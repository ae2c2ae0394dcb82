// rope: per row and head of halves (u, v): (u cos − v sin, v cos + u sin).
//   x    (rows, heads · 2 half)
//   cos  (rows, half)
//   sin  (rows, half)
//   y    (rows, heads · 2 half)
// An invocation turns one pair.

struct Params {
  groups: u32,
  pairs: u32,
  heads: u32,
  half: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> cosines: array<f32>;
@group(0) @binding(3) var<storage, read> sines: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

//@include elements

fn element(i: u32) {
  if (i >= p.pairs) {
    return;
  }
  let head = i / p.half;
  let angle = head / p.heads * p.half + i % p.half;
  let at = head * 2u * p.half + i % p.half;
  let u = x[at];
  let v = x[at + p.half];
  y[at] = u * cosines[angle] - v * sines[angle];
  y[at + p.half] = v * cosines[angle] + u * sines[angle];
}
