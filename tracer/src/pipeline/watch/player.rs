//! The time of a replay: when what was recorded at some moment is due. Pure: what time it is here is an argument.

use std::time::Duration;

use crate::screen::keys::Replay;

/// Speeds to choose from; the last one is as fast as can be.
const SPEEDS: [Option<f64>; 13] = [
    Some(0.1),
    Some(0.2),
    Some(0.5),
    Some(1.0),
    Some(2.0),
    Some(5.0),
    Some(10.0),
    Some(20.0),
    Some(50.0),
    Some(100.0),
    Some(200.0),
    Some(1000.0),
    None,
];

/// As it happened.
const REAL: usize = 3;

/// Whether a recording may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Now.
    Now,
    /// After this time, if nothing changes.
    In(Duration),
    /// Not before somebody wants it.
    Never,
}

/// Plays a recording.
#[derive(Clone, Copy, Debug)]
pub(super) struct Player {
    speed: usize,
    paused: bool,
    /// Transitions that are to come although it is paused.
    steps: u32,
    /// The moment to go to without waiting.
    target_ns: Option<u64>,
    /// The moment of the recording that belongs to a time here.
    recorded_ns: u64,
    here: Duration,
}

impl Player {
    /// Begins at a moment of the recording, at its own speed.
    pub(super) fn new(recorded_ns: u64, here: Duration) -> Self {
        Self { speed: REAL, paused: false, steps: 0, target_ns: None, recorded_ns, here }
    }

    pub(super) fn speed(&self) -> Option<f64> {
        SPEEDS[self.speed]
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn is_seeking(&self) -> bool {
        self.target_ns.is_some()
    }

    /// Which moment of the recording it is; not past `next_ns`, where it goes on.
    pub(super) fn position_ns(&self, next_ns: u64, here: Duration) -> u64 {
        let passed = here.saturating_sub(self.here).as_nanos() as f64;
        match self.speed() {
            Some(speed) if !self.paused && self.target_ns.is_none() => {
                self.recorded_ns.saturating_add((passed * speed) as u64).min(next_ns)
            }
            _ => self.recorded_ns.min(next_ns),
        }
    }

    /// Whether what was recorded at `next_ns` may come whatever time it is here.
    pub(super) fn rushes(&self, next_ns: u64) -> bool {
        match self.target_ns {
            Some(target_ns) => next_ns < target_ns,
            None => !self.paused && self.speed().is_none(),
        }
    }

    /// Whether what was recorded at `next_ns` may come.
    pub(super) fn due(&mut self, next_ns: u64, here: Duration) -> Due {
        if let Some(target_ns) = self.target_ns {
            if next_ns < target_ns {
                (self.recorded_ns, self.here) = (next_ns, here);
                return Due::Now;
            }
            // Here it is; time goes on from where one wanted to be.
            self.target_ns = None;
            (self.recorded_ns, self.here) = (target_ns, here);
        }
        if self.paused {
            if self.steps == 0 {
                return Due::Never;
            }
            (self.recorded_ns, self.here) = (next_ns.max(self.recorded_ns), here);
            return Due::Now;
        }
        let Some(speed) = self.speed() else {
            (self.recorded_ns, self.here) = (next_ns.max(self.recorded_ns), here);
            return Due::Now;
        };
        let position_ns = self.position_ns(u64::MAX, here);
        match next_ns.saturating_sub(position_ns) {
            0 => Due::Now,
            left_ns => Due::In(Duration::from_nanos((left_ns as f64 / speed) as u64)),
        }
    }

    /// A transition came.
    pub(super) fn stepped(&mut self) {
        self.steps = self.steps.saturating_sub(1);
    }

    /// Does what it is told, at this moment of the recording; returns false when that is only to be had from its beginning.
    pub(super) fn order(&mut self, order: Replay, now_ns: u64, here: Duration) -> bool {
        let position_ns = self.position_ns(u64::MAX, here).max(now_ns);
        let seek = match order {
            Replay::Seek(target_ns) => Some(target_ns),
            Replay::End => Some(u64::MAX),
            _ => None,
        };
        if let Some(target_ns) = seek {
            self.target_ns = Some(target_ns);
            self.steps = 0;
            return target_ns >= now_ns;
        }
        (self.recorded_ns, self.here) = (position_ns, here);
        match order {
            Replay::Pause => (self.paused, self.steps) = (!self.paused, 0),
            Replay::Faster => self.speed = (self.speed + 1).min(SPEEDS.len() - 1),
            Replay::Slower => self.speed = self.speed.saturating_sub(1),
            Replay::Step => (self.paused, self.steps) = (true, self.steps.saturating_add(1)),
            Replay::Seek(_) | Replay::End => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn it_plays_at_its_speed() {
        let mut player = Player::new(100 * S, at(5.0));
        assert_eq!(player.due(100 * S, at(5.0)), Due::Now);
        assert_eq!(player.due(103 * S, at(6.0)), Due::In(at(2.0)));
        assert!(player.order(Replay::Faster, 100 * S, at(6.0)));
        assert_eq!(player.due(103 * S, at(6.0)), Due::In(at(1.0)));
        assert_eq!(player.position_ns(u64::MAX, at(6.5)), 102 * S);
        assert_eq!(player.position_ns(101 * S, at(6.5)), 101 * S);
    }

    #[test]
    fn a_pause_takes_no_time_and_steps_are_single() {
        let mut player = Player::new(0, at(0.0));
        player.order(Replay::Pause, 0, at(1.0));
        assert_eq!(player.due(2 * S, at(50.0)), Due::Never);
        player.order(Replay::Step, S, at(60.0));
        assert_eq!(player.due(2 * S, at(60.0)), Due::Now);
        player.stepped();
        assert_eq!(player.due(3 * S, at(60.0)), Due::Never);
        player.order(Replay::Pause, 2 * S, at(70.0));
        assert_eq!(player.due(3 * S, at(70.0)), Due::In(at(1.0)));
    }

    #[test]
    fn it_goes_on_from_where_one_wanted_to_be() {
        let mut player = Player::new(0, at(0.0));
        assert!(player.order(Replay::Seek(100 * S), 0, at(0.0)));
        assert_eq!(player.due(50 * S, at(0.1)), Due::Now);
        assert_eq!(player.due(99 * S, at(0.1)), Due::Now);
        assert_eq!(player.due(104 * S, at(0.2)), Due::In(at(4.0)));
        assert!(!player.is_seeking());
        assert!(!player.order(Replay::Seek(20 * S), 100 * S, at(0.2)));
        assert!(player.is_seeking());
    }

    #[test]
    fn as_fast_as_can_be_nothing_waits() {
        let mut player = Player::new(0, at(0.0));
        for _ in 0..20 {
            player.order(Replay::Faster, 0, at(0.0));
        }
        assert_eq!((player.speed(), player.due(u64::MAX, at(0.0))), (None, Due::Now));
        for _ in 0..20 {
            player.order(Replay::Slower, 0, at(0.0));
        }
        assert_eq!(player.speed(), Some(0.1));
    }

    #[test]
    fn times_that_no_recording_has_do_no_harm() {
        let mut player = Player::new(u64::MAX - 1, at(0.0));
        for _ in 0..8 {
            player.order(Replay::Faster, 0, at(0.0));
        }
        assert_eq!(player.due(u64::MAX, at(1e9)), Due::Now);
        assert_eq!(player.due(0, at(1e9)), Due::Now);
    }
}
