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
    // Loading, a thread serves column vector `side` of four tokens, and a unit of two rows.
    let side = thread % 8u;
    let unit = thread % 4u;
    let start = (first_token() + first + thread / 8u) * (WIDTH / 4u) + side;
    let place = thread / 8u * PITCH + side;
    //$ for i in 0..2
    let row_$i = min(first_row + thread / 4u + 16u * $i, END - 1u);
    let place_$i = (thread / 4u + 16u * $i) * PITCH + unit;
    //$ end
    //$ for t in 0..4
    var square_$t = 0.0;
    //$ for p in 0..2
    var w_$t_$p = vec2f();
    var up_$t_$p = vec2f();
    //$ end
    //$ end
    for (var block = 0u; block < WIDTH / 32u; block++) {
        //$ for t in 0..4
        let at_$t = start + 8u * $t * (WIDTH / 4u) + block * 8u;
        inputs[place + 8u * $t * PITCH] = input(at_$t, block * 8u + side);
        square_$t += energy(at_$t);
        //$ end
        //$ for i in 0..2
        let w_unit_$i = w_unit(row_$i, block * 4u + unit);
        w_tile[place_$i] = w_unit_$i.a;
        w_tile[place_$i + 4u] = w_unit_$i.b;
        if HAS_up {
            let up_unit = up_unit(row_$i, block * 4u + unit);
            up_tile[place_$i] = up_unit.a;
            up_tile[place_$i + 4u] = up_unit.b;
        }
        //$ end
        workgroupBarrier();
        for (var k = 0u; k < 8u; k++) {
            //$ for t in 0..4
            let y_$t = inputs[(tokens + $t) * PITCH + k];
            //$ end
            //$ for m in w,up
            if HAS_$m {
                //$ for p in 0..2
                let a_$p = $m_tile[(rows + 2u * $p) * PITCH + k];
                let b_$p = $m_tile[(rows + 2u * $p + 1u) * PITCH + k];
                //$ for t in 0..4
                $m_$t_$p += vec2f(dot(a_$p, y_$t), dot(b_$p, y_$t));
                //$ end
                //$ end
            }
            //$ end
        }
        workgroupBarrier();
    }
    //$ for t in 0..4
    squares[(thread / 8u + 8u * $t) * 8u + side] = square_$t;
    //$ end
    workgroupBarrier();
    //$ for t in 0..4
    var sum_$t = 0.0;
    //$ for i in 0..8
    sum_$t += squares[(tokens + $t) * 8u + $i];
    //$ end
    //$ for p in 0..2
    let row_$t_$p = first_row + rows + 2u * $p;
    if first + tokens + $t < token_count() && row_$t_$p < END {
        store(first + tokens + $t, row_$t_$p, finish(w_$t_$p, sum_$t), finish(up_$t_$p, sum_$t));
    }
    //$ end
    //$ end
}
