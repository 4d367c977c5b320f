//! The policies that are built into the command `msrgate`.

use msrgate_policy::Source;

/// The shipped policies, whose files are in the repository's folder `policies/`.
pub(crate) const SHIPPED: [Shipped; 9] = [
    Shipped {
        name: "allow-all",
        text: include_str!("../policies/allow-all.toml"),
    },
    Shipped {
        name: "linux-boot",
        text: include_str!("../policies/linux-boot.toml"),
    },
    Shipped {
        name: "linux-guest",
        text: include_str!("../policies/linux-guest.toml"),
    },
    Shipped {
        name: "seabios",
        text: include_str!("../policies/seabios.toml"),
    },
    Shipped {
        name: "unikernel",
        text: include_str!("../policies/unikernel.toml"),
    },
    Shipped {
        name: "sandbox",
        text: include_str!("../policies/sandbox.toml"),
    },
    Shipped {
        name: "pin-security",
        text: include_str!("../policies/pin-security.toml"),
    },
    Shipped {
        name: "quiet-unknown",
        text: include_str!("../policies/quiet-unknown.toml"),
    },
    Shipped {
        name: "no-power-telemetry",
        text: include_str!("../policies/no-power-telemetry.toml"),
    },
];

/// A policy that is built into the command `msrgate`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shipped {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

impl Shipped {
    pub(crate) fn source(self) -> Source {
        Source::new(&format!("{}.toml (shipped)", self.name), self.text)
    }

    /// Returns the policy's first comment line, without the `#`.
    pub(crate) fn summary(self) -> &'static str {
        let first = self.text.lines().next().unwrap_or_default();
        first.trim_start_matches(['#', ' '])
    }
}

/// Returns the shipped policy with this name, or `None` if no shipped policy has the name.
pub(crate) fn shipped(name: &str) -> Option<Shipped> {
    SHIPPED.into_iter().find(|shipped| shipped.name == name)
}
