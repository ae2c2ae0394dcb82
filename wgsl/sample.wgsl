// sample: ids (rows) = an index per row, drawn with probability e^(logit / temperature) / Σ among the candidates that
// top-k, then top-p, then min-p leave.
//   logits  (rows, classes)
//   random  (rows): a random word each
//   ids     (rows): -1 where a logit is NaN or the greatest is infinite
// A workgroup draws one index. Candidates are found without sorting: they are a prefix of the row in falling order, and
// its last key comes bit by bit, each from a sum over the row.

struct Params {
  groups: u32,
  classes: u32,
  top_k: u32,
  inverse_temperature: f32,
  top_p: f32,
  min_p: f32,
}

// The prefix: all above `key`, and the first `ties` at it.
struct Cut {
  key: u32,
  ties: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<u32>;
@group(0) @binding(2) var<storage, read> random: array<u32>;
@group(0) @binding(3) var<storage, read_write> ids: array<f32>;

//@include likeliest

const COUNTED = true;
const WEIGHED = false;

var<workgroup> sums: array<f32, 256>;
var<private> start: u32;
var<private> most: f32;

fn logit_of(key: u32) -> f32 {
  return bitcast<f32>(select(~key, key ^ 0x80000000u, key >= 0x80000000u));
}

// e^((logit - greatest) / temperature), 0 where it is below the normal numbers.
fn weight_of(key: u32) -> f32 {
  let power = (logit_of(key) - most) * p.inverse_temperature;
  return select(0.0, exp(max(power, -87.0)), power > -87.0);
}

fn sum(own: f32, t: u32) -> f32 {
  sums[t] = own;
  workgroupBarrier();
  for (var step = 128u; step > 0u; step >>= 1u) {
    if (t < step) {
      sums[t] += sums[t + step];
    }
    workgroupBarrier();
  }
  let total = sums[0];
  workgroupBarrier();
  return total;
}

// How many logits have at least this key, or what they weigh.
fn reach(least: u32, counted: bool, t: u32) -> f32 {
  var own = 0.0;
  for (var i = t; i < p.classes; i += 256u) {
    let key = key_at(start + i);
    if (key >= least) {
      own += select(weight_of(key), 1.0, counted);
    }
  }
  return sum(own, t);
}

// The shortest prefix of `cut` that reaches `need`.
fn shorten(cut: Cut, need: f32, counted: bool, t: u32) -> Cut {
  var key = 0u;
  for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
    let higher = key | bit;
    let enough = reach(higher, counted, t) >= need;
    key = select(key, higher, enough || higher <= cut.key);
  }
  let above = reach(key + 1u, counted, t);
  let each = select(weight_of(key), 1.0, counted);
  let wanted = ceil((need - above) / max(each, 1e-37));
  let limit = select(p.classes, cut.ties, key == cut.key);
  return Cut(key, min(u32(clamp(wanted, 1.0, 16777216.0)), limit));
}

fn mass_of(cut: Cut, t: u32) -> f32 {
  let above = reach(cut.key + 1u, WEIGHED, t);
  let equal = reach(cut.key, COUNTED, t) - reach(cut.key + 1u, COUNTED, t);
  return above + select(0.0, min(equal, f32(cut.ties)) * weight_of(cut.key), equal > 0.0);
}

// The weight of a candidate, 0 of what is none; `rank` counts the logits at the end of the cut.
fn candidate(cut: Cut, key: u32, rank: ptr<function, u32>) -> f32 {
  let weight = weight_of(key);
  if (key < cut.key || weight < p.min_p) {
    return 0.0;
  }
  if (key == cut.key) {
    *rank += 1u;
    return select(0.0, weight, *rank <= cut.ties);
  }
  return weight;
}

// Each invocation sums the candidates of one run of indices; the first one then looks for the run, and goes through it.
fn draw(cut: Cut, best: u32, word: u32, t: u32) -> u32 {
  let span = (p.classes + 255u) / 256u;
  let first = min(t * span, p.classes);
  let end = min(first + span, p.classes);
  var ties = 0u;
  for (var i = first; i < end; i++) {
    ties += u32(key_at(start + i) == cut.key);
  }
  keys[t] = ties;
  workgroupBarrier();
  var rank = 0u;
  for (var i = 0u; i < t; i++) {
    rank += keys[i];
  }
  var own = 0.0;
  for (var i = first; i < end; i++) {
    own += candidate(cut, key_at(start + i), &rank);
  }
  sums[t] = own;
  workgroupBarrier();
  if (t > 0u) {
    return 0u;
  }
  return find(cut, best, word, span);
}

fn find(cut: Cut, best: u32, word: u32, span: u32) -> u32 {
  var left = 0.0;
  for (var i = 0u; i < 256u; i++) {
    left += sums[i];
  }
  left *= f32(word >> 8u) / 16777216.0; // below 1 in f32 too
  var run = 0u;
  var rank = 0u;
  while (run < 255u && left >= sums[run]) {
    left -= sums[run];
    rank += keys[run];
    run++;
  }
  var drawn = best;
  let end = min((run + 1u) * span, p.classes);
  for (var i = run * span; i < end && left >= 0.0; i++) {
    let weight = candidate(cut, key_at(start + i), &rank);
    if (weight > 0.0) {
      drawn = i;
      left -= weight;
    }
  }
  return drawn;
}

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
  start = row * p.classes;
  let best = likeliest(start, p.classes, t);
  most = logit_of(best.x);
  var cut = Cut(0u, p.classes);
  if (p.top_k < p.classes) {
    cut = shorten(cut, f32(p.top_k), COUNTED, t);
  }
  if (p.top_p < 1.0) {
    cut = shorten(cut, p.top_p * mass_of(cut, t), WEIGHED, t);
  }
  let drawn = draw(cut, best.y, random[row], t);
  if (t == 0u) {
    ids[row] = id_of(best, drawn);
  }
}
