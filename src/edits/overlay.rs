//! Edits at lookup: between the tables, which stay as they are, and the session.

use futures::future::try_join;

use super::assign::Gets;
use super::file::{Edit, Scope, Target};
use super::ngram::{ActiveNgrams, NgramHit};
use super::text::Text;
use crate::config::Config;
use crate::error::Result;
use crate::tables::{Origin, RowSource};

/// The edits that are switched on, checked and laid out for a model of given sizes. The default has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overlay {
    edits: Vec<Active>,
    ngrams: Vec<ActiveNgrams>,
    // Floats of one row, and of all rows of a token.
    ffn: usize,
    row_width: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Active {
    scope: Scope,
    source: Vec<u32>,
    // What each source token gets.
    gets: Vec<Gets>,
    // [rows, n_layers, ffn] where the edit brings its own rows, else empty.
    values: Vec<f32>,
    // The layers, by their place among the STEM layers.
    layers: Vec<usize>,
    strength: f32,
}

/// A token of a step that an edit changes: its place in the step, the edit, and its place in the edit's source.
type Hit<'a> = (usize, &'a Active, usize);

impl Overlay {
    /// The edits of `edits` that are on, in order; those that are off are checked too.
    ///
    /// # Errors
    /// [`Error::Edits`](crate::Error::Edits) naming the first edit that can't apply to the model.
    pub fn new(edits: &[Edit], config: &Config) -> Result<Self> {
        let (mut active, mut ngrams) = (Vec::new(), Vec::new());
        for (i, edit) in edits.iter().enumerate() {
            let is_on = edit.on && edit.strength != 0.0;
            let named = |reason: String| edit.name_in(i, reason);
            edit.check().map_err(named)?;
            match &edit.target {
                Target::Ngrams(target) => {
                    let compiled = ActiveNgrams::new(edit, target, config).map_err(named)?;
                    ngrams.extend(is_on.then_some(compiled));
                }
                _ => active.extend(is_on.then_some(Active::new(edit, config).map_err(named)?)),
            }
        }
        if active.is_empty() && ngrams.is_empty() {
            // One nothing equals another, whatever the model.
            return Ok(Self::default());
        }
        Ok(Self { edits: active, ngrams, ffn: config.intermediate_size, row_width: config.row_width() })
    }

    /// Whether nothing is switched on.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.ngrams.is_empty()
    }

    /// Whether any row that the text `tokens` looks up in `rows` is changed.
    pub fn touches(&self, tokens: &[u32], rows: &impl RowSource) -> bool {
        let ngrams = || self.ngram_hits(&[], tokens, &|id| rows.compressed(id));
        !self.hits(&[], tokens).is_empty() || !ngrams().is_empty()
    }

    /// All n-grams that end among `tokens`, which follow `before`, and whose rows are changed; those of one token in the
    /// order of the edits. `id` gives compressed ids.
    fn ngram_hits(&self, before: &[u32], tokens: &[u32], id: &impl Fn(u32) -> u32) -> Vec<NgramHit<'_>> {
        let text = Text { before, tokens };
        let mut hits = Vec::new();
        for i in 0..tokens.len() {
            for edit in &self.ngrams {
                hits.extend(edit.hits(&text, before.len() + i, i, id));
            }
        }
        hits
    }

    /// All changes of the rows of `tokens`, which follow `before`; those of one token in the order of the edits.
    fn hits(&self, before: &[u32], tokens: &[u32]) -> Vec<Hit<'_>> {
        let text = Text { before, tokens };
        let mut hits = Vec::new();
        for i in 0..tokens.len() {
            for edit in &self.edits {
                if let Some(place) = edit.place(&text, before.len() + i)
                    && edit.gets[place] != Gets::Own
                {
                    hits.push((i, edit, place));
                }
            }
        }
        hits
    }

    /// Changes `rows` `[ffn]` of STEM layer `layer` as the hit says; `targets` `[n, n_stem, ffn]` are the rows of
    /// `ids`, which ascend.
    fn apply(&self, (_, edit, place): Hit<'_>, layer: usize, row: &mut [f32], ids: &[u32], targets: &[f32]) {
        let of = |id: &u32| {
            let n = ids.binary_search(id).expect("the rows of every target were looked up");
            &targets[n * self.row_width + edit.layers[layer] * self.ffn..][..self.ffn]
        };
        match &edit.gets[place] {
            Gets::Own => {}
            Gets::Token(id) => mix(row, of(id), edit.strength),
            Gets::Mean(all) => {
                let mut mean = vec![0.0; self.ffn];
                for id in all {
                    mean.iter_mut().zip(of(id)).for_each(|(m, u)| *m += u);
                }
                mean.iter_mut().for_each(|m| *m /= all.len() as f32);
                mix(row, &mean, edit.strength);
            }
            Gets::Values(n) => {
                let at = (n * edit.layers.len() + layer) * self.ffn;
                mix(row, &edit.values[at..at + self.ffn], edit.strength);
            }
        }
    }
}

