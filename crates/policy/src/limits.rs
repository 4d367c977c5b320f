//! The limits of a policy's size.

/// The most bytes a policy may have, those of its includes among them: 16 MiB.
pub const MAX_BYTES: usize = 16 << 20;

/// The most files a policy may have, itself among them, each counted once. No `include` may name more.
pub const MAX_FILES: usize = 256;

/// The most tokens of TOML a policy may have, those of its includes, comments and ends of lines among
/// them. A token takes the parser up to about 200 bytes of memory.
pub const MAX_TOKENS: usize = 5_000_000;

/// The most tables and lists a policy may have, those of its includes among them, and every dot of a
/// key, which makes a table too. A table takes up to about 1,200 bytes of memory.
pub const MAX_TABLES: usize = 500_000;

/// The most bytes a line of a policy may have, so that a message can quote it.
pub const MAX_LINE: usize = 4096;

/// The most entries a policy may have, those of its includes among them.
pub const MAX_ENTRIES: usize = 250_000;

/// The most entries on all processors that `[[when]]`s tell apart, each counted wherever it holds: the policy is
/// resolved and packed for each of them.
pub(crate) const MAX_ENTRIES_ON_ALL: usize = 4 << 20;

/// The most entries for groups.
pub(crate) const MAX_GROUPS: usize = 500;

/// The most `[[when]]`s.
pub(crate) const MAX_WHENS: usize = 32;

/// With so many mistakes, the entries that follow are not looked at.
pub(crate) const MAX_MISTAKES: usize = 1000;

/// How deep includes may lie in includes.
pub const MAX_DEPTH: usize = 8;
