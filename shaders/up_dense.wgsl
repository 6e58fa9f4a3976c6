// What multiplies the gate: a projection of the same input.
fn factor(t: u32, row: u32, up: vec2f) -> vec2f {
    return up;
}
