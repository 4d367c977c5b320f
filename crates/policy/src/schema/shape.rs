//! The tables of the language. The doc comment of a table or a field is the description that an
//! editor shows.
#![expect(
    dead_code,
    reason = "no such value is made: the schema is derived from the fields"
)]

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A policy decides what happens when a guest reads or writes a model-specific register with RDMSR
/// or WRMSR. `msrgate help policy` prints the whole language.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    /// The version of the language: 1. The version also fixes the registers of each group.
    #[schemars(range(min = 1, max = 1))]
    #[serde(rename = "policy")]
    version: u32,
    /// The name of the policy.
    name: Option<String>,
    /// Policies whose entries are added to this one: files, by their paths from this file's folder,
    /// or shipped policies, by name.
    include: Option<Vec<String>>,
    /// The mode: refusals are carried out, or only recorded. Without this key they are carried out.
    #[schemars(schema_with = "super::modes", default)]
    mode: Option<()>,
    /// The action for reads and writes of MSRs that no entry names. A policy may leave this key out
    /// only if it is meant to be included.
    #[schemars(schema_with = "super::defaults", default)]
    default: Option<()>,
    /// The answer to accesses that no entry refuses, of MSRs that KVM does not know. Without this
    /// key the answer is `"gp"`. Other answers need `default = "allow"`.
    #[schemars(schema_with = "super::unknown", default)]
    unknown: Option<()>,
    /// The accesses that become events. Without this key, refusals become events.
    #[schemars(schema_with = "super::logs", default)]
    log: Option<()>,
    /// The gaps in enforcement that the author knows and accepts, and the warnings of `msrgate check` that the
    /// author accepts.
    accept: Option<Vec<Accepted>>,
    /// The entries. The key of an entry is a name such as `IA32_EFER`, an index such as
    /// `0xc0000080`, a range such as `"0x200..=0x20f"`, or a group such as `"@mtrr"`. An entry wins
    /// over another entry if its MSRs are a strict subset of the other's MSRs.
    msrs: Option<Msrs>,
    /// The emulated devices that the policy sets up.
    device: Option<Devices>,
    /// The sections with entries for some processors only.
    when: Option<Vec<When>>,
}

/// The table of an entry: the actions for reads and writes, and further properties.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["read", "write"] },
    { "required": ["device"] },
    { "required": ["register"] },
]))]
pub(super) struct Entry {
    /// The action for reads of the entry's MSRs.
    #[schemars(schema_with = "super::read", default)]
    read: Option<()>,
    /// The action for writes of the entry's MSRs.
    #[schemars(schema_with = "super::write", default)]
    write: Option<()>,
    /// The emulated device that answers reads and writes.
    #[schemars(schema_with = "super::devices", default)]
    device: Option<()>,
    /// The register in user space that answers reads and writes.
    register: Option<Register>,
    /// The author's reason, which `explain` shows.
    why: Option<String>,
    /// The accesses of these MSRs that become events. Without this key, the policy's `log` decides.
    #[schemars(schema_with = "super::logs", default)]
    log: Option<()>,
    /// If true, this entry takes the place of an included entry that has exactly the same MSRs.
    #[serde(rename = "override")]
    replaces: Option<bool>,
    /// If true, no other entry, include or setting may loosen this entry.
    #[serde(rename = "final")]
    is_final: Option<bool>,
}

/// The answers to reads and writes of MSRs that KVM does not know. A direction that is left out
/// gets #GP.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Unknown {
    /// The answer to a read of an unknown MSR: a number, or `"deny"`.
    #[schemars(schema_with = "super::unknown_read", default)]
    read: Option<()>,
    /// The answer to a write of an unknown MSR.
    #[schemars(schema_with = "super::unknown_write", default)]
    write: Option<()>,
    /// The accesses of unknown MSRs that become events.
    #[schemars(schema_with = "super::logs", default)]
    log: Option<()>,
}

/// The value that a read gives.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ValueOf {
    /// The value that the guest reads.
    value: Number,
}

