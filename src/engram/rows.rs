//! The rows of a model with Engram layers: those of the STEM table, then those that hashes find.

use futures::future::try_join;

use super::hash::Hasher;
use crate::error::Result;
use crate::tables::{EngramOrigin, Origin, RowSource};

/// STEM rows and, for a model that has them, Engram rows: `[n, stem_width + engram_width]`.
#[derive(Debug)]
pub struct WithEngram<S, E> {
    stem: S,
    // Values of the STEM rows of a token.
    stem_width: usize,
    engram: Option<Memory<E>>,
}

/// The Engram table: a row source whose "tokens" are records.
#[derive(Debug)]
struct Memory<E> {
    hasher: Hasher,
    rows: E,
}

impl<S, E> WithEngram<S, E> {
    /// A model's rows: `stem` gives `stem_width` values a token, and `engram` finds head rows in its source by the
    /// numbers of records.
    pub fn new(stem: S, stem_width: usize, engram: Option<(Hasher, E)>) -> Self {
        Self { stem, stem_width, engram: engram.map(|(hasher, rows)| Memory { hasher, rows }) }
    }

    /// The STEM rows.
    pub fn stem(&self) -> &S {
        &self.stem
    }

    /// Moves `n` STEM rows, which lie side by side from `start` on, apart by `width` values. In place, since those of a prompt
    /// are megabytes.
    fn spread(&self, out: &mut Vec<f32>, start: usize, n: usize, width: usize) {
        let (stem, all) = (self.stem_width, self.stem_width + width);
        out.resize(start + n * all, 0.0);
        for i in (1..n).rev() {
            out.copy_within(start + i * stem..start + (i + 1) * stem, start + i * all);
        }
    }

    /// The Engram table, if there is one.
    pub fn engram(&self) -> Option<&E> {
        self.engram.as_ref().map(|memory| &memory.rows)
    }
}

impl<S: RowSource, E: RowSource> RowSource for WithEngram<S, E> {
    async fn gather_traced(
        &self,
        before: &[u32],
        tokens: &[u32],
        out: &mut Vec<f32>,
        origins: &mut Vec<Origin>,
    ) -> Result<()> {
        let Some(Memory { hasher, rows }) = &self.engram else {
            return self.stem.gather_traced(before, tokens, out, origins).await;
        };
        let records = hasher.records(before, tokens)?;
        let (mut engram, mut found) = (Vec::new(), Vec::new());
        let (start, first) = (out.len(), origins.len());
        let own = self.stem.gather_traced(before, tokens, out, origins);
        if let Err(error) = try_join(own, rows.gather_traced(&[], &records, &mut engram, &mut found)).await {
            out.truncate(start);
            origins.truncate(first);
            return Err(error);
        }
        if found.len() == records.len() {
            // There are none yet for a model without STEM rows.
            origins.resize(first + tokens.len(), Origin::default());
            let heads = hasher.engram().heads();
            let of_token = found.chunks_exact(heads * hasher.engram().layers.len());
            for (origin, found) in origins[first..].iter_mut().zip(of_token) {
                origin.engram = found.chunks_exact(heads).filter_map(EngramOrigin::of).collect();
            }
        }
        let width = hasher.engram().row_width();
        self.spread(out, start, tokens.len(), width);
        let spread = out[start..].chunks_exact_mut(self.stem_width + width);
        for (row, engram) in spread.zip(engram.chunks_exact(width)) {
            row[self.stem_width..].copy_from_slice(engram);
        }
        Ok(())
    }

    /// Zeros stand for the Engram rows.
    async fn gather_alone(&self, tokens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let Some(Memory { hasher, .. }) = &self.engram else {
            return self.stem.gather_alone(tokens, out).await;
        };
        let start = out.len();
        self.stem.gather_alone(tokens, out).await?;
        let width = hasher.engram().row_width();
        self.spread(out, start, tokens.len(), width);
        for row in out[start..].chunks_exact_mut(self.stem_width + width) {
            row[self.stem_width..].fill(0.0);
        }
        Ok(())
    }

    fn compressed(&self, token: u32) -> u32 {
        self.engram.as_ref().and_then(|memory| memory.hasher.compressed(token)).unwrap_or(token)
    }

    fn prefetch(&self, tokens: &[u32]) {
        self.stem.prefetch(tokens);
    }

    fn prefetch_at(&self, before: &[u32], tokens: &[u32]) {
        self.stem.prefetch_at(before, tokens);
        if let Some(Memory { hasher, rows }) = &self.engram {
            // The lookup itself tells of a token that doesn't exist.
            if let Ok(records) = hasher.records(before, tokens) {
                rows.prefetch(&records);
            }
        }
    }
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use std::sync::Mutex;

    use pollster::block_on;

    use super::*;
    use crate::engram::config::tests::tiny_engram;
    use crate::error::Error;
    use crate::tables::{MemoryRows, Tier};

    /// Rows in memory that note what is asked of them.
    struct Noted(MemoryRows, Mutex<Vec<u32>>);

    impl RowSource for Noted {
        async fn gather_traced(
            &self,
            _: &[u32],
            tokens: &[u32],
            out: &mut Vec<f32>,
            _: &mut Vec<Origin>,
        ) -> Result<()> {
            self.1.lock().unwrap().extend(tokens);
            self.0.gather(tokens, out).await
        }

        fn prefetch(&self, tokens: &[u32]) {
            self.1.lock().unwrap().extend(tokens);
        }
    }

    fn noted(records: usize, row_width: usize) -> Noted {
        let rows = (0..records * row_width).map(|i| (i as f32 * 0.7).sin()).collect();
        Noted(MemoryRows { rows, row_width }, Mutex::default())
    }

