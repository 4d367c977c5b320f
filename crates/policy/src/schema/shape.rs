//! The shapes. What is said of a field is what an editor shows.
#![expect(
    dead_code,
    reason = "no such value is made: the schema is derived from the fields"
)]

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// What happens when a guest reads or writes a model-specific register with RDMSR or WRMSR.
/// `msrgate help policy` prints the whole language.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    /// The version of the language: 1. What a group holds is part of it.
    #[schemars(range(min = 1, max = 1))]
    #[serde(rename = "policy")]
    version: u32,
    /// What the policy is called.
    name: Option<String>,
    /// Policies whose entries are added: files, by a path from where this one lies, or shipped policies.
    include: Option<Vec<String>>,
    /// Whether refusals are carried out. Without it they are.
    #[schemars(schema_with = "super::modes", default)]
    mode: Option<()>,
    /// What happens to reads and writes of MSRs that no entry names. Only a policy that is meant for
    /// being included goes without it.
    #[schemars(schema_with = "super::defaults", default)]
    default: Option<()>,
    /// What becomes of MSRs that no entry refuses and that KVM does not know. Other than `"gp"` needs
    /// `default = "allow"`. Without it, `"gp"`.
    #[schemars(schema_with = "super::unknown", default)]
    unknown: Option<()>,
    /// Which accesses become events. Without it, refusals.
    #[schemars(schema_with = "super::logs", default)]
    log: Option<()>,
    /// Gaps in enforcement that the author knows of.
    accept: Option<Vec<Gap>>,
    /// What is said of which MSRs. A key is a name such as `IA32_EFER`, an index such as `0xc0000080`, a
    /// range such as `"0x200..=0x20f"`, or a group such as `"@mtrr"`. A strict subset wins over what
    /// contains it.
    msrs: Option<Msrs>,
    /// Emulated devices.
    device: Option<Devices>,
    /// Entries for some processors only.
    when: Option<Vec<When>>,
}

/// Both directions of an entry, and what else is said of it.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["read", "write"] },
    { "required": ["device"] },
    { "required": ["register"] },
]))]
pub(super) struct Entry {
    /// What a read gets.
    #[schemars(schema_with = "super::read", default)]
    read: Option<()>,
    /// What a write does.
    #[schemars(schema_with = "super::write", default)]
    write: Option<()>,
    /// An emulated device answers reads and writes.
    #[schemars(schema_with = "super::devices", default)]
    device: Option<()>,
    /// A register in user space answers reads and writes.
    register: Option<Register>,
    /// The author's reason, which `explain` shows.
    why: Option<String>,
    /// As at the top, for these MSRs.
    #[schemars(schema_with = "super::logs", default)]
    log: Option<()>,
    /// This entry takes the place of an included one that has exactly the same MSRs.
    #[serde(rename = "override")]
    replaces: Option<bool>,
    /// Nothing may loosen this entry.
    #[serde(rename = "final")]
    is_final: Option<bool>,
}

/// What becomes of each direction. One that is left out is denied.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Unknown {
    /// What a read gives: a number, or `"deny"`.
    #[schemars(schema_with = "super::unknown_read", default)]
    read: Option<()>,
    /// What becomes of a write.
    #[schemars(schema_with = "super::unknown_write", default)]
    write: Option<()>,
    /// Which of these accesses become events.
    #[schemars(schema_with = "super::logs", default)]
    log: Option<()>,
}

/// A read gives a value.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ValueOf {
    /// The value.
    value: Number,
}

/// A write reaches the register as far as its changes lie in a mask.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MaskOf {
    /// The bits that a write may change.
    mask: Number,
    /// What a write does that would change another bit. Without it, a #GP.
    #[schemars(schema_with = "super::outsides", default)]
    outside: Option<()>,
}

/// A write reaches the register; of some bits, those that are set stay set.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StickyOf {
    /// The bits.
    sticky: Number,
}

/// The VMM's own code answers.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HandlerOf {
    /// Its name.
    handler: String,
}

/// An emulated device answers.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceOf {
    /// The device.
    #[schemars(schema_with = "super::devices")]
    device: (),
}

/// A register in user space answers.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RegisterOf {
    /// The register.
    register: Register,
}

/// A register in user space, one for each vCPU.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Register {
    /// What it holds at reset.
    reset: Number,
    /// The bits that a write may change.
    mask: Number,
    /// What a write does that would change another bit. Without it, a #GP.
    #[schemars(schema_with = "super::outsides", default)]
    outside: Option<()>,
}

/// The devices that are set up.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Devices {
    /// Answers for the register through which a guest loads microcode.
    microcode: Option<Microcode>,
}

/// How microcode updates are answered.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Microcode {
    /// The revision that the guest reads, of 32 bits.
    revision: Number,
    /// What becomes of an update.
    #[schemars(schema_with = "super::updates")]
    update: (),
}

/// Entries that hold on some processors, beside all others.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct When {
    /// The processors, by the CPUID that the VMM gives the VM. All that is named has to agree.
    cpu: CpuSet,
    /// What is said of which MSRs, as in the policy's own `msrs`.
    msrs: Msrs,
}

/// Processors. What is left out is any.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CpuSet {
    /// What CPUID leaf 0 spells, such as `GenuineIntel`; one, or a list.
    #[schemars(schema_with = "super::vendors", default)]
    vendor: Option<()>,
    /// The family, its extension added; one, a range, or a list.
    #[schemars(schema_with = "super::numbers", default)]
    family: Option<()>,
    /// The model, its extension added; one, a range, or a list.
    #[schemars(schema_with = "super::numbers", default)]
    model: Option<()>,
    /// The stepping; one, a range, or a list.
    #[schemars(schema_with = "super::numbers", default)]
    stepping: Option<()>,
}

/// Entries by their keys.
pub(super) struct Msrs;

impl JsonSchema for Msrs {
    fn schema_name() -> Cow<'static, str> {
        "Msrs".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        super::msrs(generator)
    }
}

/// An entry, or a word for one.
pub(super) struct Said;

impl JsonSchema for Said {
    fn schema_name() -> Cow<'static, str> {
        "Said".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        super::said(generator)
    }
}

/// The name of a gap.
pub(super) struct Gap;

impl JsonSchema for Gap {
    fn schema_name() -> Cow<'static, str> {
        "Gap".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        super::gaps(generator)
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