/// U + α (U_target − U); the target itself, bit by bit, at α = 1.
pub(super) fn mix(row: &mut [f32], target: &[f32], strength: f32) {
    if strength == 1.0 {
        row.copy_from_slice(target);
        return;
    }
    for (u, target) in row.iter_mut().zip(target) {
        *u += strength * (target - *u);
    }
}

impl Active {
    fn new(edit: &Edit, config: &Config) -> std::result::Result<Self, String> {
        let stem = &config.stem_layers;
        let layers: Vec<usize> = match &edit.layers {
            None => (0..stem.len()).collect(),
            Some(layers) => {
                let index = |layer: &usize| {
                    config.stem_index(*layer).ok_or_else(|| {
                        format!("layer {layer} has no rows; the model's STEM layers are {stem:?}")
                    })
                };
                layers.iter().map(index).collect::<std::result::Result<_, _>>()?
            }
        };
        if layers.is_empty() {
            return Err("the model has no STEM layers".into());
        }
        let gets = edit.preview();
        let targets = gets.iter().flat_map(Gets::tokens);
        if let Some(id) = edit.source.iter().chain(targets).find(|id| **id as usize >= config.vocab_size) {
            return Err(format!("token {id}; the vocabulary has {}", config.vocab_size));
        }
        let values = match &edit.target {
            Target::Tokens(_) | Target::Ngrams(_) => Vec::new(),
            Target::Values(values) => {
                let expected = values.rows() * layers.len() * config.intermediate_size;
                if values.numbers().len() != expected {
                    return Err(format!("{} values, expected {expected}", values.numbers().len()));
                }
                values.numbers().to_vec()
            }
        };
        Ok(Self {
            scope: edit.scope.clone(),
            source: edit.source.clone(),
            gets,
            values,
            layers,
            strength: edit.strength,
        })
    }

    /// The place in the source of the token at position `at`, if the edit applies there.
    fn place(&self, text: &Text<'_>, at: usize) -> Option<usize> {
        match &self.scope {
            Scope::Row => self.source.iter().rposition(|id| *id == text.token(at)),
            Scope::Phrase => (0..self.source.len()).rev().find(|i| text.ends_with(at, &self.source[..=*i])),
            Scope::Position(starts) => starts.iter().find_map(|start| {
                let place = at.checked_sub(*start)?;
                text.ends_with(at, self.source.get(..=place)?).then_some(place)
            }),
        }
    }
}

impl Gets {
    /// The tokens whose rows are looked up.
    fn tokens(&self) -> &[u32] {
        match self {
            Self::Own | Self::Values(_) => &[],
            Self::Token(id) => std::slice::from_ref(id),
            Self::Mean(ids) => ids,
        }
    }
}

/// Rows with edits laid over them. It fetches the rows of target tokens through the same inner source.
#[derive(Debug)]
pub struct Edited<R> {
    inner: R,
    overlay: Overlay,
}

impl<R> Edited<R> {
    /// `inner`, with no edits yet.
    pub fn new(inner: R) -> Self {
        Self { inner, overlay: Overlay::default() }
    }

    /// The rows below.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// The rows below, to change what they give: see [`set_overlay`](Self::set_overlay).
    pub fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// What lies over them.
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Lays `overlay` over the rows instead of what lay there. What a KV cache holds then comes of other rows:
    /// [`Session::rows_mut`](crate::session::Session::rows_mut) forgets it.
    pub fn set_overlay(&mut self, overlay: Overlay) {
        self.overlay = overlay;
    }
}

