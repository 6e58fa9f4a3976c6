// `$w` stored as q8, see src/bundle/quant.rs.
@group(0) @binding($quants) var<storage, read> $w_quants: array<u32>;
@group(0) @binding($scales) var<storage, read> $w_scales: array<u32>;

fn $w_bytes(word: u32) -> vec4f {
    return vec4f(bitcast<vec4i>(vec4u(word) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u));
}

// A weight is its quant times the scale's x, and the scale's y.
fn $w_scale(row: u32, block: u32) -> vec2f {
    let at = (row - $w_FIRST) * (WIDTH / 32u) + block;
    let pair = halves($w_scales[at / 2u]);
    return vec2f(select(pair.x, pair.y, at % 2u == 1u), 0.0);
}

// Eight quants as they are stored.
alias $w_Raw = vec2u;

fn $w_raw(row: u32, unit: u32) -> $w_Raw {
    let at = (row - $w_FIRST) * (WIDTH / 4u) + unit_at(unit);
    return vec2u($w_quants[at], $w_quants[at + 4u]);
}

fn $w_quants_of(raw: $w_Raw) -> Unit {
    return Unit($w_bytes(raw.x), $w_bytes(raw.y));
}

fn $w_unit(row: u32, unit: u32) -> Unit {
    let d = $w_scale(row, unit / 4u).x;
    let q = $w_quants_of($w_raw(row, unit));
    return Unit(d * q.a, d * q.b);
}
