// `$w` stored as q4, see src/bundle/quant.rs.
@group(0) @binding($quants) var<storage, read> $w_quants: array<u32>;
@group(0) @binding($scales) var<storage, read> $w_scales: array<u32>;

fn $w_pair(row: u32, block: u32) -> vec2f {
    return halves($w_scales[(row - $w_FIRST) * (WIDTH / 32u) + block]);
}

fn $w_nibbles(row: u32, unit: u32) -> Unit {
    let word = $w_quants[(row - $w_FIRST) * (WIDTH / 8u) + unit];
    let low = vec4f((vec4u(word) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(15u));
    let high = vec4f((vec4u(word) >> vec4u(4u, 12u, 20u, 28u)) & vec4u(15u));
    return Unit(low, high);
}

fn $w_unit(row: u32, unit: u32) -> Unit {
    let dm = $w_pair(row, unit / 4u);
    let q = $w_nibbles(row, unit);
    return Unit(dm.x * q.a + dm.y, dm.x * q.b + dm.y);
}

// A weight is its quant times the scale's x, and the scale's y: around zero quants make smaller sums.
fn $w_quant(row: u32, unit: u32) -> Unit {
    let q = $w_nibbles(row, unit);
    return Unit(q.a - 8.0, q.b - 8.0);
}

fn $w_scale(row: u32, block: u32) -> vec2f {
    let dm = $w_pair(row, block);
    return vec2f(dm.x, dm.y + 8.0 * dm.x);
}
