//! MSR filters in a real KVM VM: probing the host, installing, a built-in guest that measures.
