//! Which source token gets which row: what a preview shows, and what the overlay does.

use serde::Serialize;

use super::file::{Edit, Method, Target};

/// What a source token gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gets {
    /// Nothing: it keeps its own rows.
    Own,
    /// The rows of this token.
    Token(u32),
    /// The mean of the rows of these tokens.
    Mean(Vec<u32>),
    /// The `n`-th of the rows that the edit brings along.
    Values(usize),
}

impl Edit {
    /// What each source token gets, in order. For an edit whose method does not fit its lengths, which no checked
    /// file holds, the tokens left over keep their own rows.
    pub fn preview(&self) -> Vec<Gets> {
        let sources = self.source.len();
        let recipe = match &self.target {
            Target::Values(values) => {
                let rows = values.rows().min(sources);
                let own = std::iter::repeat_n(Gets::Own, sources - rows);
                return own.chain((0..rows).map(Gets::Values)).collect();
            }
            // The rows of its tokens stay.
            Target::Ngrams(_) => return vec![Gets::Own; sources],
            Target::Tokens(recipe) => recipe,
        };
        let ids = &recipe.ids;
        let rows: Vec<Gets> = match recipe.method {
            Method::Average => return vec![Gets::Mean(ids.clone()); sources],
            Method::OneToOne | Method::Pad => ids.iter().copied().map(Gets::Token).collect(),
            Method::Copy => {
                let times = sources / ids.len().max(1);
                ids.iter().flat_map(|id| std::iter::repeat_n(Gets::Token(*id), times)).collect()
            }
            Method::Subset => {
                ids[ids.len().saturating_sub(sources)..].iter().copied().map(Gets::Token).collect()
            }
        };
        let padding = recipe.pad.map_or(Gets::Own, Gets::Token);
        let padding = std::iter::repeat_n(padding, sources.saturating_sub(rows.len()));
        padding.chain(rows).take(sources).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Gets::{Mean, Own, Token, Values as Value};
    use super::*;
    use crate::edits::file::tests::swap;
    use crate::edits::{Recipe, ValueType, Values};

    #[test]
    fn rows_are_dealt_out_by_method() {
        let dealt = |sources: u32, ids: &[u32], method| {
            swap(&(0..sources).collect::<Vec<_>>(), ids, method).preview()
        };
        assert_eq!(dealt(2, &[8, 9], Method::OneToOne), [Token(8), Token(9)]);
        assert_eq!(dealt(3, &[9], Method::Pad), [Own, Own, Token(9)]);
        assert_eq!(dealt(2, &[8, 9], Method::Pad), [Token(8), Token(9)]);
        // ⌊5 / 2⌋ = 2 of each, and one left over.
        assert_eq!(dealt(5, &[8, 9], Method::Copy), [Own, Token(8), Token(8), Token(9), Token(9)]);
        assert_eq!(dealt(2, &[7, 8, 9], Method::Subset), [Token(8), Token(9)]);
        assert_eq!(dealt(2, &[7, 8, 9], Method::Average), vec![Mean(vec![7, 8, 9]); 2]);

        let mut padded = swap(&[1, 2, 3], &[9], Method::Pad);
        padded.target = Target::Tokens(Recipe { ids: vec![9], method: Method::Pad, pad: Some(0) });
        assert_eq!(padded.preview(), [Token(0), Token(0), Token(9)]);
        padded.target = Target::Values(Values::new(ValueType::F32, 2, vec![]));
        assert_eq!(padded.preview(), [Own, Value(0), Value(1)]);
    }

    #[test]
    fn the_method_follows_the_lengths_unless_another_fits() {
        assert_eq!(Method::choose(None, 1, 1), Method::OneToOne);
        assert_eq!(Method::choose(None, 3, 1), Method::Pad);
        assert_eq!(Method::choose(None, 1, 3), Method::Subset);
        assert_eq!(Method::choose(Some(Method::Copy), 3, 1), Method::Copy);
        assert_eq!(Method::choose(Some(Method::Copy), 1, 3), Method::Subset);
        assert_eq!(Method::choose(Some(Method::Average), 1, 1), Method::Average);
    }
}
