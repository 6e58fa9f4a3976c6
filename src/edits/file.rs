//! What an edit says, and the file that holds a list of them. `docs/edits.md` describes the file for its readers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use half::f16;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::edits::Overlay;
use crate::error::{Error, Result};

/// The newest version of the file, which only edits of n-grams need. Version 1 is the same without these; it is written
/// where they are not needed, and read as well.
pub const VERSION: u32 = 2;
/// A larger file is not read.
pub const MAX_FILE_BYTES: usize = 16 << 20;
/// At most so many edits in a file.
pub const MAX_EDITS: usize = 256;
/// An entity has at most so many tokens.
pub const MAX_ENTITY_TOKENS: usize = 64;
/// A position edit names at most so many occurrences.
pub const MAX_POSITIONS: usize = 256;
/// A label has at most so many characters.
pub const MAX_LABEL_CHARS: usize = 200;
/// The largest strength; beyond 1 an edit overshoots its target. Also the largest factor.
pub const MAX_STRENGTH: f32 = 4.0;
const FORMAT: &str = "xylem-edits";

/// A list of edits for one model. They apply in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edits {
    format: String,
    version: u32,
    /// [`Manifest::hash`](crate::bundle::Manifest::hash) of the model that they were made for.
    pub model: String,
    /// The edits.
    pub edits: Vec<Edit>,
}

/// One edit: U' = U + α (U_target − U) for the rows U of some tokens in some layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// Whether it applies.
    pub on: bool,
    /// What to call it.
    pub label: String,
    /// Where it applies.
    pub scope: Scope,
    /// The tokens of the entity whose rows are changed.
    pub source: Vec<u32>,
    /// What they are changed toward.
    pub target: Target,
    /// α: 0 changes nothing, 1 replaces.
    pub strength: f32,
    /// The STEM layers to change, of an edit of n-grams the Engram layers, by their number in the model, ascending; all
    /// unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

/// Where an edit applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// At every occurrence of each source token, whatever stands around it. Of a token that the source has twice,
    /// the later place counts.
    Row,
    /// At a source token only where the source tokens before it stand before it in the text too. So the first
    /// one is changed everywhere, but the last one only where the whole entity is written.
    Phrase,
    /// Only at the occurrences that begin at these positions of the text; elsewhere, and if other tokens stand
    /// there, nothing changes.
    Position(Vec<usize>),
}

/// What rows are changed toward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The rows of other tokens, as the table has them: no other edit changes these.
    Tokens(Recipe),
    /// Rows of their own.
    Values(Values),
    /// Not the rows of the tokens, but those that Engram layers find for the n-grams of these tokens.
    Ngrams(NgramTarget),
}

/// What the rows of n-grams are changed toward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NgramTarget {
    /// The rows of the n-grams of these tokens, as the table has them, counted from the end: see [`Edit::ngrams`].
    Ids(Vec<u32>),
    /// Their own rows times this: 0 takes them away, 2 doubles them.
    Factor(f32),
}

/// Rows of the table, and which source token gets which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The tokens of the entity that gives its rows.
    pub ids: Vec<u32>,
    /// How they are dealt out.
    pub method: Method,
    /// With [`Method::Pad`] and [`Method::Copy`]: the token whose rows go to the leading source tokens; unless
    /// given, these keep their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<u32>,
}

/// How the rows of `n_t` target tokens are dealt out to `n_s` source tokens (source: "STEM: Scaling Transformers
/// with Embedding Modules", arXiv 2601.10639, section 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// `n_s = n_t`: each source token gets the row of its counterpart.
    OneToOne,
    /// `n_s ≥ n_t`: the last `n_t` source tokens get the target's rows; those before them are padding.
    Pad,
    /// `n_s ≥ n_t`: each target row goes to ⌊n_s / n_t⌋ source tokens in turn; what is left over leads and is
    /// padding.
    Copy,
    /// `n_s ≤ n_t`: the last `n_s` of the target's rows. For another choice name just those tokens, one to one.
    Subset,
    /// Every source token gets the mean of the target's rows.
    Average,
}

