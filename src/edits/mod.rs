//! Edits of knowledge, as data: which rows of which tokens are answered by which others.
//!
//! An edit never changes a table. It is kept in a list ([`file`]: what it says, its JSON form, what is allowed),
//! compiled for a model into an [`Overlay`], and applied at lookup by [`Edited`], which stands between the tables
//! and the session. With no edit switched on the rows pass through as they are, bit by bit. [`swap`] makes the
//! edits that give one entity the rows of another, [`ngram`] those of Engram rows, [`preview`] puts an edit in words, [`teach`] those that make a wanted
//! answer come. [`knock_out`] takes rows away instead, below the edits: a measurement, never part of a file.
//!
//! The same on native and in the browser. Where files come from is not decided here.

pub mod assign;
pub mod file;
pub mod knock_out;
pub mod ngram;
pub mod overlay;
pub mod preview;
pub mod swap;
pub mod teach;
mod text;

pub use assign::Gets;
pub use file::{Edit, Edits, Method, NgramTarget, Recipe, Scope, Target, ValueType, Values};
pub use knock_out::{Instead, KnockOut, Knocked};
pub use ngram::NgramSwap;
pub use overlay::{Edited, Overlay};
pub use preview::Preview;
pub use swap::Swap;
