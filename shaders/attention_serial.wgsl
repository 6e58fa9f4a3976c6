// Causal attention, a thread for each head of each token; the running softmax (source: arXiv 1805.02867) needs no
// scratch. Twin: attention::attention.
@group(0) @binding(1) var<storage, read> queries: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4f>;
@group(0) @binding(4) var<storage, read> keys: array<Quad>;
@group(0) @binding(5) var<storage, read> values: array<Quad>;

@compute @workgroup_size(16)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let head = id.x;
    let t = id.y;
    if head >= N_HEADS {
        return;
    }
    let query = (t * N_HEADS + head) * LENGTH;
    let kv = head / (N_HEADS / N_KV_HEADS) * LENGTH;
    var sums: array<vec4f, LENGTH>;
    var largest = -3.4e38;
    var total = 0.0;
    for (var p = 0u; p <= step_position() + t; p++) {
        let at = p * (KV_DIM / 4u) + kv;
        var score = 0.0;
        for (var i = 0u; i < LENGTH; i++) {
            score += dot(queries[query + i], values_of(keys[at + i]));
        }
        score *= inverseSqrt(f32(HEAD_DIM));
        let new_largest = max(largest, score);
        let keep = exp(largest - new_largest);
        let weight = exp(score - new_largest);
        largest = new_largest;
        total = total * keep + weight;
        for (var i = 0u; i < LENGTH; i++) {
            sums[i] = sums[i] * keep + weight * values_of(values[at + i]);
        }
    }
    for (var i = 0u; i < LENGTH; i++) {
        out[query + i] = sums[i] / total;
    }
}
