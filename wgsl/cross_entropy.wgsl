// cross_entropy: loss (rows) = log Σ e^logits − logits[target] per row.
//   logits   (rows, classes)
//   targets  (rows)
//   loss     (rows)
// A workgroup computes one loss.

struct Params {
  groups: u32,
  classes: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;

var<workgroup> partial: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) id: vec3u,
  @builtin(num_workgroups) count: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let row = id.y * count.x + id.x;
  if (row >= p.groups) {
    return;
  }
  var largest = logits[row * p.classes];
  for (var i = t; i < p.classes; i += 64u) {
    largest = max(largest, logits[row * p.classes + i]);
  }
  partial[t] = largest;
  workgroupBarrier();
  for (var step = 32u; step > 0u; step >>= 1u) {
    if (t < step) {
      partial[t] = max(partial[t], partial[t + step]);
    }
    workgroupBarrier();
  }
  largest = partial[0];
  workgroupBarrier();
  var sum = 0.0;
  for (var i = t; i < p.classes; i += 64u) {
    // Below −100 the exponential is 0 in f32; the bound keeps its argument in every driver's range. max() may take the
    // number beside a NaN.
    let x = logits[row * p.classes + i] - largest;
    sum += exp(select(x, -100.0, x < -100.0));
  }
  partial[t] = sum;
  workgroupBarrier();
  for (var step = 32u; step > 0u; step >>= 1u) {
    if (t < step) {
      partial[t] += partial[t + step];
    }
    workgroupBarrier();
  }
  if (t == 0u) {
    loss[row] = largest - logits[row * p.classes + targets[row]] + log(partial[0]);
  }
}
