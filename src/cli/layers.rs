//! Lists of layers, such as `3-12,15`.

use std::str::FromStr;

use anyhow::{Result, bail};

/// No model has more.
const MOST: usize = 1 << 10;

/// Layers from 0, ascending, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers(Vec<usize>);

impl Layers {
    /// As from a string, or `none`.
    pub fn or_none(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(Self(Vec::new())) } else { text.parse() }
    }

    /// The layers, of a model that has `n`.
    pub fn of(&self, n: usize) -> Result<Vec<usize>> {
        match self.0.last() {
            Some(last) if *last >= n => bail!("there is no layer {last}; the layers are 0 to {}", n - 1),
            _ => Ok(self.0.clone()),
        }
    }
}

impl From<Layers> for Vec<usize> {
    fn from(layers: Layers) -> Self {
        layers.0
    }
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut layers = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |s: &str| s.trim().parse::<usize>().ok().filter(|n| *n < MOST);
            match number(first).zip(number(last)) {
                Some((first, last)) if first <= last => layers.extend(first..=last),
                _ => return Err(format!("`{part}` is no layer and no range of layers, such as 3-12")),
            }
        }
        layers.sort_unstable();
        layers.dedup();
        Ok(Self(layers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read() {
        let read = |text: &str| text.parse::<Layers>().map(Vec::from);
        assert_eq!(read("5,3-4, 4").unwrap(), [3, 4, 5]);
        for wrong in ["", "x", "4-3", "-1", "1-99999999999", "none"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        let within = |text| Layers::or_none(text).unwrap().of(30);
        assert_eq!(within("28-29").unwrap(), [28, 29]);
        assert!(within("none").unwrap().is_empty());
        assert!(within("29-30").unwrap_err().to_string().contains("0 to 29"));
    }
}
