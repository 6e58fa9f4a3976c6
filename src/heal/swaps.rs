//! Counterfactual batches: statements about one name, read with another's surface.
//!
//! The base reads a statement about b. The student reads it with a in b's place, but looks up b's rows there; it must say
//! what the base says, with the first tokens of a and b exchanged where both names are one token: so it is the rows that
//! carry what a name means. A name's tokens get the rows of b as it stands within a sentence, dealt out by [`deal`].

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::batch::{Compared, Job};
use super::data::{Document, PROMPT_WEIGHT, Separator};
use super::names::{Forms, Place, deal};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// A name needs so many statements to take part.
const STATEMENTS: usize = 3;
/// At most so many statements make a row.
const ROW_STATEMENTS: usize = 8;
/// Draws for one row before giving up.
const ATTEMPTS: usize = 1000;

/// A name and what is said of it.
#[derive(Debug)]
struct Name {
    forms: Forms,
    statements: Vec<Document>,
}

/// Names that may be swapped, by group.
#[derive(Debug)]
pub struct Swaps {
    groups: Vec<Vec<Name>>,
    separator: Separator,
}

/// One statement, as the base and as the student read it.
struct Pair {
    told: Vec<u32>,
    read: Vec<u32>,
    rows: Vec<u32>,
    // Position in `told`, the same in `read`, and its weight.
    compared: Vec<(usize, usize, f32)>,
}

impl Swaps {
    /// The names of `documents` by `groups` of kinds: a name belongs to a group if a document of one of its kinds is about
    /// it, and with it belong all documents about it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a group with less than two names that are told of often enough.
    pub fn new(
        documents: &[Document],
        groups: &[Vec<String>],
        tokenizer: &Tokenizer,
        separator: Separator,
    ) -> Result<Self> {
        let mut by_name: BTreeMap<&str, Vec<&Document>> = BTreeMap::new();
        for document in documents {
            if let Some(name) = &document.name {
                by_name.entry(name).or_default().push(document);
            }
        }
        let mut all = Vec::new();
        for kinds in groups {
            let mut names = Vec::new();
            for (name, documents) in &by_name {
                let belongs = |d: &&&Document| d.kind.as_ref().is_some_and(|kind| kinds.contains(kind));
                if !documents.iter().any(|d| belongs(&d)) {
                    continue;
                }
                let forms = Forms::new(name, tokenizer)?;
                let told = documents.iter().filter(|d| !forms.places(&d.ids).is_empty());
                let statements: Vec<Document> = told.map(|d| Document::clone(d)).collect();
                if statements.len() >= STATEMENTS {
                    names.push(Name { forms, statements });
                }
            }
            if names.len() < 2 {
                return Err(Error::invalid(
                    format!("swap = {kinds:?}"),
                    format!(
                        "{} names have {STATEMENTS} statements or more, two are needed; statements are lines with \
                         `kind` and `name` that mention the name",
                        names.len()
                    ),
                ));
            }
            all.push(names);
        }
        Ok(Self { groups: all, separator })
    }

    /// `rows` rows of `length` tokens, each with several statements about one name.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no statement fits into a row.
    pub fn take(&self, rows: usize, length: usize, rng: &mut StdRng) -> Result<Job> {
        let mut job = Job::empty(rows, length);
        let mut attempts = 0;
        while job.told.len() < rows * length {
            attempts += 1;
            if attempts > ATTEMPTS * rows {
                let reason = "holds no statement of the swapped names; make `length` larger";
                return Err(Error::invalid(format!("a row of {length} tokens"), reason));
            }
            let (a, b) = self.draw(rng);
            // Where both names are one token, the base's word for b is a.
            let exchange = match (a.forms.inner(), b.forms.inner()) {
                ([a], [b]) => [*a, *b],
                _ => [0, 0],
            };
            let mut statements: Vec<&Document> =
                b.statements.iter().filter(|d| a.forms.places(&d.ids).is_empty()).collect();
            statements.shuffle(rng);
            let start = job.told.len();
            let [mut told, mut read, mut looked_up] =
                [(); 3].map(|()| self.separator.start().collect::<Vec<u32>>());
            let empty = told.len();
            for statement in statements.into_iter().take(ROW_STATEMENTS) {
                let pair = pair(statement, a, b);
                if told.len() + pair.told.len() >= length || read.len() + pair.read.len() >= length {
                    continue;
                }
                job.compared.extend(pair.compared.iter().map(|(there, here, weight)| Compared {
                    told: (start + told.len() + there) as u32,
                    read: (start + read.len() + here) as u32,
                    weight: *weight,
                    exchange,
                    next: None,
                }));
                for (line, part) in
                    [(&mut told, pair.told), (&mut read, pair.read), (&mut looked_up, pair.rows)]
                {
                    line.extend(part);
                    line.push(self.separator.token);
                }
            }
            if told.len() == empty {
                continue;
            }
            for (all, mut line) in
                [(&mut job.told, told), (&mut job.read, read), (&mut job.looked_up, looked_up)]
            {
                line.resize(length, self.separator.token);
                all.extend(line);
            }
        }
        Ok(job)
    }

    /// Two names of one group; half of the time both are one token, where a group has such.
    fn draw(&self, rng: &mut StdRng) -> (&Name, &Name) {
        let total: usize = self.groups.iter().map(Vec::len).sum();
        let mut at = rng.random_range(0..total);
        let group = self.groups.iter().find(|group| {
            let found = at < group.len();
            at = at.saturating_sub(group.len());
            found
        });
        let group = group.unwrap_or(&self.groups[0]);
        let single: Vec<&Name> = group.iter().filter(|n| n.forms.single()).collect();
        let all: Vec<&Name> = group.iter().collect();
        let among = if single.len() > 1 && rng.random_bool(0.5) { single } else { all };
        let mut two = among.choose_multiple(rng, 2);
        match (two.next(), two.next()) {
            (Some(a), Some(b)) => (a, b),
            _ => (&group[0], &group[1]),
        }
    }
}

