//! The engine of the page: what JavaScript sees, and what only a browser has.
//!
//! [`engine`] is the class `Engine`, [`edits`] its methods for edits, [`bench`] the one that measures it, [`load`] brings a bundle into a backend, [`http`]
//! asks a static host for files and ranges, [`archive`] keeps files and pages on the device, [`rows`] makes table lookups
//! that can be watched and stopped, [`control`] is the line to the page while an answer is written, [`look`] what the page
//! shows of lookups and layers. [`team`] lets further workers in where
//! memory is shared. Everything else runs in one worker; nothing here computes.

mod archive;
mod bench;
mod control;
mod edits;
pub mod engine;
mod http;
mod load;
mod look;
mod rows;
#[cfg(feature = "threads")]
pub mod team;

pub use engine::Engine;
