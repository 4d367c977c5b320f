//! `msrgate test`.
