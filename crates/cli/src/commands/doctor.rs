//! `msrgate doctor`.
