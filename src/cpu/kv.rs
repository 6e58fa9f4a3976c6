//! The cache of keys and values, in single precision or in less.
//!
//! Positions lie in spans. Of a span each KV head of a layer has a [`Tile`], keys column by column and values position by
//! position: so that attention works in lanes for positions where it makes scores, for columns where it mixes values, and
//! never sums across a vector. Spans are never moved: the cache grows by whole ones.

use std::fmt;
use std::str::FromStr;

use bytemuck::Pod;
#[cfg(not(target_arch = "wasm32"))]
use half::f16;
use serde::Serialize;

use super::kernels::largest;
use super::memory::Memory;
use crate::config::Config;
use crate::error::{Error, Result};

/// Positions of a span.
pub const SPAN: usize = 64;
/// Spans that come at a time: with fewer, large pages do not fit in.
const SPANS: usize = if cfg!(target_arch = "wasm32") { 1 } else { 4 };
/// Values that are worked on at a time.
pub const LANES: usize = if cfg!(target_arch = "wasm32") { 8 } else { 16 };

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// Single precision.
    F32,
    /// Half precision; values beyond ±65,504 become that. Not in a page, where widening it takes longer than it saves.
    #[cfg(not(target_arch = "wasm32"))]
    F16,
    /// Bytes, with a scale for each position and KV head: the largest value over 127.
    #[default]
    Q8,
}

impl KvType {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::F32,
        #[cfg(not(target_arch = "wasm32"))]
        Self::F16,
        Self::Q8,
    ];

    /// Bytes of the keys and values of one position, in all layers.
    pub fn position_bytes(self, c: &Config) -> usize {
        let head = match self {
            Self::F32 => 4 * c.head_dim,
            #[cfg(not(target_arch = "wasm32"))]
            Self::F16 => 2 * c.head_dim,
            Self::Q8 => c.head_dim + size_of::<f32>(),
        };
        2 * c.n_layers * c.n_kv_heads * head
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            #[cfg(not(target_arch = "wasm32"))]
            Self::F16 => "f16",
            Self::Q8 => "q8",
        })
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|kind| kind.to_string() == name).ok_or_else(|| {
            Error::invalid(format!("the type {name:?} of a cache"), "f32, f16 and q8 are possible")
        })
    }
}

/// A stored value.
pub trait Stored: Pod + Send + Sync {
    /// Whether a position has scales.
    const SCALED: bool;

    /// As floats, exactly.
    fn widen(stored: &[Self; LANES]) -> [f32; LANES];

    /// The nearest to `x`, which a scale has brought into ±127 if there is one.
    fn narrow(x: f32) -> Self;
}

impl Stored for f32 {
    const SCALED: bool = false;

    #[inline(always)]
    fn widen(stored: &[Self; LANES]) -> [f32; LANES] {
        *stored
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Stored for f16 {
    const SCALED: bool = false;

    #[inline(always)]
    fn widen(stored: &[Self; LANES]) -> [f32; LANES] {
        // The bits of a half, moved to where a float has its own, are that half times 2⁻¹¹²; finite ones only.
        const UP: f32 = f32::from_bits((127 + 112) << 23);
        stored.map(|half| {
            let bits = u32::from(half.to_bits());
            let size = f32::from_bits((bits & 0x7fff) << 13) * UP;
            f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
        })
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x.clamp(-65504.0, 65504.0))
    }
}

impl Stored for i8 {
    const SCALED: bool = true;

    #[cfg(not(target_arch = "wasm32"))]
    #[inline(always)]
    fn widen(stored: &[Self; LANES]) -> [f32; LANES] {
        stored.map(f32::from)
    }

    // Of the above the compiler makes one value after the other here, which takes four times as long.
    #[cfg(target_arch = "wasm32")]
    #[inline(always)]
    fn widen(stored: &[Self; LANES]) -> [f32; LANES] {
        use std::arch::wasm32::{
            f32x4_convert_i32x4, i16x8_load_extend_i8x8, i32x4_extend_high_i16x8, i32x4_extend_low_i16x8,
        };
        // SAFETY: eight bytes are read, and two vectors are eight floats.
        unsafe {
            let wide = i16x8_load_extend_i8x8(stored.as_ptr());
            let (low, high) = (i32x4_extend_low_i16x8(wide), i32x4_extend_high_i16x8(wide));
            std::mem::transmute([f32x4_convert_i32x4(low), f32x4_convert_i32x4(high)])
        }
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        // Adding this rounds to an integer and leaves it in the low bits of the sum.
        (x + 12_582_912.0).to_bits() as Self
    }
}

/// The cache of one of the types.
#[derive(Debug)]
pub enum KvCache {
    /// For [`KvType::F32`].
    F32(Spans<f32>),
    /// For [`KvType::F16`].
    #[cfg(not(target_arch = "wasm32"))]
    F16(Spans<f16>),
    /// For [`KvType::Q8`].
    Q8(Spans<i8>),
}

/// The same for each type of cache.
macro_rules! of_any {
    ($cache:expr, $spans:ident => $result:expr) => {
        match $cache {
            $crate::cpu::kv::KvCache::F32($spans) => $result,
            #[cfg(not(target_arch = "wasm32"))]
            $crate::cpu::kv::KvCache::F16($spans) => $result,
            $crate::cpu::kv::KvCache::Q8($spans) => $result,
        }
    };
}
pub(super) use of_any;

impl KvCache {
    /// An empty cache for a model of these sizes.
    pub fn new(kind: KvType, c: &Config) -> Self {
        match kind {
            KvType::F32 => Self::F32(Spans::new(c)),
            #[cfg(not(target_arch = "wasm32"))]
            KvType::F16 => Self::F16(Spans::new(c)),
            KvType::Q8 => Self::Q8(Spans::new(c)),
        }
    }

