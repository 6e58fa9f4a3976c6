// A projection's end: h = SiLU(gate) ⊙ up [n, FFN]. Twin: kernels::silu.
@group(0) @binding(3) var<storage, read_write> h: array<vec2f>;

// The exponent is kept where exp does not overflow; the quotient is zero there anyway.
fn silu(x: vec2f) -> vec2f {
    return x / (1.0 + exp(min(-x, vec2f(80.0))));
}

fn store(t: u32, row: u32, value: vec2f, up: vec2f) {
    h[(t * FFN + row) / 2u] = silu(value) * factor(t, row, up);
}
