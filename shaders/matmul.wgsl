// A projection of the rows FIRST..END of many tokens: a workgroup has 64 threads and computes 32 rows for 32
// tokens, a thread 4 × 4 of them. Blocks of 32 columns pass through workgroup memory, the weights expanded.
// Twin: Weight::matmul.

// vec4f a row of a tile: eight, and one more so that rows begin in different memory banks.
const PITCH: u32 = 9u;

var<workgroup> inputs: array<vec4f, 288>;
var<workgroup> w_tile: array<vec4f, 288>;
var<workgroup> up_tile: array<vec4f, 288>;
// [32 tokens, 8 threads]
var<workgroup> squares: array<f32, 256>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let first_row = FIRST + 32u * group.x;
    let first = 32u * group.y;
    let rows = 4u * (thread % 8u);
    let tokens = 4u * (thread / 8u);
    // Loading, a thread serves column vector `thread % 8` of four tokens.
    var square = vec4f(0.0);
    // [token][row]
    var w: array<vec4f, 4>;
    var up: array<vec4f, 4>;
    for (var block = 0u; block < WIDTH / 32u; block++) {
        for (var i = 0u; i < 4u; i++) {
            let token = thread / 8u + 8u * i;
            let column = block * 8u + thread % 8u;
            let at = (first_token() + first + token) * (WIDTH / 4u) + column;
            inputs[token * PITCH + thread % 8u] = input(at, column);
            square[i] += energy(at);
        }
        for (var i = 0u; i < 2u; i++) {
            let local = thread / 4u + 16u * i;
            let row = min(first_row + local, END - 1u);
            let unit = w_unit(row, block * 4u + thread % 4u);
            w_tile[local * PITCH + thread % 4u] = unit.a;
            w_tile[local * PITCH + thread % 4u + 4u] = unit.b;
            if HAS_UP {
                let other = up_unit(row, block * 4u + thread % 4u);
                up_tile[local * PITCH + thread % 4u] = other.a;
                up_tile[local * PITCH + thread % 4u + 4u] = other.b;
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < 8u; k++) {
            let at = rows * PITCH + k;
            let w0 = w_tile[at];
            let w1 = w_tile[at + PITCH];
            let w2 = w_tile[at + 2u * PITCH];
            let w3 = w_tile[at + 3u * PITCH];
            for (var i = 0u; i < 4u; i++) {
                let y = inputs[(tokens + i) * PITCH + k];
                w[i] += vec4f(dot(w0, y), dot(w1, y), dot(w2, y), dot(w3, y));
            }
            if HAS_UP {
                let up0 = up_tile[at];
                let up1 = up_tile[at + PITCH];
                let up2 = up_tile[at + 2u * PITCH];
                let up3 = up_tile[at + 3u * PITCH];
                for (var i = 0u; i < 4u; i++) {
                    let y = inputs[(tokens + i) * PITCH + k];
                    up[i] += vec4f(dot(up0, y), dot(up1, y), dot(up2, y), dot(up3, y));
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        squares[(thread / 8u + 8u * i) * 8u + thread % 8u] = square[i];
    }
    workgroupBarrier();
    for (var i = 0u; i < 4u; i++) {
        let t = first + tokens + i;
        var sum = 0.0;
        for (var j = 0u; j < 8u; j++) {
            sum += squares[(tokens + i) * 8u + j];
        }
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