impl Method {
    /// Whether it can deal `targets` rows out to `sources` tokens.
    pub fn fits(self, sources: usize, targets: usize) -> bool {
        match self {
            Self::OneToOne => sources == targets,
            Self::Pad | Self::Copy => sources >= targets,
            Self::Subset => sources <= targets,
            Self::Average => true,
        }
    }

    /// `wanted` if it fits, else the usual one for these lengths: one to one, padding, or a subset.
    pub fn choose(wanted: Option<Self>, sources: usize, targets: usize) -> Self {
        let usual = match sources.cmp(&targets) {
            std::cmp::Ordering::Equal => Self::OneToOne,
            std::cmp::Ordering::Greater => Self::Pad,
            std::cmp::Ordering::Less => Self::Subset,
        };
        wanted.filter(|method| method.fits(sources, targets)).unwrap_or(usual)
    }

    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneToOne => "one_to_one",
            Self::Pad => "pad",
            Self::Copy => "copy",
            Self::Subset => "subset",
            Self::Average => "average",
        }
    }
}

/// How the numbers of [`Values`] are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueType {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

/// Rows as numbers, `[rows, n_layers, ffn]`, with the layers that the edit names, ascending: for the last `rows` of
/// the source tokens. Those before keep their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredValues", into = "StoredValues")]
pub struct Values {
    dtype: ValueType,
    rows: usize,
    numbers: Vec<f32>,
}

/// As the file has them: little-endian numbers in base64 (RFC 4648, with padding).
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredValues {
    dtype: ValueType,
    rows: usize,
    base64: String,
}

impl Values {
    /// `numbers`, rounded to `dtype`, for `rows` tokens.
    pub fn new(dtype: ValueType, rows: usize, mut numbers: Vec<f32>) -> Self {
        if dtype == ValueType::F16 {
            numbers.iter_mut().for_each(|n| *n = f16::from_f32(*n).to_f32());
        }
        Self { dtype, rows, numbers }
    }

    /// For so many tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The numbers.
    pub fn numbers(&self) -> &[f32] {
        &self.numbers
    }
}

impl From<Values> for StoredValues {
    fn from(values: Values) -> Self {
        let numbers = values.numbers.iter();
        let bytes: Vec<u8> = match values.dtype {
            ValueType::F16 => numbers.flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect(),
            ValueType::F32 => numbers.flat_map(|n| n.to_le_bytes()).collect(),
        };
        Self { dtype: values.dtype, rows: values.rows, base64: BASE64.encode(bytes) }
    }
}

impl TryFrom<StoredValues> for Values {
    type Error = String;

    fn try_from(stored: StoredValues) -> std::result::Result<Self, String> {
        let bytes = BASE64.decode(&stored.base64).map_err(|e| format!("the values are no base64: {e}"))?;
        let (numbers, rest): (Vec<f32>, _) = match stored.dtype {
            ValueType::F16 => {
                let (chunks, rest) = bytes.as_chunks();
                (chunks.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(), rest)
            }
            ValueType::F32 => {
                let (chunks, rest) = bytes.as_chunks();
                (chunks.iter().map(|b| f32::from_le_bytes(*b)).collect(), rest)
            }
        };
        if !rest.is_empty() {
            return Err(format!("the values end within a number: {} bytes", bytes.len()));
        }
        Ok(Self { dtype: stored.dtype, rows: stored.rows, numbers })
    }
}

impl Edits {
    /// No edits yet, for the model whose manifest has the hash `model`.
    pub fn new(model: String) -> Self {
        Self { format: FORMAT.into(), version: 1, model, edits: Vec::new() }
    }

    /// Reads a file and checks what can be checked without the model; [`Edits::overlay`] does the rest.
    ///
    /// # Errors
    /// [`Error::Edits`] with the first thing that is wrong.
    pub fn parse(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let wrong = |e: serde_json::Error| Error::Edits(format!("not a file of edits: {e}"));
        if json.len() > MAX_FILE_BYTES {
            return Err(Error::Edits(format!("a file of more than {MAX_FILE_BYTES} bytes is not read")));
        }
        let head: Head = serde_json::from_slice(json).map_err(wrong)?;
        if head.format != FORMAT {
            return Err(Error::Edits(format!("format {:?}, not {FORMAT:?}", head.format)));
        }
        if !(1..=VERSION).contains(&head.version) {
            return Err(Error::Edits(format!(
                "version {}, this program reads versions up to {VERSION}",
                head.version
            )));
        }
        let mut edits: Self = serde_json::from_slice(json).map_err(wrong)?;
        edits.check()?;
        if edits.needed_version() > edits.version {
            return Err(Error::Edits(format!("edits of n-grams need version 2, this is {}", edits.version)));
        }
        edits.version = 1;
        Ok(edits)
    }

