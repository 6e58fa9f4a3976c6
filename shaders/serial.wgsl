// A projection of the rows FIRST..END without any barrier: a thread computes two rows for TILE tokens. For
// adapters that are CPUs, where barriers are dear. Twin: Weight::matmul.
struct Sums {
    w: vec2f,
    up: vec2f,
    squares: f32,
}

@compute @workgroup_size(16)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let row = FIRST + 2u * id.x;
    if row >= END {
        return;
    }
    // Where the rows are odd in number, the last one is computed twice.
    let next = min(row + 1u, END - 1u);
    let tile = TILE * id.y;
    var sums: array<Sums, TILE>;
    for (var u = 0u; u < WIDTH / 8u; u++) {
        let w0 = w_unit(row, u);
        let w1 = w_unit(next, u);
        var up0: Unit;
        var up1: Unit;
        if HAS_up {
            up0 = up_unit(row, u);
            up1 = up_unit(next, u);
        }
        let column = unit_at(u);
        for (var i = 0u; i < TILE; i++) {
            let at = (first_token() + tile + i) * (WIDTH / 4u) + column;
            let y = Unit(input(at, column), input(at + 4u, column + 4u));
            sums[i].w += vec2f(unit_dot(w0, y), unit_dot(w1, y));
            if HAS_up {
                sums[i].up += vec2f(unit_dot(up0, y), unit_dot(up1, y));
            }
            sums[i].squares += energy(at) + energy(at + 4u);
        }
    }
    for (var i = 0u; i < TILE; i++) {
        if tile + i < token_count() {
            let s = sums[i];
            store(tile + i, row, finish(s.w, s.squares), finish(s.up, s.squares));
        }
    }
}
