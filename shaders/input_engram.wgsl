// A projection's input: the head rows of the Engram layer that is the `engram_index.x`-th of them.
@group(0) @binding(5) var<uniform> engram_index: vec4u;

fn input(at: u32, column: u32) -> vec4f {
    let t = at / (WIDTH / 4u);
    // Tiles reach past the last token.
    if t >= step_tokens() {
        return vec4f(0.0);
    }
    let start = rows_at(t) + STEM_WIDTH + engram_index.x * WIDTH + 4u * column;
    return bitcast<vec4f>(vec4u(upload[start], upload[start + 1u], upload[start + 2u], upload[start + 3u]));
}

fn energy(at: u32) -> f32 {
    return 0.0;
}

fn finish(dots: vec2f, squares: f32) -> vec2f {
    return dots;
}