    /// The lowest version that can hold the edits.
    fn needed_version(&self) -> u32 {
        if self.edits.iter().any(|edit| matches!(edit.target, Target::Ngrams(_))) { 2 } else { 1 }
    }

    /// The JSON form.
    pub fn to_json(&self) -> Vec<u8> {
        let file = Self { version: self.needed_version(), ..self.clone() };
        let mut json = serde_json::to_vec_pretty(&file).expect("edits hold nothing that JSON cannot");
        json.push(b'\n');
        json
    }

    /// The edits compiled for the model with these sizes, whose manifest has the hash `model`.
    ///
    /// # Errors
    /// [`Error::Edits`] if they were made for another model, or name tokens or layers that this one doesn't have.
    pub fn overlay(&self, model: &str, config: &Config) -> Result<Overlay> {
        if self.model != model {
            return Err(Error::Edits(format!(
                "made for the model {}, this one is {model}; make them again",
                self.model
            )));
        }
        self.check()?;
        Overlay::new(&self.edits, config)
    }

    /// What can be checked without the model.
    fn check(&self) -> Result<()> {
        if self.edits.len() > MAX_EDITS {
            return Err(Error::Edits(format!("{} edits, at most {MAX_EDITS}", self.edits.len())));
        }
        self.edits.iter().enumerate().try_for_each(|(i, edit)| edit.check().map_err(|e| edit.name_in(i, e)))
    }
}

/// As much of `text` as a label may say.
pub(super) fn label(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_LABEL_CHARS).collect()
}

impl Edit {
    /// `reason` as an error of this edit, the `index`-th of its list.
    pub(super) fn name_in(&self, index: usize, reason: String) -> Error {
        Error::Edits(format!("edit {} ({}): {reason}", index + 1, label(&self.label)))
    }

