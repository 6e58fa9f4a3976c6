// A projection of the rows FIRST..END of one token: LANES threads share two rows, and a workgroup has 64.
// Twin: Weight::matmul.
struct Sums {
    w: vec2f,
    up: vec2f,
    squares: f32,
}

var<workgroup> sums: array<Sums, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let lane = thread % LANES;
    let row = FIRST + 2u * (group.x * (64u / LANES) + thread / LANES);
    // Threads past the end repeat the last row, since all must reach the barriers.
    let row0 = min(row, END - 1u);
    let row1 = min(row + 1u, END - 1u);
    var s: Sums;
    for (var u = lane; u < WIDTH / 8u; u += LANES) {
        let column = unit_at(u);
        let at = first_token() * (WIDTH / 4u) + column;
        let y = Unit(input(at, column), input(at + 4u, column + 4u));
        s.w += vec2f(unit_dot(w_unit(row0, u), y), unit_dot(w_unit(row1, u), y));
        if HAS_up {
            s.up += vec2f(unit_dot(up_unit(row0, u), y), unit_dot(up_unit(row1, u), y));
        }
        s.squares += energy(at) + energy(at + 4u);
    }
    sums[thread] = s;
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            let other = sums[thread + width];
            s.w += other.w;
            s.up += other.up;
            s.squares += other.squares;
            sums[thread] = s;
        }
    }
    if lane == 0u && row < END {
        store(0u, row, finish(s.w, s.squares), finish(s.up, s.squares));
    }
}
