// Keys and values in the cache, as they are.
alias Pair = vec2f;
alias Quad = vec4f;

fn pair_of(values: vec2f) -> Pair {
    return values;
}

fn values_of(quad: Quad) -> vec4f {
    return quad;
}