    fn rows() -> WithEngram<Noted, Noted> {
        let engram = tiny_engram();
        let hasher = Hasher::new(&engram, (0..300).map(|t| t % 290).collect()).unwrap();
        WithEngram::new(noted(300, 5), 5, Some((hasher, noted(engram.records(), engram.head_width))))
    }

    fn gather(rows: &WithEngram<Noted, Noted>, before: &[u32], tokens: &[u32]) -> Vec<f32> {
        let mut out = vec![7.0];
        block_on(rows.gather_at(before, tokens, &mut out)).unwrap();
        out.split_off(1)
    }

    #[test]
    fn both_blocks_stand_side_by_side_in_any_pieces() {
        let rows = rows();
        let tokens = [5, 250, 5, 17, 5, 250, 5];
        let whole = gather(&rows, &[], &tokens);
        assert_eq!(whole.len(), 7 * (5 + 192));
        let records = rows.engram.as_ref().unwrap().hasher.records(&[], &tokens).unwrap();
        for (i, token) in tokens.iter().enumerate() {
            let row = &whole[i * 197..(i + 1) * 197];
            assert_eq!(row[..5], rows.stem.0.rows[*token as usize * 5..][..5]);
            for (head, record) in records[i * 8..(i + 1) * 8].iter().enumerate() {
                assert_eq!(
                    row[5 + head * 24..][..24],
                    rows.engram().unwrap().0.rows[*record as usize * 24..][..24]
                );
            }
        }
        for cut in 1..tokens.len() {
            assert_eq!(gather(&rows, &tokens[..cut], &tokens[cut..]), whole[cut * 197..], "{cut}");
        }
    }

    /// Rows in memory of which some came from farther away.
    struct Far(Noted);

    impl RowSource for Far {
        async fn gather_traced(
            &self,
            before: &[u32],
            tokens: &[u32],
            out: &mut Vec<f32>,
            origins: &mut Vec<Origin>,
        ) -> Result<()> {
            let tier = |id: &u32| if id.is_multiple_of(3) { Tier::Stored } else { Tier::Memory };
            origins.extend(tokens.iter().map(|id| Origin {
                tier: Some(tier(id)),
                ms: f64::from(*id),
                ..Origin::default()
            }));
            self.0.gather_traced(before, tokens, out, &mut Vec::new()).await
        }
    }

    #[test]
    fn origins_tell_of_both_tables() {
        let engram = tiny_engram();
        let hasher = Hasher::new(&engram, (0..300).map(|t| t % 290).collect()).unwrap();
        let heads = Far(noted(engram.records(), engram.head_width));
        let rows = WithEngram::new(Far(noted(300, 5)), 5, Some((hasher.clone(), heads)));
        let (tokens, mut out, mut origins) = ([6, 250], Vec::new(), Vec::new());
        block_on(rows.gather_traced(&[9], &tokens, &mut out, &mut origins)).unwrap();
        assert_eq!(
            origins.iter().map(|o| o.tier).collect::<Vec<_>>(),
            [Some(Tier::Stored), Some(Tier::Memory)]
        );
        let records = hasher.records(&[9], &tokens).unwrap();
        for (origin, records) in origins.iter().zip(records.chunks(8)) {
            assert_eq!(origin.engram.len(), 2);
            for (found, records) in origin.engram.iter().zip(records.chunks(4)) {
                let far = records.iter().any(|r| r.is_multiple_of(3));
                assert_eq!(found.tier, if far { Tier::Stored } else { Tier::Memory });
                assert_eq!(found.ms, f64::from(*records.iter().max().unwrap()));
            }
        }
        // Without STEM rows there are those of the n-grams alone; of rows that can't tell there is nothing.
        let heads = Far(noted(engram.records(), engram.head_width));
        let alone = WithEngram::new(None::<MemoryRows>, 0, Some((hasher, heads)));
        let mut only = Vec::new();
        block_on(alone.gather_traced(&[9], &tokens, &mut Vec::new(), &mut only)).unwrap();
        assert_eq!(
            only.iter().map(|o| (o.tier, &o.engram)).collect::<Vec<_>>(),
            [(None, &origins[0].engram), (None, &origins[1].engram)]
        );
        let mut none = Vec::new();
        block_on(self::rows().gather_traced(&[9], &tokens, &mut Vec::new(), &mut none)).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn tokens_alone_have_stem_rows_alone() {
        let rows = rows();
        let mut out = Vec::new();
        block_on(rows.gather_alone(&[3, 4], &mut out)).unwrap();
        let whole = gather(&rows, &[], &[3, 4]);
        for (alone, whole) in out.chunks(197).zip(whole.chunks(197)) {
            assert_eq!(alone[..5], whole[..5]);
            assert!(alone[5..].iter().all(|v| *v == 0.0));
        }
        assert_eq!(out.len(), whole.len());
    }

    #[test]
    fn prefetch_asks_for_what_the_lookup_will() {
        let rows = rows();
        let asked = || rows.engram().unwrap().1.lock().unwrap().split_off(0);
        rows.prefetch_at(&[1, 2], &[3, 4]);
        let prefetched = asked();
        gather(&rows, &[1, 2], &[3, 4]);
        assert_eq!((prefetched.len(), prefetched), (16, asked()));
        rows.prefetch(&[9]);
        assert!(asked().is_empty());
    }

    #[test]
    fn an_error_leaves_the_output_alone() {
        let mut out = vec![7.0];
        let found = block_on(rows().gather_at(&[], &[1, 300], &mut out));
        assert!(matches!(found, Err(Error::Invalid { .. })));
        assert_eq!(out, [7.0]);
    }
}
