// Penalises the logits [VOCAB] of one position, and finds the K = min(256, VOCAB) best, of equal ones those with
// lower ids, and ln Σ exp(logit): one workgroup, by a radix search for the K-th best. Twins: kernels::penalize,
// kernels::top_k.
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
// [ln Σ exp, ids [256], logits [256]]
@group(0) @binding(3) var<storage, read_write> result: array<u32>;

// Ids of a thread: thread, thread + 256, …; where order matters, a run of consecutive ones.
const RUN: u32 = (VOCAB + 255u) / 256u;

var<workgroup> counts: array<atomic<u32>, 256>;
var<workgroup> found: atomic<u32>;
var<workgroup> sums: array<f32, 256>;
var<workgroup> ties: array<u32, 256>;
var<workgroup> best: array<vec2u, 256>;
// The K-th best key's leading bits, and how many of those with just these bits are among the K best.
var<workgroup> prefix: u32;
var<workgroup> wanted: u32;

// Orders as f32::total_cmp does.
fn key_of(logit: f32) -> u32 {
    let bits = bitcast<u32>(logit);
    return bits ^ select(0x80000000u, 0xffffffffu, bits >= 0x80000000u);
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
    storageBarrier();

    // The K-th best key, eight bits at a time from the top.
    for (var shift = 24i; shift >= 0i; shift -= 8i) {
        atomicStore(&counts[thread], 0u);
        workgroupBarrier();
        // The bits above this digit; at the first, 256 << 24 wraps to zero and none are known.
        let known = ~((256u << u32(shift)) - 1u);
        for (var id = thread; id < VOCAB; id += 256u) {
            let key = key_of(logits[id]);
            if (key & known) == prefix {
                atomicAdd(&counts[(key >> u32(shift)) & 255u], 1u);
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

    // All that are better, in any order, and the first ones that equal it, counted in order of their ids.
    atomicStore(&found, 0u);
    let begin = thread * RUN;
    var equal = 0u;
    for (var id = begin; id < min(begin + RUN, VOCAB); id++) {
        equal += u32(key_of(logits[id]) == prefix);
    }
    ties[thread] = equal;
    workgroupBarrier();
    for (var id = thread; id < VOCAB; id += 256u) {
        let key = key_of(logits[id]);
        if key > prefix {
            best[atomicAdd(&found, 1u)] = vec2u(key, id);
        }
    }
    if equal > 0u {
        var place = 0u;
        for (var i = 0u; i < thread; i++) {
            place += ties[i];
        }
        for (var id = begin; id < min(begin + RUN, VOCAB); id++) {
            if key_of(logits[id]) == prefix {
                if place < wanted {
                    best[K - wanted + place] = vec2u(prefix, id);
                }
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
        result[257u + rank] = bitcast<u32>(logits[own.y]);
        if rank == 0u {
            prefix = own.y;
        }
    }
    workgroupBarrier();

    let largest = logits[prefix];
    var sum = 0.0;
    for (var id = thread; id < VOCAB; id += 256u) {
        sum += exp(logits[id] - largest);
    }
    sums[thread] = sum;
    for (var width = 128u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if thread < width {
            sums[thread] += sums[thread + width];
        }
    }
    if thread == 0u {
        result[0] = bitcast<u32>(largest + log(sums[0]));
    }
}