impl<R: RowSource> RowSource for Edited<R> {
    async fn gather_traced(
        &self,
        before: &[u32],
        tokens: &[u32],
        out: &mut Vec<f32>,
        origins: &mut Vec<Origin>,
    ) -> Result<()> {
        let overlay = &self.overlay;
        if overlay.is_empty() {
            return self.inner.gather_traced(before, tokens, out, origins).await;
        }
        let hits = overlay.hits(before, tokens);
        let ngrams = overlay.ngram_hits(before, tokens, &|id| self.inner.compressed(id));
        let mut contexts: Vec<&[u32]> = ngrams.iter().filter_map(NgramHit::target).collect();
        contexts.sort_unstable();
        contexts.dedup();
        let gets = hits.iter().flat_map(|(_, edit, place)| edit.gets[*place].tokens());
        let mut ids: Vec<u32> = gets.copied().collect();
        ids.sort_unstable();
        ids.dedup();
        let (start, first) = (out.len(), origins.len());
        let (mut targets, mut ends) = (Vec::new(), Vec::new());
        let own = self.inner.gather_traced(before, tokens, out, origins);
        let others = async {
            if !ids.is_empty() {
                self.inner.gather_alone(&ids, &mut targets).await?;
            }
            for context in &contexts {
                let (last, before) = context.split_last().expect("an n-gram has tokens");
                self.inner.gather_at(before, &[*last], &mut ends).await?;
            }
            Ok(())
        };
        if let Err(error) = try_join(own, others).await {
            out.truncate(start);
            origins.truncate(first);
            return Err(error);
        }
        for hit in hits {
            let (i, edit, _) = hit;
            if let Some(Origin { edited, .. }) = origins.get_mut(first + i) {
                edited.extend(&edit.layers);
                edited.sort_unstable();
                edited.dedup();
            }
            let rows = &mut out[start + i * overlay.row_width..][..overlay.row_width];
            for (layer, stem) in edit.layers.iter().enumerate() {
                let row = &mut rows[stem * overlay.ffn..][..overlay.ffn];
                overlay.apply(hit, layer, row, &ids, &targets);
            }
        }
        for hit in ngrams {
            if let Some(Origin { engram, .. }) = origins.get_mut(first + hit.token) {
                let layers = hit.edit.layers.iter();
                layers.for_each(|layer| engram.get_mut(*layer).into_iter().for_each(|o| o.edited = true));
            }
            let row = &mut out[start + hit.token * overlay.row_width..][..overlay.row_width];
            let target = hit.target().map(|context| {
                let at = contexts.binary_search(&context).expect("the rows of every target were looked up");
                &ends[at * overlay.row_width..][..overlay.row_width]
            });
            hit.apply(row, target);
        }
        Ok(())
    }

    fn compressed(&self, token: u32) -> u32 {
        self.inner.compressed(token)
    }

    /// Passes on `tokens`, with the targets of all edits that may change one of them.
    fn prefetch(&self, tokens: &[u32]) {
        let edits = self.overlay.edits.iter().filter(|e| e.source.iter().any(|id| tokens.contains(id)));
        let targets = edits.flat_map(|e| &e.gets).flat_map(Gets::tokens);
        let all: Vec<u32> = tokens.iter().chain(targets).copied().collect();
        self.inner.prefetch(&all);
    }

    fn prefetch_at(&self, before: &[u32], tokens: &[u32]) {
        self.inner.prefetch_at(before, tokens);
        if self.overlay.is_empty() {
            return;
        }
        self.prefetch(tokens);
        let hits = self.overlay.ngram_hits(before, tokens, &|id| self.inner.compressed(id));
        for (last, before) in hits.iter().filter_map(|hit| hit.target()?.split_last()) {
            self.inner.prefetch_at(before, &[*last]);
        }
    }
}

#[cfg(all(test, feature = "native"))]
mod tests {
    use std::sync::Mutex;

    use pollster::block_on;

    use super::*;
    use crate::bundle::random;
    use crate::config::tests::tiny;
    use crate::edits::file::tests::swap;
    use crate::edits::{Edits, Method, Recipe, ValueType, Values};
    use crate::error::Error;
    use crate::tables::MemoryRows;

    /// Rows in memory that note what is asked of them.
    struct Noted {
        rows: MemoryRows,
        prefetched: Mutex<Vec<u32>>,
    }

