// A projection's input, RMS-normalised: the gain goes with each value, and since the norm's scale is one factor
// for the whole row, it is put on the finished product. Twin: kernels::rms_norm.
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read> gain: array<vec4f>;

fn input(at: u32, column: u32) -> vec4f {
    return x[at] * gain[column];
}

fn energy(at: u32) -> f32 {
    return dot(x[at], x[at]);
}

fn finish(dots: vec2f, squares: f32) -> vec2f {
    return dots * inverseSqrt(squares / f32(WIDTH) + EPS);
}
