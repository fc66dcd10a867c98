//! The order in which commands run: warm-ups first, then repeats that alternate.

/// What a run is for. Both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Fills caches; its result is dropped.
    WarmUp(u32),
    /// A measurement.
    Repeat(u32),
}

/// One run of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Index of the command: 0 is A, 1 is B.
    pub(super) command: usize,
    pub(super) purpose: Purpose,
}

/// Names of the commands in reports.
pub(super) const NAMES: [&str; 2] = ["A", "B"];

/// The steps of `commands` commands. Every second repeat has the reverse order (A B B A …): a
/// change of the machine that is linear in time, such as its temperature, then has the same mean
/// effect on both.
pub(super) fn schedule(commands: usize, warmups: u32, repeats: u32) -> Vec<Step> {
    let warmups = (1..=warmups)
        .flat_map(|number| (0..commands).map(move |command| Step { command, purpose: Purpose::WarmUp(number) }));
    let repeats = (1..=repeats).flat_map(|number| {
        (0..commands).map(move |place| {
            let command = if number % 2 == 1 { place } else { commands - 1 - place };
            Step { command, purpose: Purpose::Repeat(number) }
        })
    });
    warmups.chain(repeats).collect()
}

impl Step {
    /// The step for people, for example `repeat 3 of 10 of B (ffmpeg)`.
    pub(super) fn describe(self, commands: usize, warmups: u32, repeats: u32, program: &str) -> String {
        let which = match self.purpose {
            Purpose::WarmUp(number) => format!("warm-up {number} of {warmups}"),
            Purpose::Repeat(number) => format!("repeat {number} of {repeats}"),
        };
        match NAMES.get(self.command).filter(|_| commands > 1) {
            Some(name) => format!("{which} of {name} ({program})"),
            None => format!("{which} of {program}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(steps: &[Step]) -> String {
        steps.iter().map(|step| NAMES[step.command]).collect()
    }

    #[test]
    fn repeats_alternate_and_start_after_the_warm_ups() {
        let steps = schedule(2, 2, 5);
        assert_eq!(order(&steps), "ABABABBAABBAAB");
        assert!(steps[..4].iter().all(|step| matches!(step.purpose, Purpose::WarmUp(_))));
        assert!(steps[4..].iter().all(|step| matches!(step.purpose, Purpose::Repeat(_))));
        for command in 0..2 {
            let own = steps[4..].iter().filter(|step| step.command == command);
            assert_eq!(
                own.map(|step| step.purpose).collect::<Vec<_>>(),
                (1..=5).map(Purpose::Repeat).collect::<Vec<_>>()
            );
        }
        assert_eq!(order(&schedule(1, 1, 3)), "AAAA");
        assert_eq!(schedule(1, 0, 1), [Step { command: 0, purpose: Purpose::Repeat(1) }]);
    }

    #[test]
    fn a_step_names_its_repeat_and_command() {
        let step = Step { command: 1, purpose: Purpose::Repeat(3) };
        assert_eq!(step.describe(2, 0, 10, "ffmpeg"), "repeat 3 of 10 of B (ffmpeg)");
        let step = Step { command: 0, purpose: Purpose::WarmUp(1) };
        assert_eq!(step.describe(1, 2, 10, "make"), "warm-up 1 of 2 of make");
    }
}
