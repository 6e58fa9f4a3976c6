//! ggml's tensor types and their expansion to f32.
//!
//! Source of the block layouts: ggml's `ggml-common.h` and `ggml-quants.c`.

use half::{bf16, f16};

/// A ggml tensor type that this crate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ggml's own")]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl GgmlType {
    /// All of them, for messages and tests.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The type of ggml's number `id`, `None` where this crate cannot read it.
    pub fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// The name of ggml's number `id` where this crate cannot read it (source: `enum ggml_type` in ggml's `ggml.h`).
    pub fn unreadable(id: u32) -> String {
        let name = match id {
            10 => "Q2_K",
            11 => "Q3_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            _ => return format!("number {id}"),
        };
        name.into()
    }

    /// Elements and bytes of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }
}

/// Expands `bytes`, which must hold exactly `elements` elements of type `dtype`, to f32.
///
/// # Panics
/// If the sizes don't fit; the reader has checked them against the file.
pub fn dequantize(dtype: GgmlType, bytes: &[u8], elements: usize) -> Vec<f32> {
    let (block_elems, block_bytes) = dtype.block();
    assert_eq!(bytes.len(), elements / block_elems * block_bytes, "{dtype:?} of {elements} elements");
    let mut out = vec![0.0; elements];
    let blocks = bytes.chunks_exact(block_bytes).zip(out.chunks_exact_mut(block_elems));
    for (b, y) in blocks {
        match dtype {
            GgmlType::F32 => y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            GgmlType::F16 => y[0] = half(b, 0),
            GgmlType::BF16 => y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            GgmlType::Q4_0 => q4(half(b, 0), -8.0 * half(b, 0), &b[2..], y),
            GgmlType::Q4_1 => q4(half(b, 0), half(b, 2), &b[4..], y),
            GgmlType::Q5_0 => q5(half(b, 0), -16.0 * half(b, 0), &b[2..], y),
            GgmlType::Q5_1 => q5(half(b, 0), half(b, 2), &b[4..], y),
            GgmlType::Q8_0 => {
                let d = half(b, 0);
                y.iter_mut().zip(&b[2..]).for_each(|(y, q)| *y = d * f32::from(*q as i8));
            }
            GgmlType::Q4K => q4_k(b, y),
            GgmlType::Q5K => q5_k(b, y),
            GgmlType::Q6K => q6_k(b, y),
        }
    }
    out
}

/// Takes blocks of four bits apart without loss: for each 32 weights 16 bytes of `quants` (byte i holds weight i in
/// its low nibble and weight i + 16 in the high one) and the two of `scales`, so that weight = d·q + m.
/// Of `Q4K` the products of scales are rounded to half precision. `false` for types with other widths.
pub fn four_bit_planes(dtype: GgmlType, bytes: &[u8], quants: &mut Vec<u8>, scales: &mut Vec<f16>) -> bool {
    let (_, block_bytes) = dtype.block();
    for b in bytes.chunks_exact(block_bytes) {
        match dtype {
            GgmlType::Q4_0 => {
                scales.extend([f16::from_f32(half(b, 0)), f16::from_f32(-8.0 * half(b, 0))]);
                quants.extend_from_slice(&b[2..]);
            }
            GgmlType::Q4_1 => {
                scales.extend([f16::from_f32(half(b, 0)), f16::from_f32(half(b, 2))]);
                quants.extend_from_slice(&b[4..]);
            }
            GgmlType::Q4K => {
                let (d, dmin, packed, qs) = (half(b, 0), half(b, 2), &b[4..16], &b[16..144]);
                for j in 0..8 {
                    let (sc, m) = scale_min_k4(j, packed);
                    scales.extend([f16::from_f32(d * sc), f16::from_f32(-dmin * m)]);
                    let q = |l: usize| qs[j / 2 * 32 + l] >> ((j % 2) * 4) & 15;
                    quants.extend((0..16).map(|l| q(l) | q(l + 16) << 4));
                }
            }
            _ => return false,
        }
    }
    true
}

