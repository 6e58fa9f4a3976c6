// A projection of one weight.
fn up_unit(row: u32, unit: u32) -> Unit {
    return Unit();
}

fn up_quant(row: u32, unit: u32) -> Unit {
    return Unit();
}

fn up_scale(row: u32, block: u32) -> vec2f {
    return vec2f();
}
