//! The accesses that `--task` selects, and the tasks of the trace.

use msrgate_policy::trace::{Line, Task, Tasks};

/// The selection of accesses by their tasks.
pub(in crate::commands) struct Selected<'a> {
    wanted: &'a [String],
    tasks: Tasks,
    /// The number of accesses of other tasks.
    skipped: u64,
    /// The number of accesses whose task the trace does not name, if tasks are selected.
    nameless: u64,
}

impl<'a> Selected<'a> {
    /// Returns a selection of these tasks, or of all if none is wanted.
    pub(in crate::commands) fn new(wanted: &'a [String]) -> Self {
        Self {
            wanted,
            tasks: Tasks::default(),
            skipped: 0,
            nameless: 0,
        }
    }

    /// Counts the task of a line. Returns the line, or another event in place of an access that is not selected.
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

    /// The tasks of the trace.
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
