// A projection's end: the products are the logits [count, VOCAB].
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;

fn store(t: u32, row: u32, value: vec2f, up: vec2f) {
    logits[t * VOCAB + row] = value.x;
    if row + 1u < END {
        logits[t * VOCAB + row + 1u] = value.y;
    }
}
