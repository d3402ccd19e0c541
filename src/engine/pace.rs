//! How fast the engine is, and so how long a picture will take.

use std::time::Duration;

/// How much the last measurement counts.
const LAST: f64 = 0.2;

/// Work is counted in latent pixels that the U-Net sees: rows of a batch, times pixels, times evaluations. The time
/// of a step grows about as they do, once the machine is full.
#[derive(Default)]
pub(super) struct Pace {
    /// Pixels a second.
    rate: Option<f64>,
}

impl Pace {
    pub fn measured(&mut self, pixels: f64, time: Duration) {
        let rate = pixels / time.as_secs_f64().max(1e-9);
        self.rate = Some(self.rate.map_or(rate, |before| before + LAST * (rate - before)));
    }

    /// The time that so much work takes; nothing is known before the first step.
    pub fn predict(&self, pixels: f64) -> Option<Duration> {
        self.rate.map(|rate| Duration::from_secs_f64(pixels / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_follow_what_was_measured() {
        let mut pace = Pace::default();
        assert!(pace.predict(1.0).is_none());
        pace.measured(100.0, Duration::from_secs(1));
        assert_eq!(pace.predict(50.0), Some(Duration::from_millis(500)));
        (0..50).for_each(|_| pace.measured(200.0, Duration::from_secs(1)));
        assert!((pace.predict(200.0).unwrap().as_secs_f64() - 1.0).abs() < 1e-3);
    }
}
