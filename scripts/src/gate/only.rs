//! The part of a run that was asked for.

use super::session::Session;

/// Which suites of it, and where: those whose names contain one of these, or all.
#[derive(Debug, Clone, Default)]
pub struct Only {
    /// Parts of the names of suites.
    pub suites: Vec<String>,
    /// Parts of the names of places.
    pub places: Vec<String>,
}

impl Only {
    pub(super) fn takes(&self, suite: &str) -> bool {
        self.suites.is_empty() || self.suites.iter().any(|part| suite.contains(part.as_str()))
    }

    pub(super) fn goes_to(&self, place: &str) -> bool {
        // A kernel 6.1 is not one of 6.12.
        let goes_on = |at: usize| place[at..].starts_with(|next: char| next.is_ascii_digit());
        let is_meant =
            |part: &String| place.match_indices(part.as_str()).any(|(at, found)| !goes_on(at + found.len()));
        self.places.is_empty() || self.places.iter().any(is_meant)
    }

    /// The session without what was not asked for.
    pub(super) fn of(&self, mut session: Session) -> Session {
        let is_wanted = self.goes_to(&session.place);
        session.steps.retain(|step| is_wanted && self.takes(&step.name));
        session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_by_a_part_that_does_not_go_on() {
        let only = |part: &str| Only { places: vec![part.to_owned()], ..Only::default() };
        assert!(
            only("AMD host 6.1").goes_to("AMD host 6.1") && !only("AMD host 6.1").goes_to("AMD host 6.12")
        );
        assert!(only("AMD").goes_to("AMD host, five-level paging") && !only("here").goes_to("AMD host 6.1"));
        assert!(Only::default().goes_to(super::super::HERE));
    }
}