    /// How it stores.
    pub fn kind(&self) -> KvType {
        match self {
            Self::F32(_) => KvType::F32,
            #[cfg(not(target_arch = "wasm32"))]
            Self::F16(_) => KvType::F16,
            Self::Q8(_) => KvType::Q8,
        }
    }

    /// Positions that it holds.
    pub fn len(&self) -> usize {
        of_any!(self, spans => spans.len)
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room for `len` positions at least, new ones zeros. It never shrinks: a step may be run again at a position in the middle.
    pub fn grow(&mut self, len: usize) {
        of_any!(self, spans => spans.grow(len));
    }

    /// Stores the key and the value of a position, `[kv_heads, head_dim]`, of one layer.
    pub fn store(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        of_any!(self, spans => spans.store(layer, position, key, value));
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        of_any!(self, spans => spans.bytes())
    }
}

/// All spans.
#[derive(Debug)]
pub struct Spans<T> {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    len: usize,
    // Each [SPANS, layers, kv_heads], a tile each.
    values: Vec<Memory<T>>,
    // Likewise, the scales of a tile each; nothing where there are none.
    scales: Vec<Memory<f32>>,
}

/// What one KV head of a layer has of a span.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a, T> {
    /// `[head_dim, SPAN]`.
    pub keys: &'a [T],
    /// `[SPAN, value_width]`, see [`value_width`].
    pub values: &'a [T],
    /// `[2, SPAN]`: what keys and values are to be multiplied with, by position; nothing where there are no scales.
    pub scales: &'a [f32],
}

/// Columns of a tile's values: those beyond the head's own are zeros.
pub const fn value_width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

impl<T: Stored> Spans<T> {
    fn new(c: &Config) -> Self {
        let (layers, kv_heads, head_dim) = (c.n_layers, c.n_kv_heads, c.head_dim);
        Self { layers, kv_heads, head_dim, len: 0, values: Vec::new(), scales: Vec::new() }
    }

    /// Of one head in one layer.
    pub(super) fn of_head(head_dim: usize) -> Self {
        Self { layers: 1, kv_heads: 1, head_dim, len: 0, values: Vec::new(), scales: Vec::new() }
    }

    fn tile_len(&self) -> usize {
        SPAN * (self.head_dim + value_width(self.head_dim))
    }

    /// See [`KvCache::grow`].
    pub fn grow(&mut self, len: usize) {
        self.len = self.len.max(len);
        let tiles = SPANS * self.layers * self.kv_heads;
        while self.values.len() * SPANS * SPAN < self.len {
            self.values.push(Memory::zeroed(tiles * self.tile_len()));
            if T::SCALED {
                self.scales.push(Memory::zeroed(tiles * 2 * SPAN));
            }
        }
    }

    /// Where the tile of a KV head in a span is: the area, and the tile in it.
    fn place(&self, layer: usize, head: usize, span: usize) -> (usize, usize) {
        let area = span / SPANS;
        (area, ((span - area * SPANS) * self.layers + layer) * self.kv_heads + head)
    }

    /// The tile of KV head `head` of layer `layer` in span `span`.
    pub fn tile(&self, layer: usize, head: usize, span: usize) -> Tile<'_, T> {
        let (area, tile) = self.place(layer, head, span);
        let len = self.tile_len();
        let (keys, values) = self.values[area][tile * len..][..len].split_at(SPAN * self.head_dim);
        let scales = if T::SCALED { &self.scales[area][tile * 2 * SPAN..][..2 * SPAN] } else { &[] };
        Tile { keys, values, scales }
    }

    /// See [`KvCache::store`].
    pub fn store(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let (d, len) = (self.head_dim, self.tile_len());
        let at = position % SPAN;
        for (head, (key, value)) in key.chunks_exact(d).zip(value.chunks_exact(d)).enumerate() {
            let (area, tile) = self.place(layer, head, position / SPAN);
            let (keys, values) = self.values[area][tile * len..][..len].split_at_mut(SPAN * d);
            let mut factors = [1.0; 2];
            if T::SCALED {
                let scales = &mut self.scales[area][tile * 2 * SPAN..][..2 * SPAN];
                for ((factor, x), scale) in
                    factors.iter_mut().zip([key, value]).zip(scales[at..].iter_mut().step_by(SPAN))
                {
                    // One that is not finite makes all of its values NaN.
                    *scale = largest(x) / 127.0;
                    *factor = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
                }
            }
            for (stored, x) in keys[at..].iter_mut().step_by(SPAN).zip(key) {
                *stored = T::narrow(x * factors[0]);
            }
            for (stored, x) in values[at * value_width(d)..].iter_mut().zip(value) {
                *stored = T::narrow(x * factors[1]);
            }
        }
    }

