// Keys and values in the cache, as halves. No feature is needed to pack them. What is too large for a half becomes the
// largest one; what is below the smallest normal one may become zero. Twin: gpu::tests::kernels::halved.
alias Pair = u32;
alias Quad = vec2u;

fn pair_of(values: vec2f) -> Pair {
    return pack2x16float(clamp(values, vec2f(-65504.0), vec2f(65504.0)));
}

fn values_of(quad: Quad) -> vec4f {
    return vec4f(unpack2x16float(quad.x), unpack2x16float(quad.y));
}
