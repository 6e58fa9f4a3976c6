// A projection's input, as it is.
@group(0) @binding(1) var<storage, read> x: array<vec4f>;

fn input(at: u32, column: u32) -> vec4f {
    return x[at];
}

fn energy(at: u32) -> f32 {
    return 0.0;
}

fn finish(dots: vec2f, squares: f32) -> vec2f {
    return dots;
}
