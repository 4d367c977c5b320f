//! `msrgate check`.
