// Causal attention, a workgroup for each head of each token and each part of the positions before it. They pass in
// tiles of 256: every thread scores one, then GROUPS groups of LENGTH threads add up a share of the values each, with
// a running softmax (source: arXiv 1805.02867). What parts give is left to attention_merge.wgsl.
// Twin: attention::attention.
@group(0) @binding(1) var<storage, read> queries: array<vec4f>;
// IN_PARTS: as attention_merge.wgsl reads it. Otherwise [n, N_HEADS, LENGTH].
@group(0) @binding(3) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(4) var<storage, read> keys: array<Quad>;
@group(0) @binding(5) var<storage, read> values: array<Quad>;

const LENGTH: u32 = HEAD_DIM / 4u;
const GROUPS: u32 = 256u / LENGTH;
const LOWEST: f32 = -3.4e38;

var<workgroup> query: array<vec4f, LENGTH>;
var<workgroup> weights: array<f32, 256>;
var<workgroup> partial: array<vec4f, 256>;
var<workgroup> reduced: array<f32, 256>;

// The largest value of all threads'.
fn largest_of(value: f32, thread: u32) -> f32 {
    reduced[thread] = value;
    for (var width = 128u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if thread < width {
            reduced[thread] = max(reduced[thread], reduced[thread + width]);
        }
    }
    workgroupBarrier();
    let largest = reduced[0];
    workgroupBarrier();
    return largest;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let head = workgroup.x;
    let t = workgroup.y;
    let at = (t * N_HEADS + head) * LENGTH;
    let kv = head / (N_HEADS / N_KV_HEADS) * LENGTH;
    let count = step_position() + t + 1u;
    let parts = step_parts();
    let each = (count + parts - 1u) / parts;
    // Of a step's earlier tokens the last parts may be empty.
    let end = min(count, (workgroup.z + 1u) * each);
    if thread < LENGTH {
        query[thread] = queries[at + thread] * inverseSqrt(f32(HEAD_DIM));
    }
    workgroupBarrier();
    let column = thread % LENGTH;
    let group = thread / LENGTH;
    var largest = LOWEST;
    var total = 0.0;
    var sum = vec4f(0.0);
    for (var first = workgroup.z * each; first < end; first += 256u) {
        let p = first + thread;
        var score = LOWEST;
        if p < end {
            score = 0.0;
            for (var i = 0u; i < LENGTH; i++) {
                score += dot(query[i], values_of(keys[p * (KV_DIM / 4u) + kv + i]));
            }
        }
        let new_largest = max(largest, largest_of(score, thread));
        let keep = exp(largest - new_largest);
        largest = new_largest;
        weights[thread] = select(0.0, exp(score - largest), p < end);
        total = total * keep + weights[thread];
        sum *= keep;
        workgroupBarrier();
        if group < GROUPS {
            for (var i = group; i < min(256u, end - first); i += GROUPS) {
                sum += weights[i] * values_of(values[(first + i) * (KV_DIM / 4u) + kv + column]);
            }
        }
        workgroupBarrier();
    }
    partial[thread] = sum;
    reduced[thread] = total;
    for (var width = 128u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if thread < width {
            reduced[thread] += reduced[thread + width];
        }
    }
    workgroupBarrier();
    if thread < LENGTH {
        var all = vec4f(0.0);
        for (var i = 0u; i < GROUPS; i++) {
            all += partial[i * LENGTH + thread];
        }
        if IN_PARTS {
            let part_at = ((t * parts + workgroup.z) * N_HEADS + head) * (LENGTH + 1u);
            out[part_at + thread] = all;
            if thread == 0u {
                out[part_at + LENGTH] = vec4f(largest, reduced[0], 0.0, 0.0);
            }
        } else {
            out[at + thread] = all / reduced[0];
        }
    }
}
