//! Figures of edits: what the rows gave, and their means.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Row;
use crate::edits::{Method, Scope};
use crate::error::{Error, Result};

/// The figures of one way to edit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// α, of swaps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f32>,
    /// The method that swaps were to use where it fits; unless given the usual one for the lengths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Where swaps apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// The layers that were edited.
    pub layers: Vec<usize>,
    /// All rows.
    #[serde(flatten)]
    pub all: Group,
    /// Rows of which the model without edits says both facts.
    pub bundle_knows: Option<Group>,
    /// Rows of which the base says both facts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_knows: Option<Group>,
    /// Rows by relation.
    pub relations: BTreeMap<String, Figures>,
}

/// The figures of some rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// All of them.
    #[serde(flatten)]
    pub figures: Figures,
    /// Those in which the subject or what it is swapped with has several tokens.
    pub several_tokens: Option<Figures>,
}

/// Means over rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Efficacy: share with P(new) > P(true).
    pub es: f64,
    /// What the edit adds to log P(new) − log P(true), in nats a token: how far it moves the answer, also where that
    /// does not tip it.
    pub shift: f64,
    /// The same as `es` for paraphrases, a mean of each row's share.
    pub ps: Option<f64>,
    /// Neighbourhood: share of the neighbours with P(their own) > P(new), a mean of each row's share.
    pub ns: Option<f64>,
    /// Their harmonic mean.
    pub s: Option<f64>,
    /// Share whose greedy answer begins with the new target.
    pub exact: f64,
    /// KL(unedited ‖ edited) a token of unrelated text, in nats.
    pub kl_unrelated: f64,
    /// The same for other text about the subject.
    pub kl_subject: Option<f64>,
    /// `ns` without any edit.
    pub ns_unedited: Option<f64>,
    /// Share of the other facts about the subject, said without the edit, that are no longer said with it.
    pub collateral: Option<f64>,
    /// Rows.
    pub n: u64,
}

/// What one row gave.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub es: bool,
    pub shift: f64,
    pub ps: Share,
    pub ns: Share,
    pub ns_unedited: Share,
    pub exact: bool,
    pub kl: f64,
    pub kl_subject: Option<f64>,
    pub lost: Share,
    pub several_tokens: bool,
    pub bundle_knows: bool,
    pub base_knows: bool,
}

/// Some of all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share {
    some: u32,
    all: u32,
}

impl Share {
    pub fn count(&mut self, one: bool) {
        self.some += u32::from(one);
        self.all += 1;
    }

    fn value(self) -> Option<f64> {
        (self.all > 0).then(|| f64::from(self.some) / f64::from(self.all))
    }
}

impl Measured {
    /// What `items`, one for each of `rows`, come to.
    pub(super) fn of(rows: &[Row], items: &[Item], layers: Vec<usize>, with_base: bool) -> Result<Self> {
        let mut by_relation: BTreeMap<String, Vec<&Item>> = BTreeMap::new();
        for (row, item) in rows.iter().zip(items) {
            by_relation.entry(row.relation.clone()).or_default().push(item);
        }
        let relations = by_relation.into_iter().filter_map(|(r, i)| Some((r, Figures::of(&i)?)));
        let group =
            |keep: &dyn Fn(&Item) -> bool| Group::of(&items.iter().filter(|i| keep(i)).collect::<Vec<_>>());
        Ok(Self {
            strength: None,
            method: None,
            scope: None,
            layers,
            all: group(&|_| true).ok_or_else(|| Error::invalid("the suite", "has no rows"))?,
            bundle_knows: group(&|i| i.bundle_knows),
            base_knows: if with_base { group(&|i| i.base_knows) } else { None },
            relations: relations.collect(),
        })
    }
}

impl Group {
    fn of(items: &[&Item]) -> Option<Self> {
        let several: Vec<&Item> = items.iter().copied().filter(|i| i.several_tokens).collect();
        Some(Self { figures: Figures::of(items)?, several_tokens: Figures::of(&several) })
    }
}

impl Figures {
    /// `None` without rows.
    fn of(items: &[&Item]) -> Option<Self> {
        let mean = |of: &dyn Fn(&Item) -> Option<f64>| {
            let values: Vec<f64> = items.iter().filter_map(|i| of(i)).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let one = |yes: bool| Some(f64::from(u8::from(yes)));
        let es = mean(&|i| one(i.es))?;
        let (ps, ns) = (mean(&|i| i.ps.value()), mean(&|i| i.ns.value()));
        let (some, all) = items.iter().fold((0, 0), |(s, a), i| (s + i.lost.some, a + i.lost.all));
        Some(Self {
            es,
            shift: mean(&|i| Some(i.shift))?,
            ps,
            ns,
            s: ps.zip(ns).map(|(ps, ns)| harmonic_mean([es, ps, ns])),
            exact: mean(&|i| one(i.exact))?,
            kl_unrelated: mean(&|i| Some(i.kl))?,
            kl_subject: mean(&|i| i.kl_subject),
            ns_unedited: mean(&|i| i.ns_unedited.value()),
            collateral: Share { some, all }.value(),
            n: items.len() as u64,
        })
    }
}

fn harmonic_mean(values: [f64; 3]) -> f64 {
    if values.contains(&0.0) {
        return 0.0;
    }
    3.0 / values.iter().map(|v| 1.0 / v).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_means_of_shares() {
        let item = |es, ps: [u32; 2], ns: [u32; 2]| {
            let share = |[some, all]: [u32; 2]| Share { some, all };
            Item {
                es,
                shift: if es { 2.0 } else { 1.0 },
                ps: share(ps),
                ns: share(ns),
                ns_unedited: share(ns),
                exact: false,
                kl: 0.5,
                kl_subject: Some(0.25),
                lost: share([1, 2]),
                several_tokens: es,
                bundle_knows: false,
                base_knows: false,
            }
        };
        let items = [item(true, [1, 2], [0, 0]), item(false, [4, 4], [1, 2])];
        let group = Group::of(&[&items[0], &items[1]]).unwrap();
        let f = group.figures;
        assert_eq!((f.es, f.shift, f.ps, f.ns, f.n), (0.5, 1.5, Some(0.75), Some(0.5), 2));
        assert!((f.s.unwrap() - 3.0 / (2.0 + 4.0 / 3.0 + 2.0)).abs() < 1e-12);
        assert_eq!((f.kl_unrelated, f.kl_subject, f.collateral, f.exact), (0.5, Some(0.25), Some(0.5), 0.0));
        let several = group.several_tokens.unwrap();
        assert_eq!((several.n, several.ns, several.s), (1, None, None));
        assert!(Group::of(&[]).is_none());
        assert_eq!(harmonic_mean([1.0, 0.0, 1.0]), 0.0);
    }
}
