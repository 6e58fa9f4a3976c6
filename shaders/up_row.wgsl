// What multiplies the gate: the token's STEM row, of the layer that is the `stem_index.x`-th STEM layer.
@group(0) @binding(4) var<uniform> stem_index: vec4u;

fn factor(t: u32, row: u32, up: vec2f) -> vec2f {
    let at = rows_at(t) + stem_index.x * FFN + row;
    return vec2f(bitcast<f32>(upload[at]), bitcast<f32>(upload[at + 1u]));
}
