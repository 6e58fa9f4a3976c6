// `$w` stored as q4, see src/bundle/quant.rs.
@group(0) @binding($quants) var<storage, read> $w_quants: array<u32>;
@group(0) @binding($scales) var<storage, read> $w_scales: array<u32>;

// Eight quants as they are stored.
alias $w_Raw = u32;

fn $w_raw(row: u32, unit: u32) -> $w_Raw {
    return $w_quants[(row - $w_FIRST) * (WIDTH / 8u) + unit];
}

fn $w_scale_word(row: u32, block: u32) -> u32 {
    return $w_scales[(row - $w_FIRST) * (WIDTH / 32u) + block];
}

fn $w_unit(row: u32, unit: u32) -> Unit {
    let dm = halves($w_scale_word(row, unit / 4u));
    let q = nibbles($w_raw(row, unit));
    return Unit(dm.x * q.a + dm.y, dm.x * q.b + dm.y);
}

// A weight is its quant times the scale's x, and the scale's y.
fn $w_quants_of(raw: $w_Raw) -> Unit {
    return centred(raw);
}

fn $w_scale(row: u32, block: u32) -> vec2f {
    return centred_scale($w_scale_word(row, block));
}
