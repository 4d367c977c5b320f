//! The selection of a trace's accesses by `--task`, and the list of the trace's tasks.

use msrgate_policy::trace::{Line, Task, Tasks};

/// The selection of accesses by their tasks.
pub(in crate::commands) struct Selected<'a> {
    wanted: &'a [String],
    tasks: Tasks,
    /// The number of accesses of tasks that are not selected.
    skipped: u64,
    /// The number of accesses whose task the trace does not name, if tasks are selected.
    nameless: u64,
}

impl<'a> Selected<'a> {
    /// Returns a selection of the tasks `wanted`, or of all tasks if `wanted` is empty.
    pub(in crate::commands) fn new(wanted: &'a [String]) -> Self {
        Self {
            wanted,
            tasks: Tasks::default(),
            skipped: 0,
            nameless: 0,
        }
    }

    /// Counts the task of a trace's line, and returns the line. If the line is an access that is not
    /// selected, returns an event that is no access in its place.
    pub(in crate::commands) fn of_line<'t>(
        &mut self,
        line: Line,
        task: impl FnOnce() -> Option<Task<'t>>,
    ) -> Line {
        if !matches!(line, Line::Access(_) | Line::Deflected(_)) {
            return line;
        }
        let task = task();
        if let Some(task) = &task {
            self.tasks.add(task);
        }
        if self.wanted.is_empty() {
            return line;
        }
        match task {
            Some(task) if self.wanted.iter().any(|one| task.is(one.as_bytes())) => line,
            Some(_) => {
                self.skipped += 1;
                Line::Other
            }
            None => {
                self.nameless += 1;
                Line::Other
            }
        }
    }

    /// The tasks that the trace names.
    pub(in crate::commands) const fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The number of accesses of tasks that are not selected.
    pub(in crate::commands) const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The number of accesses that may be of a selected task, because the trace does not name their task.
    pub(in crate::commands) const fn nameless(&self) -> u64 {
        self.nameless
    }

    /// Returns true if the trace names the task of every access, or all tasks are selected.
    pub(in crate::commands) const fn is_sure(&self) -> bool {
        self.nameless == 0
    }

    /// Returns true if `--task` selects accesses.
    pub(in crate::commands) const fn is_part(&self) -> bool {
        !self.wanted.is_empty()
    }
}
