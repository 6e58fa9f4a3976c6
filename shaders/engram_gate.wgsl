// The gate of an Engram layer, THREADS threads for each token: the values are multiplied by it in place, and go into the
// cache normalised. One pass adds up the squares of x, key and value, and the product of x and key with their gains;
// the square of a gated value is that of the value times the gate's. Twin: engram::engram_gate.
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read> query_gain: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> values: array<vec4f>;
@group(0) @binding(4) var<storage, read> keys: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> cache: array<vec4f>;
@group(0) @binding(6) var<storage, read> key_gain: array<vec4f>;
@group(0) @binding(7) var<storage, read> conv_gain: array<vec4f>;

const LENGTH: u32 = HIDDEN / 4u;

var<workgroup> sums: array<vec4f, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let first = group.y * LENGTH;
    var sum = vec4f(0.0);
    for (var i = thread; i < LENGTH; i += THREADS) {
        let q = x[first + i];
        let k = keys[first + i];
        let v = values[first + i];
        sum += vec4f(dot(q, q), dot(k, k), dot(v, v), dot(q * query_gain[i], k * key_gain[i]));
    }
    sums[thread] = sum;
    for (var width = THREADS / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if thread < width {
            sum += sums[thread + width];
            sums[thread] = sum;
        }
    }
    workgroupBarrier();
    let all = sums[0];
    let squares = all.xyz / f32(HIDDEN);
    let score = all.w * inverseSqrt(squares.x + EPS) * inverseSqrt(squares.y + EPS) * inverseSqrt(f32(HIDDEN));
    let gate = 1.0 / (1.0 + exp(-sign(score) * sqrt(max(abs(score), 1e-6))));
    let scale = gate * inverseSqrt(gate * gate * squares.z + EPS);
    let cached = (step_position() + group.y) * LENGTH;
    for (var i = thread; i < LENGTH; i += THREADS) {
        let v = values[first + i];
        values[first + i] = gate * v;
        cache[cached + i] = v * scale * conv_gain[i];
    }
}
