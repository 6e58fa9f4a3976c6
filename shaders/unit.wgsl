// Weights come in units of eight: of a block of 32, the weights 4w.. and 16 + 4w.. (w < 4), because a word of
// q4 holds just these. Unit u of a row is word w = u % 4 of its block u / 4.
struct Unit {
    a: vec4f,
    b: vec4f,
}

// Where the unit's first four values lie in a row of vec4f; the others are four further.
fn unit_at(unit: u32) -> u32 {
    return unit / 4u * 8u + unit % 4u;
}

fn unit_dot(p: Unit, q: Unit) -> f32 {
    return dot(p.a, q.a) + dot(p.b, q.b);
}

// The quants in a word of q4.
fn nibbles(word: u32) -> Unit {
    let low = vec4f((vec4u(word) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(15u));
    let high = vec4f((vec4u(word) >> vec4u(4u, 12u, 20u, 28u)) & vec4u(15u));
    return Unit(low, high);
}

// Of q4 the quants of a word, and scale and offset of a block, with quants around zero: they make smaller sums.
fn centred(word: u32) -> Unit {
    let q = nibbles(word);
    return Unit(q.a - 8.0, q.b - 8.0);
}

fn centred_scale(bits: u32) -> vec2f {
    let dm = halves(bits);
    return vec2f(dm.x, dm.y + 8.0 * dm.x);
}

// Two f16, subnormal ones included, which unpack2x16float may flush to zero.
fn halves(bits: u32) -> vec2f {
    let pair = vec2u(bits & 0xffffu, bits >> 16u);
    let tiny = vec2f(pair & vec2u(0x3ffu)) * exp2(-24.0);
    let signed = select(tiny, -tiny, (pair & vec2u(0x8000u)) != vec2u(0u));
    return select(unpack2x16float(bits), signed, (pair & vec2u(0x7c00u)) == vec2u(0u));
}
