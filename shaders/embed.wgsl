// x = E[token], for the tokens whose rows FIRST..END are in this part of E. Twin: Weight::expand.
@group(0) @binding(3) var<storage, read_write> x: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    let t = id.y;
    let token = upload[TOKENS_AT + t];
    if id.x >= WIDTH / 8u || token < FIRST || token >= END {
        return;
    }
    let unit = w_unit(token, id.x);
    let at = t * (WIDTH / 4u) + unit_at(id.x);
    x[at] = unit.a;
    x[at + 4u] = unit.b;
}
