// A projection's end: of q, k and v, the pairs of q and k are rotated, and k and v go into the cache, as kv_*.wgsl says.
// Twin: kernels::rope.
@group(0) @binding(3) var<storage, read_write> queries: array<vec2f>;
@group(0) @binding(4) var<storage, read_write> keys: array<Pair>;
@group(0) @binding(5) var<storage, read_write> values: array<Pair>;

fn turned(t: u32, row: u32, value: vec2f) -> vec2f {
    let at = TURNS_AT + t * HEAD_DIM + row % HEAD_DIM;
    let turn = vec2f(bitcast<f32>(upload[at]), bitcast<f32>(upload[at + 1u]));
    return vec2f(value.x * turn.x - value.y * turn.y, value.x * turn.y + value.y * turn.x);
}

fn store(t: u32, row: u32, value: vec2f, up: vec2f) {
    let cached = (step_position() + t) * KV_DIM;
    if row < Q_DIM {
        queries[(t * Q_DIM + row) / 2u] = turned(t, row, value);
    } else if row < Q_DIM + KV_DIM {
        keys[(cached + row - Q_DIM) / 2u] = pair_of(turned(t, row, value));
    } else {
        values[(cached + row - Q_DIM - KV_DIM) / 2u] = pair_of(value);
    }
}