    fn bytes(&self) -> u64 {
        let values = self.values.iter().map(|area| size_of_val(&area[..])).sum::<usize>();
        let scales = self.scales.iter().map(|area| size_of_val(&area[..])).sum::<usize>();
        (values + scales) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::random;
    use crate::config::tests::tiny;

    #[test]
    fn halves_become_the_floats_they_are() {
        let finite = |bits: &u16| f16::from_bits(*bits).is_finite();
        for bits in (0..=u16::MAX).filter(finite) {
            let half = f16::from_bits(bits);
            assert_eq!(f16::widen(&[half; LANES])[LANES - 1].to_bits(), half.to_f32().to_bits(), "{bits:x}");
        }
        assert_eq!([1e9, -1e9].map(|x| <f16 as Stored>::narrow(x).to_f32()), [65504.0, -65504.0]);
    }

    #[test]
    fn bytes_are_rounded() {
        for i in -1270..=1270 {
            let x = i as f32 / 10.0;
            assert_eq!(f32::from(<i8 as Stored>::narrow(x)), x.round_ties_even(), "{x}");
        }
    }

    /// Key and value of a position of one head, as attention sees them.
    fn read<T: Stored>(spans: &Spans<T>, layer: usize, head: usize, position: usize) -> [Vec<f32>; 2] {
        let tile = spans.tile(layer, head, position / SPAN);
        let (at, width) = (position % SPAN, value_width(spans.head_dim));
        let one = |stored: &T| T::widen(&[*stored; LANES])[0];
        let scale = |which: usize| if T::SCALED { tile.scales[which * SPAN + at] } else { 1.0 };
        let keys = tile.keys[at..].iter().step_by(SPAN).map(|x| one(x) * scale(0));
        let values = tile.values[at * width..][..spans.head_dim].iter().map(|x| one(x) * scale(1));
        [keys.collect(), values.collect()]
    }

    #[test]
    fn every_place_keeps_what_it_was_given() {
        let c = tiny();
        let (positions, bound) = (SPAN * SPANS + 70, 1.0 / 254.0 + 1e-6);
        let x = |what: &str, layer: usize, position: usize| {
            random::weights(&format!("{what}.{layer}.{position}"), &[1, c.kv_dim()], 1)
        };
        for &kind in KvType::ALL {
            let mut cache = KvCache::new(kind, &c);
            assert!(cache.is_empty() && cache.bytes() == 0);
            for position in 0..positions {
                cache.grow(position + 1);
                for layer in 0..c.n_layers {
                    cache.store(layer, position, &x("k", layer, position), &x("v", layer, position));
                }
            }
            cache.grow(1);
            assert_eq!((cache.len(), cache.kind()), (positions, kind));
            for (layer, position) in [(0, 0), (1, 63), (0, 64), (1, SPAN * SPANS), (1, positions - 1)] {
                for head in 0..c.n_kv_heads {
                    let found = of_any!(&cache, spans => read(spans, layer, head, position));
                    for (what, found) in ["k", "v"].into_iter().zip(found) {
                        let given = &x(what, layer, position)[head * c.head_dim..][..c.head_dim];
                        let largest = given.iter().fold(0f32, |max, x| max.max(x.abs()));
                        let near = |(a, b): (&f32, &f32)| match kind {
                            KvType::F32 => a == b,
                            KvType::F16 => *a == f16::from_f32(*b).to_f32(),
                            KvType::Q8 => (a - b).abs() <= bound * largest,
                        };
                        assert!(found.iter().zip(given).all(near), "{kind} {layer} {position}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let c = tiny();
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut cache = KvCache::new(KvType::Q8, &c);
            cache.grow(1);
            let mut key = random::weights("k", &[1, c.kv_dim()], 1);
            key[c.head_dim + 1] = wrong;
            cache.store(0, 0, &key, &random::weights("v", &[1, c.kv_dim()], 1));
            let finite = |head| {
                of_any!(&cache, spans => read(spans, 0, head, 0)).map(|x| x.iter().all(|x| x.is_finite()))
            };
            assert_eq!([finite(0), finite(1)], [[true, true], [false, true]], "{wrong}");
        }
    }

    #[test]
    fn bytes_grow_with_positions_alone() {
        let c = Config { head_dim: 64, ..tiny() };
        for &kind in KvType::ALL {
            let mut cache = KvCache::new(kind, &c);
            cache.grow(SPAN * SPANS);
            assert_eq!(cache.bytes(), (SPAN * SPANS * kind.position_bytes(&c)) as u64, "{kind}");
        }
    }

    #[test]
    fn types_have_names() {
        for &kind in KvType::ALL {
            assert_eq!(kind.to_string().parse::<KvType>().unwrap(), kind);
        }
        assert!("q4".parse::<KvType>().unwrap_err().to_string().contains("q4"));
    }
}
