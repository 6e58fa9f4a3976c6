// A projection of one weight.
fn up_unit(row: u32, unit: u32) -> Unit {
    return Unit();
}

alias up_Raw = u32;

fn up_raw(row: u32, unit: u32) -> up_Raw {
    return 0u;
}

fn up_quants_of(raw: up_Raw) -> Unit {
    return Unit();
}

fn up_scale(row: u32, block: u32) -> vec2f {
    return vec2f();
}
