// `$w` stored as f32, see src/bundle/quant.rs.
@group(0) @binding($quants) var<storage, read> $w_quants: array<vec4f>;

fn $w_unit(row: u32, unit: u32) -> Unit {
    let at = (row - $w_FIRST) * (WIDTH / 4u) + unit_at(unit);
    return Unit($w_quants[at], $w_quants[at + 4u]);
}