    /// What can be checked without the model, or the first thing that is wrong.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        if self.label.chars().count() > MAX_LABEL_CHARS || self.label.chars().any(char::is_control) {
            return Err(format!(
                "a label has at most {MAX_LABEL_CHARS} characters and no control characters"
            ));
        }
        let entity = |name: &str, tokens: &[u32]| match tokens.len() {
            1..=MAX_ENTITY_TOKENS => Ok(()),
            n => Err(format!("{n} {name} tokens, from 1 to {MAX_ENTITY_TOKENS} are possible")),
        };
        entity("source", &self.source)?;
        if !(0.0..=MAX_STRENGTH).contains(&self.strength) {
            return Err(format!("strength {}, from 0 to {MAX_STRENGTH} is possible", self.strength));
        }
        if self.layers.as_ref().is_some_and(|l| l.is_empty() || !l.is_sorted_by(|a, b| a < b)) {
            return Err("the layers must ascend, and there must be one".into());
        }
        if let Scope::Position(starts) = &self.scope
            && !(1..=MAX_POSITIONS).contains(&starts.len())
        {
            return Err(format!("{} positions, from 1 to {MAX_POSITIONS} are possible", starts.len()));
        }
        match &self.target {
            Target::Tokens(recipe) => {
                entity("target", &recipe.ids)?;
                let (sources, targets) = (self.source.len(), recipe.ids.len());
                if !recipe.method.fits(sources, targets) {
                    let name = recipe.method.name();
                    return Err(format!("{name} can't deal {targets} rows out to {sources} tokens"));
                }
            }
            Target::Values(values) => {
                if !(1..=self.source.len()).contains(&values.rows) {
                    return Err(format!("values for {} of {} tokens", values.rows, self.source.len()));
                }
                if let Some(wrong) = values.numbers.iter().find(|n| !n.is_finite()) {
                    return Err(format!("the values hold {wrong}"));
                }
            }
            Target::Ngrams(target) => {
                let ngram = |name: &str, tokens: &[u32]| match tokens.len() {
                    2..=MAX_ENTITY_TOKENS => Ok(()),
                    n => Err(format!("{n} {name} tokens, n-grams need from 2 to {MAX_ENTITY_TOKENS}")),
                };
                ngram("source", &self.source)?;
                match target {
                    NgramTarget::Ids(ids) => ngram("target", ids)?,
                    NgramTarget::Factor(factor) if (0.0..=MAX_STRENGTH).contains(factor) => {}
                    NgramTarget::Factor(factor) => {
                        return Err(format!("a factor of {factor}, from 0 to {MAX_STRENGTH} is possible"));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An edit of everything: source, recipe, scope, strength.
    pub(crate) fn swap(source: &[u32], ids: &[u32], method: Method) -> Edit {
        Edit {
            on: true,
            label: "a as b".into(),
            scope: Scope::Row,
            source: source.into(),
            target: Target::Tokens(Recipe { ids: ids.into(), method, pad: None }),
            strength: 1.0,
            layers: None,
        }
    }

    fn file(edits: Vec<Edit>) -> Edits {
        Edits { edits, ..Edits::new("hash".into()) }
    }

    #[test]
    fn a_file_comes_back_as_it_went() {
        let values = |dtype| Target::Values(Values::new(dtype, 1, vec![0.1, -2.5, 1e-3, 7.0]));
        let edit = |scope, target, layers| Edit { scope, target, layers, ..swap(&[1, 2], &[3], Method::Pad) };
        let recipe = Target::Tokens(Recipe { ids: vec![3], method: Method::Pad, pad: Some(0) });
        let all = file(vec![
            edit(Scope::Row, recipe, None),
            edit(Scope::Phrase, values(ValueType::F16), Some(vec![1])),
            edit(Scope::Position(vec![4, 9]), values(ValueType::F32), Some(vec![1, 2])),
        ]);
        let json = all.to_json();
        assert_eq!(Edits::parse(&json).unwrap(), all);
        let text = String::from_utf8(json).unwrap();
        assert!(text.contains(r#""scope": "phrase""#) && text.contains(r#""method": "pad""#), "{text}");
        assert!(text.contains(r#""model": "hash""#) && text.contains("\"position\": ["), "{text}");
    }

    #[test]
    fn only_edits_of_n_grams_need_the_newer_version() {
        let edit = |target| Edit { target: Target::Ngrams(target), ..swap(&[1, 2], &[3], Method::Average) };
        let all = file(vec![edit(NgramTarget::Ids(vec![3, 4, 5])), edit(NgramTarget::Factor(0.5))]);
        let json = String::from_utf8(all.to_json()).unwrap();
        assert!(json.contains("\"version\": 2") && json.contains("\"ngrams\": {"), "{json}");
        assert_eq!(Edits::parse(json.as_bytes()).unwrap(), all);
        let old = String::from_utf8(file(vec![swap(&[1], &[2], Method::Average)]).to_json()).unwrap();
        assert!(old.contains("\"version\": 1"), "{old}");
        let newer = old.replace("\"version\": 1", "\"version\": 2");
        assert_eq!(Edits::parse(newer.as_bytes()).unwrap(), Edits::parse(old.as_bytes()).unwrap());
    }

    #[test]
    fn the_files_of_others_are_checked() {
        let says = |json: &str| Edits::parse(json.as_bytes()).unwrap_err().to_string();
        assert!(says("<html>").contains("not a file of edits"));
        assert!(says(r#"{"format": "xylem-bundle", "version": 1}"#).contains("xylem-bundle"));
        assert!(says(r#"{"format": "xylem-edits", "version": 3}"#).contains("version 3"));
        assert!(says(r#"{"format": "xylem-edits", "version": 0}"#).contains("version 0"));
        assert!(says(&" ".repeat(MAX_FILE_BYTES + 1)).contains("bytes"));

        let wrong = |change: &dyn Fn(&mut Edit)| {
            let mut edit = swap(&[1, 2], &[3], Method::Pad);
            change(&mut edit);
            let says = says(&String::from_utf8(file(vec![edit]).to_json()).unwrap());
            assert!(says.contains("edit 1 ("), "{says}");
            says
        };
        assert!(wrong(&|e| e.source = vec![]).contains("0 source tokens"));
        assert!(wrong(&|e| e.source = vec![1; 65]).contains("65 source tokens"));
        assert!(wrong(&|e| e.strength = -0.5).contains("strength -0.5"));
        assert!(wrong(&|e| e.strength = 4.5).contains("strength 4.5"));
        assert!(wrong(&|e| e.layers = Some(vec![])).contains("layers"));
        assert!(wrong(&|e| e.layers = Some(vec![2, 2])).contains("ascend"));
        assert!(wrong(&|e| e.scope = Scope::Position(vec![])).contains("0 positions"));
        assert!(wrong(&|e| e.label = "x".repeat(201)).contains("label"));
        assert!(wrong(&|e| e.label = "\u{1b}[2J".into()).contains("label"));
        let nan = Values { dtype: ValueType::F32, rows: 1, numbers: vec![0.0, f32::NAN] };
        assert!(wrong(&|e| e.target = Target::Values(nan.clone())).contains("NaN"));
        // A number too large for half precision.
        let large = Values::new(ValueType::F16, 1, vec![1e6]);
        assert!(wrong(&|e| e.target = Target::Values(large.clone())).contains("inf"));
        let many = Values::new(ValueType::F16, 3, vec![0.0; 3]);
        assert!(wrong(&|e| e.target = Target::Values(many.clone())).contains("for 3 of 2 tokens"));
        for (method, sources, targets) in
            [(Method::OneToOne, 2, 1), (Method::Pad, 1, 2), (Method::Copy, 1, 2), (Method::Subset, 2, 1)]
        {
            let ids = |n: u32| (0..n).collect::<Vec<_>>();
            let says = wrong(&|e| *e = swap(&ids(sources), &ids(targets), method));
            assert!(says.contains(method.name()), "{says}");
        }

        let ngrams = |source: &[u32], target| {
            let edit = Edit { target: Target::Ngrams(target), ..swap(source, &[3], Method::Average) };
            String::from_utf8(file(vec![edit]).to_json()).unwrap()
        };
        assert!(says(&ngrams(&[1], NgramTarget::Factor(0.0))).contains("1 source tokens, n-grams need"));
        assert!(says(&ngrams(&[1, 2], NgramTarget::Ids(vec![3]))).contains("1 target tokens"));
        assert!(says(&ngrams(&[1, 2], NgramTarget::Factor(-1.0))).contains("a factor of -1"));
        assert!(says(&ngrams(&[1, 2], NgramTarget::Factor(4.5))).contains("a factor of 4.5"));
        let first = ngrams(&[1, 2], NgramTarget::Factor(0.0)).replace("\"version\": 2", "\"version\": 1");
        assert!(says(&first).contains("n-grams need version 2"));

        let good = String::from_utf8(file(vec![swap(&[1], &[2], Method::Average)]).to_json()).unwrap();
        assert!(
            says(&good.replace("\"strength\": 1.0", "\"strength\": null")).contains("not a file of edits")
        );
        assert!(says(&good.replace("\"on\": true", "\"on\": true, \"x\": 1")).contains("unknown field"));
        assert!(says(&good.replace("average", "magic")).contains("magic"));
        let many = file(vec![swap(&[1], &[2], Method::Average); MAX_EDITS + 1]);
        assert!(says(&String::from_utf8(many.to_json()).unwrap()).contains("257 edits"));
    }

    #[test]
    fn values_are_whole_numbers_of_numbers() {
        let read = |json: &str| serde_json::from_str::<Values>(json).map_err(|e| e.to_string());
        assert_eq!(
            read(r#"{"dtype": "f16", "rows": 1, "base64": "ADwAwA=="}"#).unwrap().numbers(),
            [1.0, -2.0]
        );
        assert!(
            read(r#"{"dtype": "f32", "rows": 1, "base64": "ADwAwAA="}"#).unwrap_err().contains("5 bytes")
        );
        assert!(read(r#"{"dtype": "f32", "rows": 1, "base64": "no!"}"#).unwrap_err().contains("base64"));
        assert!(read(r#"{"dtype": "f64", "rows": 1, "base64": ""}"#).is_err());
    }
}
