// Penalises the logits [VOCAB] of one position, and finds the K = min(256, VOCAB) best, of equal ones those with
// lower ids, and ln Σ exp(logit): one workgroup, by a radix search for the K-th best. Twins: kernels::penalize,
// kernels::top_k.
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
// [ln Σ exp, ids [256], logits [256]]
@group(0) @binding(3) var<storage, read_write> result: array<u32>;

// Ids of a thread: thread, thread + 256, …, four loads at a time so that they overlap. Where order matters, it has
// a run of consecutive ids.
const STRIDE: u32 = 1024u;
const RUN: u32 = (VOCAB + 255u) / 256u;

var<workgroup> counts: array<atomic<u32>, 256>;
var<workgroup> found: atomic<u32>;
// Of each thread's keys the largest one; later, how many are equal to the K-th best.
var<workgroup> tops: array<u32, 256>;
var<workgroup> sums: array<f32, 256>;
var<workgroup> best: array<vec2u, 256>;
// The K-th best key's leading bits, and how many of those with just these bits are among the K best.
var<workgroup> prefix: u32;
var<workgroup> wanted: u32;

// Orders as f32::total_cmp does.
fn key_of(logit: f32) -> u32 {
    let bits = bitcast<u32>(logit);
    return bits ^ select(0x80000000u, 0xffffffffu, bits >= 0x80000000u);
}

fn logit_of(key: u32) -> f32 {
    return bitcast<f32>(key ^ select(0xffffffffu, 0x80000000u, key >= 0x80000000u));
}

fn ids_from(first: u32) -> vec4u {
    return first + vec4u(0u, 256u, 512u, 768u);
}

// Keys of the ids that there are, 0 (less than any number's) elsewhere.
fn keys_of(ids: vec4u) -> vec4u {
    let at = min(ids, vec4u(VOCAB - 1u));
    let loaded = vec4f(logits[at.x], logits[at.y], logits[at.z], logits[at.w]);
    let keys = vec4u(key_of(loaded.x), key_of(loaded.y), key_of(loaded.z), key_of(loaded.w));
    return select(vec4u(0u), keys, ids < vec4u(VOCAB));
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    for (var i = thread; i < upload[4]; i += 256u) {
        let id = upload[PENALIZED_AT + i];
        let factor = bitcast<f32>(upload[5]);
        let logit = logits[id];
        logits[id] = select(logit * factor, logit / factor, logit > 0.0);
    }
    if thread == 0u {
        prefix = 0u;
        wanted = K;
    }
    atomicStore(&found, 0u);
    storageBarrier();

    // Every thread's best is as good as the worst of these 256, so none below that is among the K best: few are
    // left to be counted.
    var top = 0u;
    for (var first = thread; first < VOCAB; first += STRIDE) {
        let keys = keys_of(ids_from(first));
        top = max(top, max(max(keys.x, keys.y), max(keys.z, keys.w)));
    }
    tops[thread] = top;
    workgroupBarrier();
    var lowest = 0xffffffffu;
    var largest_key = 0u;
    for (var i = 0u; i < 256u; i++) {
        lowest = min(lowest, tops[i]);
        largest_key = max(largest_key, tops[i]);
    }
    lowest = max(lowest, 1u);
    let largest = logit_of(largest_key);

    // The K-th best key, eight bits at a time from the top.
    for (var shift = 24i; shift >= 0i; shift -= 8i) {
        atomicStore(&counts[thread], 0u);
        workgroupBarrier();
        // The bits above this digit; at the first, 256 << 24 wraps to zero and none are known.
        let known = ~((256u << u32(shift)) - 1u);
        for (var first = thread; first < VOCAB; first += STRIDE) {
            let keys = keys_of(ids_from(first));
            for (var i = 0u; i < 4u; i++) {
                if keys[i] >= lowest && (keys[i] & known) == prefix {
                    atomicAdd(&counts[(keys[i] >> u32(shift)) & 255u], 1u);
                }
            }
        }
        workgroupBarrier();
        if thread == 0u {
            var digit = 255u;
            var left = wanted;
            loop {
                let count = atomicLoad(&counts[digit]);
                if count >= left || digit == 0u {
                    break;
                }
                left -= count;
                digit--;
            }
            wanted = left;
            prefix |= digit << u32(shift);
        }
        workgroupBarrier();
    }

    // All that are better, in any order, and on the way Σ exp.
    var sum = 0.0;
    for (var first = thread; first < VOCAB; first += STRIDE) {
        let ids = ids_from(first);
        let keys = keys_of(ids);
        for (var i = 0u; i < 4u; i++) {
            if keys[i] > prefix {
                best[atomicAdd(&found, 1u)] = vec2u(keys[i], ids[i]);
            }
            if ids[i] < VOCAB {
                sum += exp(logit_of(keys[i]) - largest);
            }
        }
    }
    sums[thread] = sum;

    // The first ones that equal the K-th best, in order of their ids.
    let begin = thread * RUN;
    let end = min(begin + RUN, VOCAB);
    var equal = 0u;
    for (var id = begin; id < end; id++) {
        equal += u32(key_of(logits[id]) == prefix);
    }
    tops[thread] = equal;
    workgroupBarrier();
    if equal > 0u {
        var place = 0u;
        for (var i = 0u; i < thread; i++) {
            place += tops[i];
        }
        for (var id = begin; id < end && place < wanted; id++) {
            if key_of(logits[id]) == prefix {
                best[K - wanted + place] = vec2u(prefix, id);
                place++;
            }
        }
    }
    workgroupBarrier();

    // Each is put where so many others are better.
    if thread < K {
        let own = best[thread];
        var rank = 0u;
        for (var i = 0u; i < K; i++) {
            let other = best[i];
            rank += u32(other.x > own.x || (other.x == own.x && other.y < own.y));
        }
        result[1u + rank] = own.y;
        result[257u + rank] = bitcast<u32>(logit_of(own.x));
    }
    for (var width = 128u; width > 0u; width /= 2u) {
        if thread < width {
            sums[thread] += sums[thread + width];
        }
        workgroupBarrier();
    }
    if thread == 0u {
        result[0] = bitcast<u32>(largest + log(sums[0]));
    }
}
