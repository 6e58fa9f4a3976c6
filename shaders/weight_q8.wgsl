// `$w` stored as q8, see src/bundle/quant.rs.
@group(0) @binding($quants) var<storage, read> $w_quants: array<u32>;
@group(0) @binding($scales) var<storage, read> $w_scales: array<u32>;

fn $w_bytes(word: u32) -> vec4f {
    return vec4f(bitcast<vec4i>(vec4u(word) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u));
}

fn $w_unit(row: u32, unit: u32) -> Unit {
    let at = (row - $w_FIRST) * (WIDTH / 4u) + unit_at(unit);
    let block = (row - $w_FIRST) * (WIDTH / 32u) + unit / 4u;
    let pair = halves($w_scales[block / 2u]);
    let d = select(pair.x, pair.y, block % 2u == 1u);
    return Unit(d * $w_bytes($w_quants[at]), d * $w_bytes($w_quants[at + 4u]));
}