/// A statement about `b`, read as if it were about `a`.
fn pair(statement: &Document, a: &Name, b: &Name) -> Pair {
    let told = &statement.ids;
    let mut pair = Pair { told: told.clone(), read: vec![], rows: vec![], compared: vec![] };
    let weight = |at: usize, first: usize| if at >= first { 1.0 } else { PROMPT_WEIGHT };
    let mut at = 0;
    let keep = |pair: &mut Pair, at: &mut usize, upto: usize| {
        for (here, token) in told.iter().enumerate().take(upto).skip(*at) {
            pair.compared.push((here, pair.read.len(), weight(here, statement.prompt - 1)));
            pair.read.push(*token);
            pair.rows.push(*token);
        }
        *at = upto;
    };
    for Place { at: place, length, inner } in b.forms.places(told) {
        keep(&mut pair, &mut at, place);
        if !a.forms.single() || !b.forms.single() {
            // What comes next has another first token.
            pair.compared.pop();
        }
        let name = &a.forms.0[usize::from(!inner)];
        pair.read.extend(name);
        pair.rows.extend(deal(name, b.forms.inner()));
        at += length;
        pair.compared.push((at - 1, pair.read.len() - 1, weight(at, statement.prompt)));
    }
    keep(&mut pair, &mut at, told.len());
    pair
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heal::data::rng;

    fn name(inner: &[u32], bare: &[u32], statements: &[&[u32]]) -> Name {
        let statement = |ids: &&[u32]| Document {
            ids: ids.to_vec(),
            prompt: 3,
            kind: Some("capital".into()),
            name: None,
            title: None,
        };
        Name {
            forms: Forms([inner.into(), bare.into()]),
            statements: statements.iter().map(statement).collect(),
        }
    }

    #[test]
    fn a_name_takes_the_rows_of_another() {
        let (a, b) = (name(&[50], &[150], &[]), name(&[60], &[160], &[&[1, 2, 60, 3, 4]]));
        let found = pair(&b.statements[0], &a, &b);
        assert_eq!(found.told, [1, 2, 60, 3, 4]);
        assert_eq!(found.read, [1, 2, 50, 3, 4]);
        assert_eq!(found.rows, [1, 2, 60, 3, 4]);
        assert_eq!(found.compared, [(0, 0, 0.25), (1, 1, 0.25), (2, 2, 1.0), (3, 3, 1.0), (4, 4, 1.0)]);
    }

    #[test]
    fn names_of_several_tokens_are_aligned_at_the_end() {
        let long = name(&[50, 51, 52], &[150, 51, 52], &[]);
        let short = name(&[60, 61], &[160, 61], &[&[1, 60, 61, 3]]);
        let found = pair(&short.statements[0], &long, &short);
        assert_eq!(found.read, [1, 50, 51, 52, 3]);
        assert_eq!(found.rows, [1, 50, 60, 61, 3]);
        // Nothing is compared where the name's first token comes next; its last token is.
        assert_eq!(found.compared, [(2, 3, 1.0), (3, 4, 1.0)]);
        let told = name(&[50, 51, 52], &[150, 51, 52], &[&[150, 51, 52, 3]]);
        let found = pair(&told.statements[0], &name(&[60, 61], &[160, 61], &[]), &told);
        assert_eq!((found.read, found.rows), (vec![160, 61, 3], vec![51, 52, 3]));
    }

    #[test]
    fn rows_are_full_and_compare_what_fits() {
        let groups = vec![vec![
            name(&[50], &[150], &[&[1, 50, 2], &[3, 50, 4, 5], &[6, 50, 60]]),
            name(&[60], &[160], &[&[1, 60, 7], &[3, 60, 8, 9], &[6, 60, 10]]),
        ]];
        let swaps = Swaps { groups, separator: Separator { token: 0, begins: false } };
        let job = swaps.take(3, 16, &mut rng(1, "swap", 0)).unwrap();
        assert_eq!((job.told.len(), job.read.len(), job.looked_up.len()), (48, 48, 48));
        assert_eq!(job, swaps.take(3, 16, &mut rng(1, "swap", 0)).unwrap());
        for c in &job.compared {
            let (told, read) = (job.told[c.told as usize], job.read[c.read as usize]);
            let swapped = [(50, 60), (60, 50)].contains(&(told, read));
            assert!(told == read || swapped, "{told} {read}");
            assert_eq!(job.looked_up[c.read as usize], told);
            assert!(c.exchange == [50, 60] || c.exchange == [60, 50]);
            // A statement that names both is left out.
            assert_ne!((told, job.told.get(c.told as usize + 1)), (50, Some(&60)));
        }
        assert!(swaps.take(1, 2, &mut rng(1, "swap", 0)).unwrap_err().to_string().contains("2 tokens"));

        let swaps = Swaps { separator: Separator { token: 200, begins: true }, ..swaps };
        let job = swaps.take(3, 16, &mut rng(1, "swap", 0)).unwrap();
        for part in [&job.told, &job.read, &job.looked_up] {
            assert!(part.chunks_exact(16).all(|row| row[0] == 200 && row[1] != 200), "{part:?}");
        }
        assert!(job.compared.iter().all(|c| job.told[c.told as usize] != 200));
        assert!(swaps.take(1, 2, &mut rng(1, "swap", 0)).is_err());
    }
}
