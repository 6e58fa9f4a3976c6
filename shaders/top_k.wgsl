// Penalises the logits [VOCAB] of one position, and finds the K = min(256, VOCAB) best, of equal ones those with
// lower ids, and ln Σ exp(logit): one workgroup, by a radix search for the K-th best. Twins: kernels::penalize,
// kernels::top_k.
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
// [ln Σ exp, ids [256], logits [256]]
@group(0) @binding(3) var<storage, read_write> result: array<u32>;

// Ids of a thread: thread, thread + 256, …, sixteen loads at a time so that they overlap. Where order matters, it has
// a run of consecutive ids.
const STRIDE: u32 = 4096u;
const RUN: u32 = (VOCAB + 255u) / 256u;

var<workgroup> counts: array<atomic<u32>, 256>;
var<workgroup> found: atomic<u32>;
// How many are equal to the K-th best.
var<workgroup> equals: atomic<u32>;
// Of each thread's keys the largest one; later, how many of its run are equal to the K-th best.
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
    atomicStore(&equals, 0u);
    storageBarrier();

    // Every thread's best is as good as the worst of these 256, so none below that is among the K best: few are
    // left to be counted.
    var top = 0u;
    for (var first = thread; first < VOCAB; first += STRIDE) {
        //$ for j in 0..4
        let keys_$j = keys_of(ids_from(first + $j * 1024u));
        //$ end
        let keys = max(max(keys_0, keys_1), max(keys_2, keys_3));
        top = max(top, max(max(keys.x, keys.y), max(keys.z, keys.w)));
    }
    tops[thread] = top;
    workgroupBarrier();
    var lowest = 0xffffffffu;
    var largest_key = 0u;
    for (var i = 0u; i < 256u; i += 16u) {
        //$ for j in 0..16
        let top_$j = tops[i + $j];
        //$ end
        //$ for j in 0..16
        lowest = min(lowest, top_$j);
        largest_key = max(largest_key, top_$j);
        //$ end
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
            //$ for j in 0..4
            let keys_$j = keys_of(ids_from(first + $j * 1024u));
            //$ end
            //$ for j in 0..4
            //$ for c in x,y,z,w
            if keys_$j.$c >= lowest && (keys_$j.$c & known) == prefix {
                atomicAdd(&counts[(keys_$j.$c >> u32(shift)) & 255u], 1u);
            }
            //$ end
            //$ end
        }
        workgroupBarrier();
        // The digit of the K-th best: with those above it there are too few, with its own enough.
        let left = wanted;
        let count = atomicLoad(&counts[thread]);
        var above = 0u;
        for (var i = 0u; i < 256u; i += 16u) {
            //$ for j in 0..16
            let count_$j = atomicLoad(&counts[i + $j]);
            //$ end
            //$ for j in 0..16
            above += select(0u, count_$j, i + $j > thread);
            //$ end
        }
        workgroupBarrier();
        if above < left && (above + count >= left || thread == 0u) {
            wanted = left - above;
            prefix |= thread << u32(shift);
        }
        workgroupBarrier();
    }

    // All that are better, in any order, and on the way Σ exp.
    var sum = 0.0;
    for (var first = thread; first < VOCAB; first += STRIDE) {
        //$ for j in 0..4
        let ids_$j = ids_from(first + $j * 1024u);
        let keys_$j = keys_of(ids_$j);
        //$ end
        //$ for j in 0..4
        //$ for c in x,y,z,w
        if keys_$j.$c > prefix {
            best[atomicAdd(&found, 1u)] = vec2u(keys_$j.$c, ids_$j.$c);
        } else if keys_$j.$c == prefix {
            let place = atomicAdd(&equals, 1u);
            if place < wanted {
                best[K - wanted + place] = vec2u(prefix, ids_$j.$c);
            }
        }
        if ids_$j.$c < VOCAB {
            sum += exp(logit_of(keys_$j.$c) - largest);
        }
        //$ end
        //$ end
    }
    sums[thread] = sum;

    workgroupBarrier();

    // If more equal the K-th best than are wanted, the first ones, in order of their ids.
    let many = atomicLoad(&equals) > wanted;
    let begin = thread * RUN;
    let end = min(begin + RUN, VOCAB);
    var equal = 0u;
    if many {
        for (var id = begin; id < end; id++) {
            equal += u32(key_of(logits[id]) == prefix);
        }
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
        for (var i = 0u; i < K; i += 8u) {
            //$ for j in 0..8
            let other_$j = best[min(i + $j, K - 1u)];
            //$ end
            //$ for j in 0..8
            rank += u32(
                i + $j < K && (other_$j.x > own.x || (other_$j.x == own.x && other_$j.y < own.y)),
            );
            //$ end
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
