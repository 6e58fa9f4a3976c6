// Causal attention, a workgroup for each head of each token and each part of the positions before it. They pass in
// tiles of 256: every thread scores one, then GROUPS groups of LENGTH threads add up a share of the values each, with
// a running softmax (source: arXiv 1805.02867). What parts give is left to attention_merge.wgsl.
// Twin: attention::attention.
@group(0) @binding(1) var<storage, read> queries: array<vec4f>;
// IN_PARTS: as attention_merge.wgsl reads it. Otherwise [n, N_HEADS, LENGTH].
@group(0) @binding(3) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(4) var<storage, read> keys: array<Quad>;
@group(0) @binding(5) var<storage, read> values: array<Quad>;

const LOWEST: f32 = -3.4e38;

var<workgroup> query: array<vec4f, LENGTH>;
var<workgroup> weights: array<f32, 256>;
var<workgroup> partial: array<vec4f, 256>;
var<workgroup> reduced: array<f32, 256>;
var<workgroup> sixteen: array<f32, 16>;

// The largest value of all threads', in two rounds: sixteen threads take sixteen values each.
fn largest_of(value: f32, thread: u32) -> f32 {
    reduced[thread] = value;
    workgroupBarrier();
    if thread < 16u {
        var largest = LOWEST;
        //$ for i in 0..16
        largest = max(largest, reduced[thread + 16u * $i]);
        //$ end
        sixteen[thread] = largest;
    }
    workgroupBarrier();
    var largest = LOWEST;
    //$ for i in 0..16
    largest = max(largest, sixteen[$i]);
    //$ end
    return largest;
}

// The sum of all threads' values, likewise.
fn sum_of(value: f32, thread: u32) -> f32 {
    reduced[thread] = value;
    workgroupBarrier();
    if thread < 16u {
        var sum = 0.0;
        //$ for i in 0..16
        sum += reduced[thread + 16u * $i];
        //$ end
        sixteen[thread] = sum;
    }
    workgroupBarrier();
    var sum = 0.0;
    //$ for i in 0..16
    sum += sixteen[$i];
    //$ end
    return sum;
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
            //$ for i in 0..LENGTH
            let key_$i = keys[p * (KV_DIM / 4u) + kv + $i];
            //$ end
            //$ for i in 0..LENGTH
            score += dot(query[$i], values_of(key_$i));
            //$ end
        }
        let new_largest = max(largest, largest_of(score, thread));
        let keep = exp(largest - new_largest);
        largest = new_largest;
        weights[thread] = select(0.0, exp(score - largest), p < end);
        total = total * keep + weights[thread];
        sum *= keep;
        workgroupBarrier();
        if group < GROUPS {
            let here = min(256u, end - first);
            for (var i = group; i < here; i += 8u * GROUPS) {
                // Past the end the last one comes again, with no weight.
                //$ for s in 0..8
                let i_$s = i + $s * GROUPS;
                let value_$s = values[(first + min(i_$s, here - 1u)) * (KV_DIM / 4u) + kv + column];
                //$ end
                //$ for s in 0..8
                sum += select(0.0, weights[min(i_$s, 255u)], i_$s < here) * values_of(value_$s);
                //$ end
            }
        }
        workgroupBarrier();
    }
    partial[thread] = sum;
    total = sum_of(total, thread);
    if thread < LENGTH {
        var all = vec4f(0.0);
        //$ for i in 0..GROUPS
        all += partial[$i * LENGTH + thread];
        //$ end
        if IN_PARTS {
            let part_at = ((t * parts + workgroup.z) * N_HEADS + head) * (LENGTH + 1u);
            out[part_at + thread] = all;
            if thread == 0u {
                out[part_at + LENGTH] = vec4f(largest, total, 0.0, 0.0);
            }
        } else {
            out[at + thread] = all / total;
        }
    }
}
