// The end of attention whose positions are in parts, each with a softmax of its own: a thread for each four columns of
// each head of each token makes one of them (source: Flash-Decoding, Dao et al. 2023). Twin: attention::merge.
// Of each part the sum of weighted values, [LENGTH], then the largest score and the sum of the weights:
// [n, parts, N_HEADS, LENGTH + 1]
@group(0) @binding(1) var<storage, read> sums: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4f>;

const LENGTH: u32 = HEAD_DIM / 4u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    if id.x >= N_HEADS * LENGTH {
        return;
    }
    let t = id.y;
    let head = id.x / LENGTH;
    let column = id.x % LENGTH;
    let first = (t * step_parts() * N_HEADS + head) * (LENGTH + 1u);
    let last = first + (step_parts() - 1u) * N_HEADS * (LENGTH + 1u);
    var largest = sums[first + LENGTH].x;
    for (var at = first; at <= last; at += N_HEADS * (LENGTH + 1u)) {
        largest = max(largest, sums[at + LENGTH].x);
    }
    var total = 0.0;
    var sum = vec4f(0.0);
    for (var at = first; at <= last; at += N_HEADS * (LENGTH + 1u)) {
        let keep = exp(sums[at + LENGTH].x - largest);
        total += keep * sums[at + LENGTH].y;
        sum += keep * sums[at + column];
    }
    out[t * N_HEADS * LENGTH + id.x] = sum / total;
}