/// A mask: a write of the register may change only some bits.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MaskOf {
    /// The bits that a write may change.
    mask: Number,
    /// The result of a write that would change another bit. Without this key, the guest gets #GP.
    #[schemars(schema_with = "super::outsides", default)]
    outside: Option<()>,
}

/// Sticky bits: a write of the register may set these bits, but cannot clear them.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StickyOf {
    /// The bits that a write cannot clear.
    sticky: Number,
}

/// A handler: code of the VMM that answers.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HandlerOf {
    /// The name of the handler in the VMM.
    handler: String,
}

/// An emulated device answers.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceOf {
    /// The device that answers.
    #[schemars(schema_with = "super::devices")]
    device: (),
}

/// A register in user space answers.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RegisterOf {
    /// The register that answers.
    register: Register,
}

/// A register in user space, one for each vCPU.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Register {
    /// The value of the register after a reset of its vCPU.
    reset: Number,
    /// The bits that a write may change.
    mask: Number,
    /// The result of a write that would change another bit. Without this key, the guest gets #GP.
    #[schemars(schema_with = "super::outsides", default)]
    outside: Option<()>,
}

/// The emulated devices that the policy sets up.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Devices {
    /// The device that answers for the register through which a guest loads microcode.
    microcode: Option<Microcode>,
}

/// The microcode device: the answers to microcode updates.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Microcode {
    /// The revision that the guest reads: a number of 32 bits.
    revision: Number,
    /// The result of a guest's microcode update.
    #[schemars(schema_with = "super::updates")]
    update: (),
}

/// Entries that hold on some processors only, together with the entries that hold on all.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct When {
    /// The processors, by the CPUID that the VMM gives the VM. Every part that is named has to
    /// match.
    cpu: CpuSet,
    /// The entries, written as in the policy's own `msrs`.
    msrs: Msrs,
}

/// A set of processors. A part that is left out matches all processors.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CpuSet {
    /// The vendor as CPUID leaf 0 spells it, such as `GenuineIntel`: one name, or a list.
    #[schemars(schema_with = "super::vendors", default)]
    vendor: Option<()>,
    /// The family, including the extended family: a number, a range, or a list.
    #[schemars(schema_with = "super::numbers", default)]
    family: Option<()>,
    /// The model, including the extended model: a number, a range, or a list.
    #[schemars(schema_with = "super::numbers", default)]
    model: Option<()>,
    /// The stepping: a number, a range, or a list.
    #[schemars(schema_with = "super::numbers", default)]
    stepping: Option<()>,
}

/// Entries, each under its key.
pub(super) struct Msrs;

impl JsonSchema for Msrs {
    fn schema_name() -> Cow<'static, str> {
        "Msrs".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        super::msrs(generator)
    }
}

/// The value of an entry: a table, or a word in place of a table.
pub(super) struct Said;

impl JsonSchema for Said {
    fn schema_name() -> Cow<'static, str> {
        "Said".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        super::said(generator)
    }
}

/// A word of `accept`.
pub(super) struct Accepted;

impl JsonSchema for Accepted {
    fn schema_name() -> Cow<'static, str> {
        "Accepted".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        super::accepted(generator)
    }
}

/// A number of 64 bits.
pub(super) struct Number;

impl JsonSchema for Number {
    fn schema_name() -> Cow<'static, str> {
        "Number".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema = json_schema!({
            "description": "Decimal, or hexadecimal with `0x`; as a string it may be larger than 2^63."
        });
        schema.insert("anyOf".to_owned(), super::number("")["anyOf"].clone());
        schema
    }
}

/// A number, or a range such as `"0x6a..=0x6f"`.
pub(super) struct NumberOrRange;

impl JsonSchema for NumberOrRange {
    fn schema_name() -> Cow<'static, str> {
        "NumberOrRange".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema = json_schema!({
            "description": "A number, or a range such as \"0x6a..=0x6f\"."
        });
        let number = super::number(r"(\.\.=NUMBER)?");
        schema.insert("anyOf".to_owned(), number["anyOf"].clone());
        schema
    }
}
