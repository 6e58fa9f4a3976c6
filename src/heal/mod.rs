//! Healing: a student with STEM and Engram layers, distilled end to end from its dense base.
//!
//! What is read: settings in TOML ([`settings`]), documents in JSONL ([`data`]), drawn as jobs ([`batch`]), some of them
//! counterfactual ([`swaps`]), and facts with their answers ([`truths`]), by names ([`names`]). What is trained: tensors that
//! begin as a recipe or in closed form say ([`start`]), some of them rounded ([`rounding`]), in a forward pass ([`student`])
//! made of a few operations ([`blocks`]), by a loss on full distributions ([`loss`]) and AdamW ([`optimiser`]). The loop
//! ([`train`]) measures ([`evaluate`]), keeps checkpoints ([`checkpoint`]) and ends with a recipe ([`export`]), both in small
//! files ([`files`]); [`plot`] draws its log.
//!
//! Tensors are burn's, on the [`device`] that is given. The numbers of the forward pass are those of
//! [`crate::cpu`], which tests compare. Building a bundle from the recipe is [`crate::convert`]'s work.

pub mod batch;
pub mod blocks;
pub mod checkpoint;
pub mod data;
pub mod device;
pub mod evaluate;
pub mod export;
pub mod files;
pub mod loss;
pub mod names;
pub mod optimiser;
pub mod plot;
pub mod rounding;
pub mod settings;
pub mod start;
pub mod student;
pub mod swaps;
#[cfg(test)]
mod tests;
pub mod train;
pub mod truths;

pub use device::Hardware;
pub use settings::Settings;
pub use train::{Entry, Listener, Outcome, Trainer};
