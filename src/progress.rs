//! Progress bars on stderr; nothing where stderr is not a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Makes the bars of one command.
#[derive(Clone, Copy)]
pub struct Progress {
    pub quiet: bool,
}

impl Progress {
    /// A bar of bytes that starts where an earlier download stopped.
    pub fn downloading(self, bytes: u64, done: u64) -> ProgressBar {
        let bar = self.bar(
            "{msg}  {wide_bar} {decimal_bytes}/{decimal_total_bytes} ({decimal_bytes_per_sec}, {eta} left)",
        );
        bar.set_length(bytes);
        bar.with_position(done)
    }

    /// A bar of bytes.
    pub fn loading(self) -> ProgressBar {
        self.bar("loading    {wide_bar} {decimal_bytes}/{decimal_total_bytes} ({decimal_bytes_per_sec})")
    }

    /// A bar of model evaluations, which most samplers have one of in a step.
    pub fn denoising(self, evaluations: usize, steps: usize) -> ProgressBar {
        let unit = unit(evaluations, steps);
        let bar = self.bar(&format!(
            "denoising  {{wide_bar}} {{pos}}/{{len}}, {{steps_per_second}} {unit}, {{eta}} left"
        ));
        bar.set_length(evaluations as u64);
        bar
    }

    fn bar(self, template: &str) -> ProgressBar {
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style = ProgressStyle::with_template(template).expect("a template of ours");
        let style = style.with_key(
            "steps_per_second",
            |state: &indicatif::ProgressState, w: &mut dyn std::fmt::Write| {
                // Nothing can be done about a terminal that is gone.
                let _ = write!(w, "{:.1}", state.per_sec());
            },
        );
        ProgressBar::with_draw_target(Some(0), target).with_style(style.progress_chars("=> "))
    }
}

/// What the positions of [`Progress::denoising`] count.
pub fn unit(evaluations: usize, steps: usize) -> &'static str {
    if evaluations == steps { "steps/s" } else { "evaluations/s" }
}
