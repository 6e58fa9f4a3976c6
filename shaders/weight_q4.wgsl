// `$w` stored as q4, see src/bundle/quant.rs.
@group(0) @binding($quants) var<storage, read> $w_quants: array<u32>;
@group(0) @binding($scales) var<storage, read> $w_scales: array<u32>;

fn $w_unit(row: u32, unit: u32) -> Unit {
    let word = $w_quants[(row - $w_FIRST) * (WIDTH / 8u) + unit];
    let dm = halves($w_scales[(row - $w_FIRST) * (WIDTH / 32u) + unit / 4u]);
    let low = vec4f((vec4u(word) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(15u));
    let high = vec4f((vec4u(word) >> vec4u(4u, 12u, 20u, 28u)) & vec4u(15u));
    return Unit(dm.x * low + dm.y, dm.x * high + dm.y);
}
