//! stub
#![allow(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason
)]
use msrgate_filter::MsrIndex;
pub struct Register;
impl Register {
    pub fn index(&self) -> MsrIndex {
        MsrIndex::new(0x8b)
    }
    pub fn vendor(&self) -> &'static str {
        "Intel"
    }
}
pub enum Named {
    One(&'static Register),
    Several(Vec<&'static Register>),
    None(Vec<&'static str>),
}
static R: Register = Register;
pub fn by_name(n: &str) -> Named {
    match n {
        "A" => Named::One(&R),
        "B" => Named::Several(vec![&R, &R]),
        _ => Named::None(vec!["A"]),
    }
}
