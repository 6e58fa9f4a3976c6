// A projection of the rows FIRST..END of many tokens, where the adapter has f16 (needs `enable f16`): as matmul.wgsl, but
// with tiles and products in f16, two of which a GPU computes at once. Whatever the values' size, none overflows: of each
// block of 32 columns the inputs are divided by their largest, the weights are the quants themselves, and the scales
// of both go with the block's sums, which are added up in f32. Twin: Weight::matmul.

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

// The sums of four rows: products of quants and inputs, four partial sums a row.
fn sums_of(lanes: array<vec4h, 4>) -> vec4f {
    let a = vec4f(vec4h(lanes[0].xy + lanes[0].zw, lanes[1].xy + lanes[1].zw));
    let b = vec4f(vec4h(lanes[2].xy + lanes[2].zw, lanes[3].xy + lanes[3].zw));
    return vec4f(a.x + a.y, a.z + a.w, b.x + b.y, b.z + b.w);
}

fn scaled(sums: vec4f, peak: vec2f, s0: vec2f, s1: vec2f, s2: vec2f, s3: vec2f) -> vec4f {
    return sums * peak.x * vec4f(s0.x, s1.x, s2.x, s3.x) + peak.y * vec4f(s0.y, s1.y, s2.y, s3.y);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let first_row = FIRST + 32u * group.x;
    let first = 32u * group.y;
    let rows = 4u * (thread % 8u);
    let tokens = 4u * (thread / 8u);
    // Loading, a thread serves every second column vector of one token.
    let token = thread / 2u;
    let side = thread % 2u;
    var squares = 0.0;
    // [token][row]
    var w: array<vec4f, 4>;
    var up: array<vec4f, 4>;
    for (var block = 0u; block < WIDTH / 32u; block++) {
        var y: array<vec4f, 4>;
        var peak = vec4f(0.0);
        var sum = vec4f(0.0);
        for (var i = 0u; i < 4u; i++) {
            let column = block * 8u + 2u * i + side;
            let at = (first_token() + first + token) * (WIDTH / 4u) + column;
            y[i] = input(at, column);
            peak = max(peak, abs(y[i]));
            sum += y[i];
            squares += energy(at);
        }
        shares[thread] = vec2f(max(max(peak.x, peak.y), max(peak.z, peak.w)), dot(sum, vec4f(1.0)));
        for (var i = 0u; i < 2u; i++) {
            let local = thread / 4u + 16u * i;
            let row = min(first_row + local, END - 1u);
            let unit = block * 4u + thread % 4u;
            let quants = w_quant(row, unit);
            w_tile[local * PITCH + thread % 4u] = vec4h(quants.a);
            w_tile[local * PITCH + thread % 4u + 4u] = vec4h(quants.b);
            if HAS_UP {
                let others = up_quant(row, unit);
                up_tile[local * PITCH + thread % 4u] = vec4h(others.a);
                up_tile[local * PITCH + thread % 4u + 4u] = vec4h(others.b);
            }
        }
        if thread < 32u {
            let row = min(first_row + thread, END - 1u);
            w_factors[thread] = w_scale(row, block);
            if HAS_UP {
                up_factors[thread] = up_scale(row, block);
            }
        }
        workgroupBarrier();
        let all = vec2f(max(shares[thread].x, shares[thread ^ 1u].x), shares[thread].y + shares[thread ^ 1u].y);
        let inverse = 1.0 / max(all.x, 1e-30);
        for (var i = 0u; i < 4u; i++) {
            inputs[token * PITCH + 2u * i + side] = vec4h(y[i] * inverse);
        }
        if side == 0u {
            peaks[token] = all;
        }
        workgroupBarrier();
        // Said, since a browser was found to zero it once only.
        var lanes = array<array<vec4h, 4>, 4>();
        for (var k = 0u; k < 8u; k++) {
            let at = rows * PITCH + k;
            let w0 = w_tile[at];
            let w1 = w_tile[at + PITCH];
            let w2 = w_tile[at + 2u * PITCH];
            let w3 = w_tile[at + 3u * PITCH];
            for (var i = 0u; i < 4u; i++) {
                let x = inputs[(tokens + i) * PITCH + k];
                lanes[i][0] += w0 * x;
                lanes[i][1] += w1 * x;
                lanes[i][2] += w2 * x;
                lanes[i][3] += w3 * x;
            }
        }
        for (var i = 0u; i < 4u; i++) {
            w[i] += scaled(
                sums_of(lanes[i]), peaks[tokens + i],
                w_factors[rows], w_factors[rows + 1u], w_factors[rows + 2u], w_factors[rows + 3u],
            );
        }
        if HAS_UP {
            lanes = array<array<vec4h, 4>, 4>();
            for (var k = 0u; k < 8u; k++) {
                let at = rows * PITCH + k;
                let up0 = up_tile[at];
                let up1 = up_tile[at + PITCH];
                let up2 = up_tile[at + 2u * PITCH];
                let up3 = up_tile[at + 3u * PITCH];
                for (var i = 0u; i < 4u; i++) {
                    let x = inputs[(tokens + i) * PITCH + k];
                    lanes[i][0] += up0 * x;
                    lanes[i][1] += up1 * x;
                    lanes[i][2] += up2 * x;
                    lanes[i][3] += up3 * x;
                }
            }
            for (var i = 0u; i < 4u; i++) {
                up[i] += scaled(
                    sums_of(lanes[i]), peaks[tokens + i],
                    up_factors[rows], up_factors[rows + 1u], up_factors[rows + 2u], up_factors[rows + 3u],
                );
            }
        }
        workgroupBarrier();
    }
    shares[thread] = vec2f(squares, 0.0);
    workgroupBarrier();
    for (var i = 0u; i < 4u; i++) {
        let t = first + tokens + i;
        let sum = shares[2u * (tokens + i)].x + shares[2u * (tokens + i) + 1u].x;
        for (var j = 0u; j < 4u; j += 2u) {
            let row = first_row + rows + j;
            if t < token_count() && row < END {
                store(
                    t,
                    row,
                    vec2f(finish(w[i][j], sum), finish(w[i][j + 1u], sum)),
                    vec2f(finish(up[i][j], sum), finish(up[i][j + 1u], sum)),
                );
            }
        }
    }
}
