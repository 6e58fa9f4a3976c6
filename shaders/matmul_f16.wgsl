// A projection of the rows FIRST..END of many tokens, where the adapter has f16 (needs `enable f16`): as matmul.wgsl, but
// with tiles and products in f16, two of which a GPU computes at once. Whatever the values' size, none overflows: of each
// block of 32 columns the inputs are divided by their largest, the weights are the quants themselves, and the scales
// of both go with the block's sums, which are added up in f32. While a block is computed the next one is on its way.
// Twin: Weight::matmul.

// vec4h a row of a tile: eight, and one more so that rows begin in different memory banks.
const PITCH: u32 = 9u;

var<workgroup> inputs: array<vec4h, 288>;
var<workgroup> w_tile: array<vec4h, 288>;
var<workgroup> up_tile: array<vec4h, 288>;
// Of each row: scale and offset of its block.
var<workgroup> w_factors: array<vec2f, 32>;
var<workgroup> up_factors: array<vec2f, 32>;
// Of each thread: the largest value that it loaded and the sum of all; in the end, the sum of squares.
var<workgroup> shares: array<vec2f, 64>;
// Of each token: the block's largest value, and the sum of all.
var<workgroup> peaks: array<vec2f, 32>;

// Where a row lies in its tile: the even ones first, since threads beside each other read every second row at once.
fn slot(row: u32) -> u32 {
    return row / 2u + row % 2u * 16u;
}

// The sums of two rows, each of four partial ones.
fn sums_of(a: vec4h, b: vec4h) -> vec2f {
    let pairs = vec4f(vec4h(a.xy + a.zw, b.xy + b.zw));
    return vec2f(pairs.x + pairs.y, pairs.z + pairs.w);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let first_row = FIRST + 32u * group.x;
    let first = 32u * group.y;
    // A thread computes the pairs of rows `pair` and `pair + 8` for four tokens.
    let pair = thread % 8u;
    let tokens = 4u * (thread / 8u);
    // Loading, it serves every second column vector of one token, one unit of two rows, and the factors of one.
    let token = thread / 2u;
    let side = thread % 2u;
    let unit = thread % 4u;
    let start = (first_token() + first + token) * (WIDTH / 4u) + side;
    let own_row = min(first_row + thread % 32u, END - 1u);
    //$ for i in 0..2
    let row_$i = min(first_row + thread / 4u + 16u * $i, END - 1u);
    let place_$i = slot(thread / 4u + 16u * $i) * PITCH + unit;
    //$ end
    var squares = 0.0;
    //$ for t in 0..4
    //$ for p in 0..2
    var w_$t_$p = vec2f();
    var up_$t_$p = vec2f();
    //$ end
    //$ end
    //$ for v in 0..4
    var y_$v = input(start + 2u * $v, side + 2u * $v);
    squares += energy(start + 2u * $v);
    //$ end
    //$ for i in 0..2
    var w_raw_$i = w_raw(row_$i, unit);
    var up_raw_$i: up_Raw;
    if HAS_up {
        up_raw_$i = up_raw(row_$i, unit);
    }
    //$ end
    var w_factor = w_scale(own_row, 0u);
    var up_factor = vec2f();
    if HAS_up {
        up_factor = up_scale(own_row, 0u);
    }
    for (var block = 0u; block < WIDTH / 32u; block++) {
        var peak = vec4f();
        var sum = vec4f();
        //$ for v in 0..4
        peak = max(peak, abs(y_$v));
        sum += y_$v;
        //$ end
        shares[thread] = vec2f(max(max(peak.x, peak.y), max(peak.z, peak.w)), dot(sum, vec4f(1.0)));
        // Also the end of all reading from the tiles.
        workgroupBarrier();
        let other = shares[thread ^ 1u];
        let all = vec2f(max(shares[thread].x, other.x), shares[thread].y + other.y);
        let inverse = 1.0 / max(all.x, 1e-30);
        //$ for v in 0..4
        inputs[token * PITCH + side + 2u * $v] = vec4h(y_$v * inverse);
        //$ end
        if side == 0u {
            peaks[token] = all;
        }
        //$ for i in 0..2
        let w_quants_$i = w_quants_of(w_raw_$i);
        w_tile[place_$i] = vec4h(w_quants_$i.a);
        w_tile[place_$i + 4u] = vec4h(w_quants_$i.b);
        if HAS_up {
            let up_quants = up_quants_of(up_raw_$i);
            up_tile[place_$i] = vec4h(up_quants.a);
            up_tile[place_$i + 4u] = vec4h(up_quants.b);
        }
        //$ end
        if thread < 32u {
            w_factors[slot(thread)] = w_factor;
            if HAS_up {
                up_factors[slot(thread)] = up_factor;
            }
        }
        workgroupBarrier();
        let next = block + 1u;
        if next < WIDTH / 32u {
            //$ for v in 0..4
            y_$v = input(start + next * 8u + 2u * $v, side + next * 8u + 2u * $v);
            squares += energy(start + next * 8u + 2u * $v);
            //$ end
            //$ for i in 0..2
            w_raw_$i = w_raw(row_$i, next * 4u + unit);
            if HAS_up {
                up_raw_$i = up_raw(row_$i, next * 4u + unit);
            }
            //$ end
            w_factor = w_scale(own_row, next);
            if HAS_up {
                up_factor = up_scale(own_row, next);
            }
        }
        //$ for m in w,up
        if HAS_$m {
            //$ for t in 0..4
            //$ for p in 0..2
            var a_$t_$p = vec4h();
            var b_$t_$p = vec4h();
            //$ end
            //$ end
            //$ for k in 0..8
            //$ for p in 0..2
            let c_$k_$p = $m_tile[(pair + 8u * $p) * PITCH + $k];
            let d_$k_$p = $m_tile[(pair + 8u * $p + 16u) * PITCH + $k];
            //$ end
            //$ for t in 0..4
            let x_$k_$t = inputs[(tokens + $t) * PITCH + $k];
            //$ for p in 0..2
            a_$t_$p += c_$k_$p * x_$k_$t;
            b_$t_$p += d_$k_$p * x_$k_$t;
            //$ end
            //$ end
            //$ end
            //$ for t in 0..4
            let of_token_$t = peaks[tokens + $t];
            //$ end
            //$ for p in 0..2
            let e_$p = $m_factors[pair + 8u * $p];
            let f_$p = $m_factors[pair + 8u * $p + 16u];
            //$ for t in 0..4
            $m_$t_$p += sums_of(a_$t_$p, b_$t_$p) * of_token_$t.x * vec2f(e_$p.x, f_$p.x)
                + of_token_$t.y * vec2f(e_$p.y, f_$p.y);
            //$ end
            //$ end
        }
        //$ end
    }
    workgroupBarrier();
    shares[thread] = vec2f(squares, 0.0);
    workgroupBarrier();
    //$ for t in 0..4
    let sum_$t = shares[2u * (tokens + $t)].x + shares[2u * (tokens + $t) + 1u].x;
    //$ for p in 0..2
    let row_$t_$p = first_row + 2u * (pair + 8u * $p);
    if first + tokens + $t < token_count() && row_$t_$p < END {
        store(first + tokens + $t, row_$t_$p, finish(w_$t_$p, sum_$t), finish(up_$t_$p, sum_$t));
    }
    //$ end
    //$ end
}
