//! The shapes. What is said of a field is what an editor shows.
#![expect(
    dead_code,
    reason = "no such value is made: the schema is derived from the fields"
)]

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// The result of each read and write of a model-specific register (RDMSR, WRMSR) by a guest.
/// `msrgate help policy` prints the whole language.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    /// The version of the policy language: 1. A version also fixes the MSRs of each group.
    #[schemars(range(min = 1, max = 1))]
    #[serde(rename = "policy")]
    version: u32,
    /// The policy's name.
    name: Option<String>,
    /// Policies whose entries are added: files, by their path from this file's folder, or shipped policies,
    /// by name.
    include: Option<Vec<String>>,
    /// Enforcement, or audit. The default is `"enforce"`.
    #[schemars(schema_with = "super::modes", default)]
    mode: Option<()>,
    /// The action for reads and writes of MSRs that no entry names. Only a policy that others include may
    /// leave it out.
    #[schemars(schema_with = "super::defaults", default)]
    default: Option<()>,
    /// The answer for MSRs that no entry refuses and that KVM does not know. A value other than `"gp"`
    /// needs `default = "allow"`. The default is `"gp"`.
    #[schemars(schema_with = "super::unknown", default)]
    unknown: Option<()>,
    /// The accesses that become events. The default is `"denied"`.
    #[schemars(schema_with = "super::logs", default)]
    log: Option<()>,
    /// The gaps in enforcement that the author accepts.
    accept: Option<Vec<Gap>>,
    /// The actions for MSRs. A key is a name such as `IA32_EFER`, an index such as `0xc0000080`, a
    /// range such as `"0x200..=0x20f"`, or a group such as `"@mtrr"`. An entry wins over
    /// another one that contains all of its MSRs and more.
    msrs: Option<Msrs>,
    /// Emulated devices.
    device: Option<Devices>,
    /// Entries for some processors only.
    when: Option<Vec<When>>,
}

/// An entry: its actions for reads and writes, and its options.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["read", "write"] },
    { "required": ["device"] },
    { "required": ["register"] },
]))]
pub(super) struct Entry {
    /// The action for reads.
    #[schemars(schema_with = "super::read", default)]
    read: Option<()>,
    /// The action for writes.
    #[schemars(schema_with = "super::write", default)]
    write: Option<()>,
    /// An emulated device answers reads and writes.
    #[schemars(schema_with = "super::devices", default)]
    device: Option<()>,
    /// A register in user space answers reads and writes.
    register: Option<Register>,
    /// The author's reason, which `explain` shows.
    why: Option<String>,
    /// The accesses of these MSRs that become events, in place of the policy's own `log`.
    #[schemars(schema_with = "super::logs", default)]
    log: Option<()>,
    /// If true, this entry replaces an included entry with exactly the same MSRs.
    #[serde(rename = "override")]
    replaces: Option<bool>,
    /// If true, no other entry may loosen this one.
    #[serde(rename = "final")]
    is_final: Option<bool>,
}

/// The answer for each direction. In a direction that is left out, the guest gets #GP.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Unknown {
    /// The answer to a read: a number, or `"deny"`.
    #[schemars(schema_with = "super::unknown_read", default)]
    read: Option<()>,
    /// The answer to a write.
    #[schemars(schema_with = "super::unknown_write", default)]
    write: Option<()>,
    /// The accesses of unknown MSRs that become events.
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

/// A write reaches the register, but can change only the bits of a mask.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MaskOf {
    /// The bits that a write may change.
    mask: Number,
    /// The result of a write that would change another bit. The default is `"deny"`.
    #[schemars(schema_with = "super::outsides", default)]
    outside: Option<()>,
}

/// A write reaches the register, but cannot clear certain bits.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StickyOf {
    /// The bits that a write cannot clear.
    sticky: Number,
}

/// The VMM's own code answers.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HandlerOf {
    /// The handler's name.
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
    /// The register's value after a reset.
    reset: Number,
    /// The bits that a write may change.
    mask: Number,
    /// The result of a write that would change another bit. The default is `"deny"`.
    #[schemars(schema_with = "super::outsides", default)]
    outside: Option<()>,
}

/// The devices that are set up.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Devices {
    /// The device that answers for the register through which a guest loads microcode.
    microcode: Option<Microcode>,
}

/// The device for microcode updates.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Microcode {
    /// The microcode revision that the guest reads, of 32 bits.
    revision: Number,
    /// The answer to an update.
    #[schemars(schema_with = "super::updates")]
    update: (),
}

/// Entries that hold on some processors, in addition to the policy's other entries.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct When {
    /// The processors, by the CPUID that the VMM gives the VM. All parts that are written have to match.
    cpu: CpuSet,
    /// The actions for MSRs, as in the policy's own `msrs`.
    msrs: Msrs,
}

/// Processors. A part that is left out matches every processor.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CpuSet {
    /// The vendor as CPUID leaf 0 spells it, such as `GenuineIntel`; one vendor, or a list.
    #[schemars(schema_with = "super::vendors", default)]
    vendor: Option<()>,
    /// The family, with the extended family added; one number, a range, or a list.
    #[schemars(schema_with = "super::numbers", default)]
    family: Option<()>,
    /// The model, with the extended model added; one number, a range, or a list.
    #[schemars(schema_with = "super::numbers", default)]
    model: Option<()>,
    /// The stepping; one number, a range, or a list.
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
