//! Reader of `extra.tsv`, a list of MSRs that is written by hand. The first lines of the file describe
//! its columns.

use anyhow::{Context, bail, ensure};

use super::{Mention, Rank, SUMMARY_LIMIT, Source, hex};

pub(super) fn read(text: &str) -> anyhow::Result<Vec<Mention>> {
    let mut mentions = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        row(line, &mut mentions).with_context(|| line.to_owned())?;
    }
    Ok(mentions)
}

fn row(line: &str, mentions: &mut Vec<Mention>) -> anyhow::Result<()> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [first, count, step, name, aliases, vendor, summary, origin] = columns[..] else {
        bail!("the row does not have eight columns");
    };
    ensure!(said(origin).is_some(), "the row has no origin");
    ensure!(summary.len() <= SUMMARY_LIMIT, "the summary is too long");
    let (first, count, step) = (hex(first)?, count.parse::<u32>()?, step.parse::<u32>()?);
    for nth in 0..count {
        let mut mention = Mention::new(first + nth * step, Source::Extra);
        if let Some(name) = said(name) {
            mention = mention.named(numbered(name, nth)?, Rank::Hand);
        }
        for alias in said(aliases).into_iter().flat_map(|all| all.split(',')) {
            mention = mention.named(numbered(alias, nth)?, Rank::Alias);
        }
        mention.vendor = said(vendor).map(str::to_owned);
        mention.summary = said(summary).map(str::to_owned);
        mentions.push(mention);
    }
    Ok(())
}

fn said(column: &str) -> Option<&str> {
    (column != "-" && !column.is_empty()).then_some(column)
}

/// Returns the name that a pattern gives to the register number `nth`: for `MC{29}_CTL`, 0 gives `MC29_CTL`
/// and 1 gives `MC30_CTL`.
fn numbered(pattern: &str, nth: u32) -> anyhow::Result<String> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return Ok(pattern.to_owned());
    };
    let (start, after) = rest.split_once('}').context("an open brace")?;
    Ok(format!("{before}{}{after}", start.parse::<u32>()? + nth))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_register_data_with_count_becomes_that_many_registers() {
        let text = "# heading\n0x474\t3\t4\tMC{29}_CTL\tA{0},B\tany\t-\tmanual\n";
        let mentions = read(text).unwrap();
        let names = |mention: &Mention| -> Vec<String> {
            mention.names.iter().map(|name| name.text.clone()).collect()
        };
        assert_eq!(mentions.len(), 3);
        assert_eq!(
            (mentions[2].index, mentions[2].summary.as_ref()),
            (0x47c, None)
        );
        assert_eq!(names(&mentions[2]), ["MC31_CTL", "A2", "B"]);
    }

    #[test]
    fn bad_row_of_register_data_is_an_error_that_quotes_the_row() {
        for row in [
            "0x1\t1\t1\tA\t-\tany\t-",
            "1\t1\t1\tA\t-\tany\t-\tmanual",
            "0x1\t1\t1\tA{\t-\tany\t-\tmanual",
            "0x1\t1\t1\tA\t-\tany\t-\t-",
        ] {
            let error = read(row).unwrap_err();
            assert!(error.to_string().contains(row), "{error}");
        }
    }
}
