//! The limits on a policy's size.

/// The maximum size of a policy with all its includes, in bytes: 16 MiB.
pub const MAX_BYTES: usize = 16 << 20;

/// The maximum number of files of a policy, its own file included. A file that is included twice
/// counts once. One `include` may list at most this many files.
pub const MAX_FILES: usize = 256;

/// The maximum number of TOML tokens of a policy with all its includes. Comments and ends of lines
/// count as tokens. A token takes up to about 200 bytes of the parser's memory.
pub const MAX_TOKENS: usize = 5_000_000;

/// The maximum number of tables and lists of a policy with all its includes. A dot in a key makes
/// a table, too. A table takes up to about 1,200 bytes of memory.
pub const MAX_TABLES: usize = 500_000;

/// The maximum length of a line of a policy, in bytes, so that a message can quote the line.
pub const MAX_LINE: usize = 4096;

/// The maximum number of entries of a policy with all its includes.
pub const MAX_ENTRIES: usize = 250_000;

/// The maximum of the sum, over all variants, of the number of entries that hold on the variant.
/// The limit bounds the work: a policy is resolved and packed once for each variant.
pub(crate) const MAX_ENTRIES_ON_ALL: usize = 4 << 20;

/// The maximum number of entries whose keys are groups.
pub(crate) const MAX_GROUPS: usize = 500;

/// The maximum number of `[[when]]` sections.
pub(crate) const MAX_WHENS: usize = 32;

/// The number of mistakes after which reading stops: later entries are not checked.
pub(crate) const MAX_MISTAKES: usize = 1000;

/// The maximum number of files in a chain of includes, in which each file includes the next.
pub const MAX_DEPTH: usize = 8;
