// The end of two projections of one input: the products as they are, [n, HIDDEN] each.
@group(0) @binding(3) var<storage, read_write> first: array<vec2f>;
@group(0) @binding(4) var<storage, read_write> second: array<vec2f>;

fn store(t: u32, row: u32, value: vec2f, up: vec2f) {
    let at = (t * HIDDEN + row) / 2u;
    first[at] = value;
    second[at] = up;
}
