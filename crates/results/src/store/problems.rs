//! What could not be read of a result file: a bounded list of messages.

/// Maximum number of problems of a file that are listed, and maximum length of one in characters.
pub(crate) const MAX_PROBLEMS: usize = 1000;
pub(crate) const MAX_PROBLEM: usize = 400;

/// What could not be read of a file.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    listed: Vec<String>,
    more: usize,
}

impl Problems {
    pub(crate) fn add(&mut self, problem: String) {
        if self.listed.len() == MAX_PROBLEMS {
            self.more += 1;
        } else if problem.len() > MAX_PROBLEM {
            // A message may quote a text of megabytes.
            self.listed.push(problem.chars().take(MAX_PROBLEM).chain(['…']).collect());
        } else {
            self.listed.push(problem);
        }
    }

    pub(crate) fn finish(mut self) -> Vec<String> {
        if self.more > 0 {
            self.listed.push(format!("{} more problems", self.more));
        }
        self.listed
    }
}
