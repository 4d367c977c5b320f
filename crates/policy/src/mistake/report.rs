//! Shows mistakes through miette: each with its text, and with its labels in other texts.

use std::fmt;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode};

use super::{Label, Mistake, Mistakes};
use crate::source::Source;

/// A mistake that miette shows: a message, and labels in one text. If the mistake has places in
/// further texts, `elsewhere` has a report for each of those places.
#[derive(Debug)]
pub(super) struct Report {
    message: String,
    help: Option<String>,
    text: Option<Arc<NamedSource<String>>>,
    labels: Vec<LabeledSpan>,
    elsewhere: Vec<Report>,
    severity: Severity,
}

pub(super) fn reports(sources: &[Source], mistakes: &[Mistake]) -> Vec<Report> {
    let texts: Vec<_> = sources
        .iter()
        .map(|source| Arc::new(source.quotable()))
        .collect();
    mistakes
        .iter()
        .map(|mistake| report(&texts, mistake))
        .collect()
}

fn report(texts: &[Arc<NamedSource<String>>], mistake: &Mistake) -> Report {
    let home = mistake.places.first().map(|label| label.at.source());
    let (here, there): (Vec<&Label>, Vec<_>) = mistake
        .places
        .iter()
        .partition(|label| Some(label.at.source()) == home);
    let elsewhere = there.into_iter().map(|label| Report {
        message: "this place belongs to the mistake above".to_owned(),
        help: None,
        text: texts.get(label.at.source().number()).cloned(),
        labels: vec![labelled(label)],
        elsewhere: Vec::new(),
        severity: Severity::Advice,
    });
    Report {
        message: mistake.kind.to_string(),
        help: mistake.kind.help(),
        text: home.and_then(|home| texts.get(home.number()).cloned()),
        labels: here.into_iter().map(labelled).collect(),
        elsewhere: elsewhere.collect(),
        severity: Severity::Error,
    }
}

fn labelled(label: &Label) -> LabeledSpan {
    LabeledSpan::new_with_span(label.says.clone(), label.at.span())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.text.as_deref().map(|text| text as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.labels.iter().cloned()))
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        related(&self.elsewhere)
    }
}

impl Diagnostic for Mistakes {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let all_are_shown = self.total == self.shown.len();
        let help = format!("only the first {} mistakes are shown", self.shown.len());
        (!all_are_shown).then(|| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        related(&self.reports)
    }
}

fn related(reports: &[Report]) -> Option<Box<dyn Iterator<Item = &dyn Diagnostic> + '_>> {
    let each = reports.iter().map(|report| report as &dyn Diagnostic);
    (!reports.is_empty()).then(|| Box::new(each) as Box<dyn Iterator<Item = &dyn Diagnostic>>)
}
