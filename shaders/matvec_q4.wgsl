// A projection of the rows FIRST..END of one token, where the weight is stored as q4 and the input needs no norm: LANES
// threads share two rows, and a workgroup has 64. Each reads whole blocks, 16 bytes of a row at once. Twin: Weight::matmul.
@group(0) @binding(6) var<storage, read> quants: array<vec4u>;
@group(0) @binding(7) var<storage, read> scales: array<u32>;

const BLOCKS: u32 = WIDTH / 32u;

var<workgroup> sums: array<vec2f, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let lane = thread % LANES;
    let row = FIRST + 2u * (group.x * (64u / LANES) + thread / LANES);
    // Threads past the end repeat the last row, since all must reach the barriers.
    let start_0 = (min(row, END - 1u) - FIRST) * BLOCKS;
    let start_1 = (min(row + 1u, END - 1u) - FIRST) * BLOCKS;
    let input_start = first_token() * (WIDTH / 4u);
    var sum = vec2f();
    for (var block = lane; block < BLOCKS; block += LANES) {
        //$ for r in 0,1
        let words_$r = quants[start_$r + block];
        let scale_$r = centred_scale(scales[start_$r + block]);
        //$ end
        //$ for i in 0..8
        let y_$i = input(input_start + block * 8u + $i, block * 8u + $i);
        //$ end
        let all = dot(((y_0 + y_1) + (y_2 + y_3)) + ((y_4 + y_5) + (y_6 + y_7)), vec4f(1.0));
        //$ for r in 0,1
        let dot_$r = (unit_dot(centred(words_$r.x), Unit(y_0, y_4)) + unit_dot(centred(words_$r.y), Unit(y_1, y_5)))
            + (unit_dot(centred(words_$r.z), Unit(y_2, y_6)) + unit_dot(centred(words_$r.w), Unit(y_3, y_7)));
        //$ end
        sum += vec2f(scale_0.x * dot_0 + scale_0.y * all, scale_1.x * dot_1 + scale_1.y * all);
    }
    // In two rounds, so that few barriers are waited at: four threads take a quarter of the sums each.
    sums[thread] = sum;
    workgroupBarrier();
    var quarter = vec2f();
    if lane < 4u {
        for (var i = 0u; i < LANES; i += 4u) {
            quarter += sums[thread + i];
        }
    }
    workgroupBarrier();
    sums[thread] = quarter;
    workgroupBarrier();
    if lane == 0u && row < END {
        let all = (sums[thread] + sums[thread + 1u]) + (sums[thread + 2u] + sums[thread + 3u]);
        store(0u, row, all, vec2f());
    }
}
