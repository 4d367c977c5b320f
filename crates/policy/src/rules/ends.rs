//! Which of many rules an MSR falls under: each exit is looked up here.

use msrgate_filter::MsrIndex;

/// Where rules end, as a binary tree by levels: the root is node 1, the children of a node `n` are
/// `2n` and `2n + 1` (Eytzinger's order). A search reads one word a level, close together near the
/// root, and branches on nothing but the depth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// By node; the first is none.
    lasts: Box<[MsrIndex]>,
    /// The place of each node's rule.
    places: Box<[u32]>,
}

impl Ends {
    /// Of rules whose last MSRs are these, in order, up to the last MSR there is.
    pub(super) fn new(lasts: &[MsrIndex]) -> Self {
        let mut ends = Self {
            lasts: vec![MsrIndex::MIN; lasts.len() + 1].into(),
            places: vec![0; lasts.len() + 1].into(),
        };
        let placed = ends.fill(1, lasts, 0);
        debug_assert_eq!(placed as usize, lasts.len(), "each rule has a node");
        ends
    }

    /// Gives the nodes below `node`, and itself, the rules from `next` on. Returns the next one then.
    fn fill(&mut self, node: usize, lasts: &[MsrIndex], next: u32) -> u32 {
        if node >= self.lasts.len() {
            return next;
        }
        let own = self.fill(2 * node, lasts, next);
        self.lasts[node] = lasts[own as usize];
        self.places[node] = own;
        self.fill(2 * node + 1, lasts, own + 1)
    }

    /// The place of the rule that an MSR falls under: the first that does not end before it.
    #[inline]
    pub(super) fn find(&self, index: MsrIndex) -> usize {
        let mut node = 1;
        while let Some(&last) = self.lasts.get(node) {
            node = 2 * node + usize::from(last < index);
        }
        // The last step to the left was taken at the node that is looked for; all after it, to the
        // right, are the ones below.
        self.places[node >> (node.trailing_ones() + 1)] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a linear search has it, for all numbers of rules around the full levels.
    #[test]
    fn a_rule_is_found_by_each_of_its_msrs() {
        for count in 1..=130_u32 {
            let last = |rule| {
                let end = 3 * rule + rule % 2 + 1;
                MsrIndex::new(if rule + 1 == count { u32::MAX } else { end })
            };
            let lasts: Vec<_> = (0..count).map(last).collect();
            let ends = Ends::new(&lasts);
            for index in (0..3 * count + 4).chain([u32::MAX - 1, u32::MAX]) {
                let index = MsrIndex::new(index);
                let place = lasts.iter().position(|&last| index <= last);
                assert_eq!(Some(ends.find(index)), place, "{index} of {count}");
            }
        }
    }
}