    impl RowSource for Noted {
        async fn gather_traced(
            &self,
            _: &[u32],
            tokens: &[u32],
            out: &mut Vec<f32>,
            _: &mut Vec<Origin>,
        ) -> Result<()> {
            self.rows.gather(tokens, out).await
        }

        fn prefetch(&self, tokens: &[u32]) {
            self.prefetched.lock().unwrap().extend(tokens);
        }
    }

    fn config() -> Config {
        Config { stem_layers: vec![0, 2], ..tiny() }
    }

    fn edited(edits: &[Edit]) -> Edited<Noted> {
        let config = config();
        let rows = (0..config.vocab_size as u32).flat_map(|t| random::rows(&config, t, 5)).collect();
        let rows = MemoryRows { rows, row_width: config.row_width() };
        let mut edited = Edited::new(Noted { rows, prefetched: Mutex::default() });
        edited.set_overlay(Overlay::new(edits, &config).unwrap());
        edited
    }

    fn gather(rows: &impl RowSource, before: &[u32], tokens: &[u32]) -> Vec<f32> {
        let mut out = vec![7.0];
        block_on(rows.gather_at(before, tokens, &mut out)).unwrap();
        assert_eq!(out[0], 7.0);
        out.split_off(1)
    }

    /// The rows of `tokens` without edits.
    fn plain(tokens: &[u32]) -> Vec<f32> {
        gather(&edited(&[]), &[], tokens)
    }

    /// What the rows of `text` are, token by token: those of these tokens.
    fn assert_rows_of(edit: &Edit, text: &[u32], expected: &[u32]) {
        let edited = edited(std::slice::from_ref(edit));
        assert_eq!(gather(&edited, &[], text), plain(expected), "{text:?}");
        // In any chunks.
        for cut in 1..text.len() {
            let (before, after) = text.split_at(cut);
            assert_eq!(gather(&edited, before, after), plain(&expected[cut..]), "{text:?} from {cut}");
        }
        assert_eq!(edited.overlay().touches(text, &edited), text != expected);
    }

    #[test]
    fn scopes_say_where() {
        let edit = |scope| Edit { scope, ..swap(&[1, 2], &[8, 9], Method::OneToOne) };
        let text = [1, 2, 5, 2, 1, 1, 2];
        assert_rows_of(&edit(Scope::Row), &text, &[8, 9, 5, 9, 8, 8, 9]);
        // The second token of the entity only after the first.
        assert_rows_of(&edit(Scope::Phrase), &text, &[8, 9, 5, 2, 8, 8, 9]);
        assert_rows_of(&edit(Scope::Position(vec![5])), &text, &[1, 2, 5, 2, 1, 8, 9]);
        // No entity begins at 3, and none ends at 4.
        assert_rows_of(&edit(Scope::Position(vec![3, 4])), &text, &[1, 2, 5, 2, 8, 1, 2]);
        let tail = Edit { scope: Scope::Phrase, ..swap(&[1, 2], &[9], Method::Pad) };
        assert_rows_of(&tail, &text, &[1, 9, 5, 2, 1, 1, 9]);
        let twice = |scope| Edit { scope, ..swap(&[1, 1], &[8, 9], Method::OneToOne) };
        assert_rows_of(&twice(Scope::Row), &[1, 5, 1, 1], &[9, 5, 9, 9]);
        assert_rows_of(&twice(Scope::Phrase), &[1, 5, 1, 1], &[8, 5, 8, 9]);
    }

    #[test]
    fn off_is_untouched() {
        let off = Edit { on: false, ..swap(&[1], &[2], Method::OneToOne) };
        let none = Edit { strength: 0.0, ..swap(&[3], &[2], Method::OneToOne) };
        assert_rows_of(&off, &[1, 3], &[1, 3]);
        assert_rows_of(&none, &[1, 3], &[1, 3]);
        assert_eq!(edited(&[off, none]).overlay(), &Overlay::default());
        assert!(Overlay::default().is_empty());
    }

    #[test]
    fn strength_and_layers_say_how_much() {
        let (own, target) = (plain(&[1]), plain(&[2]));
        let ffn = config().intermediate_size;
        let edit = Edit { strength: 1.5, layers: Some(vec![2]), ..swap(&[1], &[2], Method::OneToOne) };
        let found = gather(&edited(&[edit]), &[], &[1]);
        assert_eq!(found[..ffn], own[..ffn]);
        for ((f, u), t) in found[ffn..].iter().zip(&own[ffn..]).zip(&target[ffn..]) {
            assert!((f - (u + 1.5 * (t - u))).abs() < 1e-6);
        }
    }

