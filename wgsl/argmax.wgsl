// argmax: ids (rows) = the index of the greatest of each row of logits, the first among equals.
//   logits  (rows, classes)
//   ids     (rows): -1 where a logit is NaN or the greatest is infinite
// A workgroup searches one row.

struct Params {
  groups: u32,
  classes: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<u32>;
@group(0) @binding(2) var<storage, read_write> ids: array<f32>;

//@include likeliest

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) id: vec3u,
  @builtin(num_workgroups) count: vec3u,
  @builtin(local_invocation_index) t: u32,
) {
  let row = id.y * count.x + id.x;
  if (row >= p.groups) {
    return;
  }
  let best = likeliest(row * p.classes, p.classes, t);
  if (t == 0u) {
    ids[row] = id_of(best, best.y);
  }
}
