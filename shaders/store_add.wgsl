// A projection's end: the products are added to the residual stream [n, HIDDEN].
@group(0) @binding(3) var<storage, read_write> residual: array<vec2f>;

fn store(t: u32, row: u32, value: vec2f, up: vec2f) {
    let at = (t * HIDDEN + row) / 2u;
    residual[at] = residual[at] + value;
}