    #[test]
    fn edits_come_one_after_the_other() {
        // An exchange: targets are the table's rows, not those that other edits made.
        let exchange = [swap(&[1], &[2], Method::OneToOne), swap(&[2], &[1], Method::OneToOne)];
        assert_eq!(gather(&edited(&exchange), &[], &[1, 2]), plain(&[2, 1]));
        // The second starts from what the first left.
        let half = Edit { strength: 0.5, ..swap(&[1], &[3], Method::OneToOne) };
        let found = gather(&edited(&[swap(&[1], &[2], Method::OneToOne), half]), &[], &[1]);
        for ((f, a), b) in found.iter().zip(plain(&[2])).zip(plain(&[3])) {
            assert!((f - (a + b) / 2.0).abs() < 1e-6);
        }
    }

    #[test]
    fn means_and_values_are_rows_too() {
        let found = gather(&edited(&[swap(&[1, 2], &[8, 9, 9], Method::Average)]), &[], &[2, 5]);
        let width = config().row_width();
        for ((f, a), b) in found[..width].iter().zip(plain(&[8])).zip(plain(&[9])) {
            assert!((f - (a + 2.0 * b) / 3.0).abs() < 1e-6);
        }
        assert_eq!(found[width..], plain(&[5]));

        let ffn = config().intermediate_size;
        let numbers: Vec<f32> = (0..2 * ffn).map(|i| i as f32 / 64.0).collect();
        let values = Edit {
            target: Target::Values(Values::new(ValueType::F16, 2, numbers.clone())),
            layers: Some(vec![2]),
            ..swap(&[1, 2], &[0], Method::Pad)
        };
        let found = gather(&edited(&[values]), &[], &[2, 1]);
        let own = plain(&[2, 1]);
        assert_eq!(found[..ffn], own[..ffn]);
        assert_eq!(found[ffn..width], numbers[ffn..]);
        assert_eq!(found[width + ffn..], numbers[..ffn]);
    }

    #[test]
    fn an_error_leaves_the_output_alone() {
        let mut out = vec![7.0];
        let edited = edited(&[swap(&[1], &[2], Method::OneToOne)]);
        assert!(block_on(edited.gather(&[1, 300], &mut out)).is_err());
        assert_eq!(out, [7.0]);
    }

    #[test]
    fn prefetch_brings_targets_along() {
        let edits = [swap(&[1, 2], &[8, 9], Method::OneToOne), swap(&[3], &[4], Method::OneToOne)];
        let edited = edited(&edits);
        edited.prefetch(&[5, 2]);
        assert_eq!(*edited.inner().prefetched.lock().unwrap(), [5, 2, 8, 9]);
    }

    #[test]
    fn what_the_model_lacks_is_refused() {
        let says = |edit: Edit| {
            let mut edits = Edits::new("hash".into());
            edits.edits.push(edit);
            edits.overlay("hash", &config()).unwrap_err().to_string()
        };
        let good = swap(&[1], &[2], Method::OneToOne);
        assert!(says(Edit { layers: Some(vec![1]), ..good.clone() }).contains("layer 1 has no rows"));
        assert!(says(Edit { on: false, source: vec![300], ..good.clone() }).contains("token 300"));
        assert!(says(swap(&[1], &[300], Method::OneToOne)).contains("token 300"));
        let pad = Recipe { ids: vec![2], method: Method::Pad, pad: Some(301) };
        assert!(
            says(Edit { source: vec![1, 2], target: Target::Tokens(pad), ..good.clone() }).contains("301")
        );
        let few = Target::Values(Values::new(ValueType::F32, 1, vec![0.0; 319]));
        assert!(says(Edit { target: few, ..good.clone() }).contains("319 values, expected 320"));
        let error = Edits::new("another".into()).overlay("hash", &config()).unwrap_err();
        assert!(matches!(&error, Error::Edits(reason) if reason.contains("another")), "{error}");
        let dense = Config { stem_layers: vec![], ..tiny() };
        assert!(Overlay::new(&[good], &dense).unwrap_err().to_string().contains("no STEM layers"));
    }
}
