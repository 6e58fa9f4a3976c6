// The end of an Engram layer, a thread for four channels of a token: the causal convolution of the cache, each channel by
// itself, its SiLU and the gated values are added to the residual stream. Twin: engram::engram_conv.
@group(0) @binding(1) var<storage, read> values: array<vec4f>;
// [TAPS, HIDDEN]; the last tap belongs to the position itself.
@group(0) @binding(2) var<storage, read> taps: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> residual: array<vec4f>;
@group(0) @binding(4) var<storage, read> cache: array<vec4f>;

const LENGTH: u32 = HIDDEN / 4u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let column = id.x;
    if column >= LENGTH {
        return;
    }
    let position = step_position() + id.y;
    var sum = vec4f(0.0);
    for (var back = 0u; back < TAPS; back++) {
        if back * DILATION <= position {
            let tap = taps[(TAPS - 1u - back) * LENGTH + column];
            sum += tap * cache[(position - back * DILATION) * LENGTH + column];
        }
    }
    let at = id.y * LENGTH + column;
    // The exponent is kept where exp does not overflow; the quotient is zero there anyway.
    let silu = sum / (1.0 + exp(min(-sum, vec4f(80.0))));
    residual[at] = residual[at] + values[at] + silu;
}