fn half(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Nibble i of byte i is weight i, its high nibble weight i + 16.
fn q4(d: f32, m: f32, qs: &[u8], y: &mut [f32]) {
    for i in 0..16 {
        y[i] = d * f32::from(qs[i] & 15) + m;
        y[i + 16] = d * f32::from(qs[i] >> 4) + m;
    }
}

/// As [`q4`], with the fifth bits of all weights in a 32-bit word before the nibbles.
fn q5(d: f32, m: f32, qh_qs: &[u8], y: &mut [f32]) {
    let (qh, qs) = qh_qs.split_at(4);
    let qh = u32::from_le_bytes([qh[0], qh[1], qh[2], qh[3]]);
    for i in 0..16 {
        let low = (qs[i] & 15) | ((qh >> i & 1) << 4) as u8;
        let high = (qs[i] >> 4) | ((qh >> (i + 16) & 1) << 4) as u8;
        y[i] = d * f32::from(low) + m;
        y[i + 16] = d * f32::from(high) + m;
    }
}

/// The 6-bit scale and minimum of sub-block `j` (of 8) in the 12 packed bytes of Q4_K and Q5_K.
fn scale_min_k4(j: usize, q: &[u8]) -> (f32, f32) {
    let (sc, m) = if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        ((q[j + 4] & 15) | (q[j - 4] >> 6 << 4), (q[j + 4] >> 4) | (q[j] >> 6 << 4))
    };
    (f32::from(sc), f32::from(m))
}

fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales, qs) = (half(b, 0), half(b, 2), &b[4..16], &b[16..144]);
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_min_k4(j, scales);
        let shift = (j % 2) * 4;
        for (y, q) in y.iter_mut().zip(&qs[j / 2 * 32..]) {
            *y = d * sc * f32::from(q >> shift & 15) - dmin * m;
        }
    }
}

fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, scales, qh, qs) = (half(b, 0), half(b, 2), &b[4..16], &b[16..48], &b[48..176]);
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_min_k4(j, scales);
        let shift = (j % 2) * 4;
        for (l, y) in y.iter_mut().enumerate() {
            let q = (qs[j / 2 * 32 + l] >> shift & 15) | (qh[l] >> j & 1) << 4;
            *y = d * sc * f32::from(q) - dmin * m;
        }
    }
}

fn q6_k(b: &[u8], y: &mut [f32]) {
    let (ql, qh, scales, d) = (&b[..128], &b[128..192], &b[192..208], half(b, 208));
    for (i, y) in y.iter_mut().enumerate() {
        // Each half of 128 weights: four groups of 32 that share 64 low bytes and 32 high bytes.
        let (n, group, l) = (i / 128, i / 32 % 4, i % 32);
        let low = ql[n * 64 + (group % 2) * 32 + l] >> (group / 2 * 4) & 15;
        let high = qh[n * 32 + l] >> (group * 2) & 3;
        let q = (low | high << 4) as i8 - 32;
        *y = d * f32::from(scales[i / 16] as i8) * f32::from(q);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bits_come_apart_without_loss() {
        use crate::bundle::quant::{self, Dtype};
        for dtype in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q4K] {
            let (elements, bytes) = dtype.block();
            let mut block: Vec<u8> = (0..bytes * 3).map(|i| (i * 89 + i / 7 * 31) as u8).collect();
            for b in block.chunks_exact_mut(bytes) {
                b[..2].copy_from_slice(&f16::from_f32(0.013).to_le_bytes());
                b[2..4].copy_from_slice(&f16::from_f32(-0.07).to_le_bytes());
            }
            let expected = dequantize(dtype, &block, elements * 3);
            let (mut quants, mut scales) = (Vec::new(), Vec::new());
            assert!(four_bit_planes(dtype, &block, &mut quants, &mut scales));
            let mut found = vec![0.0; elements * 3];
            quant::dequantize(Dtype::Q4, &quants, bytemuck::cast_slice(&scales), 0, &mut found);
            // Q4K's products of scales are rounded; the others are exact.
            let exact = dtype != GgmlType::Q4K;
            for (f, e) in found.iter().zip(&expected) {
                assert!(
                    if exact { f == e } else { (f - e).abs() <= 2e-3 * (e.abs() + 1.0) },
                    "{dtype:?}: {f} {e}"
                );
            }
        }
        assert!(!four_bit_planes(GgmlType::Q5_0, &[0; 22], &mut Vec::new(), &mut Vec::new()));
    }

    #[test]
    fn q4_1_puts_the_high_nibble_at_i_plus_16() {
        let mut block = [0u8; 20];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
        for i in 0..16u8 {
            block[4 + i as usize] = i | (15 - i) << 4;
        }
        let y = dequantize(GgmlType::Q4_1, &block, 32);
        for i in 0..16 {
            assert_eq!(y[i], 0.5 * i as f32 - 1.0);
            assert_eq!(y[i + 16], 0.5 * (15 - i) as f32 - 1.0);
        }
    }
}
