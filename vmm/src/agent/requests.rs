//! What the agent is asked to do.
//!
//! ```text
//!  ask ---> queued ---> handed out ---> answered ---> taken by whoever asked
//!              ^            |               ^
//!              +- not told -+-- new agent --+ (lost)
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use lucos_abi::{
    ErrorCode, MODULE_BYTES, MODULE_NAME_BYTES, Place, Report, Request, RequestKind, module_name, padded,
    sections,
};

/// Requests at a time, in whatever state: patches are applied one after the other, each with a module to load.
const REQUESTS: usize = 16;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Load this module.
    Load {
        /// Its name, as the kernel will know it.
        name: String,
        /// Its file.
        module: Arc<[u8]>,
    },
    /// Unload this module.
    Unload {
        /// Its name.
        name: String,
    },
}

/// Why the agent cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// There are requests enough.
    #[error("{REQUESTS} requests to the guest's agent are not done with; it may hang")]
    Full,
    /// A module cannot have this name.
    #[error("{0:?} is no name of a module: letters, digits and _, at most {max} of them", max = MODULE_NAME_BYTES - 1)]
    Name(String),
    /// The file is empty, or too large.
    #[error("a module of {0} bytes is not one that the agent loads; it takes 1 to {MODULE_BYTES}")]
    Size(usize),
}

/// How a request has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its id.
    pub id: u32,
    /// How.
    pub outcome: Outcome,
}

/// What the agent says, which is an allegation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done {
        /// The kernel's taint afterwards.
        taint: u64,
        /// Where the module's sections are; none after it was unloaded.
        sections: Vec<ModuleSection>,
    },
    /// The system call has failed.
    Failed {
        /// With what (errno(3)).
        errno: u32,
        /// The kernel's taint afterwards.
        taint: u64,
    },
    /// The agent that was told has ended, or the guest was reset. Whether it is done is unknown.
    Lost,
}

/// Where the guest says that a section is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleSection {
    /// Its name.
    pub name: String,
    /// Its address; 0 where the kernel hides it.
    pub address: u64,
}

#[derive(Debug)]
struct Pending {
    id: u32,
    order: Order,
    /// Nobody waits for it any more.
    withdrawn: bool,
}

impl Pending {
    fn request(&self) -> Request {
        let (kind, bytes, name) = match &self.order {
            Order::Load { name, module } => (RequestKind::Load, module.len() as u64, name),
            Order::Unload { name } => (RequestKind::Unload, 0, name),
        };
        Request { id: self.id.into(), kind: (kind as u32).into(), bytes: bytes.into(), name: padded(name) }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Requests {
    last_id: u32,
    queued: VecDeque<Pending>,
    handed_out: Vec<Pending>,
    answers: Vec<Answer>,
}

impl Requests {
    /// Adds one; returns its id.
    pub(super) fn ask(&mut self, order: Order) -> Result<u32, AskError> {
        let (Order::Load { name, .. } | Order::Unload { name }) = &order;
        if module_name(name.as_bytes()).is_none() {
            return Err(AskError::Name(name.clone()));
        }
        if let Order::Load { module, .. } = &order
            && (module.is_empty() || module.len() as u64 > MODULE_BYTES)
        {
            return Err(AskError::Size(module.len()));
        }
        if self.queued.len() + self.handed_out.len() + self.answers.len() >= REQUESTS {
            return Err(AskError::Full);
        }
        // Ids have as many bits as a place has for them, and begin anew after 16 million requests.
        self.last_id = self.last_id % Place::NUMBER_MAX + 1;
        let id = self.last_id;
        self.queued.push_back(Pending { id, order, withdrawn: false });
        Ok(id)
    }

    /// Takes one back. Returns whether the agent may do it all the same, as it was told; then there is an answer to come.
    pub(super) fn withdraw(&mut self, id: u32) -> bool {
        self.queued.retain(|pending| pending.id != id);
        let told = self.handed_out.iter_mut().find(|pending| pending.id == id);
        let answered = self.answers.iter().any(|answer| answer.id == id);
        told.map(|pending| pending.withdrawn = true).is_some() || answered
    }

    /// Hands the next one out.
    pub(super) fn next(&mut self) -> Option<Request> {
        let pending = self.queued.pop_front()?;
        let request = pending.request();
        self.handed_out.push(pending);
        Some(request)
    }

    /// The agent could not be told of a request that was handed out just now.
    pub(super) fn put_back(&mut self, id: u32) {
        if let Some(index) = self.handed_out.iter().position(|pending| pending.id == id) {
            let pending = self.handed_out.remove(index);
            if !pending.withdrawn {
                self.queued.push_front(pending);
            }
        }
    }

    /// The module that goes with a request that was handed out, if it is still to be loaded.
    pub(super) fn module(&self, id: u32) -> Option<Arc<[u8]>> {
        let pending = self.handed_out.iter().find(|pending| pending.id == id && !pending.withdrawn)?;
        match &pending.order {
            Order::Load { module, .. } => Some(Arc::clone(module)),
            Order::Unload { .. } => None,
        }
    }

    /// Takes the agent's answer, with its text.
    pub(super) fn report(&mut self, report: &Report, text: &[u8]) -> Result<(), ErrorCode> {
        let (id, taint) = (report.id.get(), report.taint.get());
        let index = self.handed_out.iter().position(|pending| pending.id == id);
        let index = index.ok_or(ErrorCode::UnknownRequest)?;
        let outcome = match report.errno.get() {
            0 => Outcome::Done { taint, sections: owned(text)? },
            errno => Outcome::Failed { errno, taint },
        };
        self.handed_out.remove(index);
        self.answers.push(Answer { id, outcome });
        Ok(())
    }

    /// The agent that was told of them is gone; `all` says whether the guest is, too.
    pub(super) fn lose(&mut self, all: bool) {
        let queued = self.queued.drain(..if all { self.queued.len() } else { 0 });
        let lost = self.handed_out.drain(..).chain(queued);
        self.answers.extend(lost.map(|pending| Answer { id: pending.id, outcome: Outcome::Lost }));
    }

    /// What has been answered since the last time.
    pub(super) fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }
}

fn owned(text: &[u8]) -> Result<Vec<ModuleSection>, ErrorCode> {
    let owned = sections(text).map(|section| {
        section.map(|section| ModuleSection { name: section.name.to_owned(), address: section.address })
    });
    owned.collect::<Result<_, _>>().map_err(|_| ErrorCode::BadArgument)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, len: usize) -> Order {
        Order::Load { name: name.into(), module: vec![7; len].into() }
    }

    fn report(id: u32, errno: u32) -> Report {
        Report {
            id: id.into(),
            errno: errno.into(),
            taint: 4096.into(),
            text_bytes: 0.into(),
            reserved: 0.into(),
        }
    }

    #[test]
    fn requests_are_handed_out_in_order_and_answered_once() {
        let mut requests = Requests::default();
        assert_eq!(requests.ask(load("one", 5)), Ok(1));
        assert_eq!(requests.ask(Order::Unload { name: "two".into() }), Ok(2));
        assert_eq!(requests.module(1), None);
        assert_eq!(requests.report(&report(1, 0), b""), Err(ErrorCode::UnknownRequest));
        let first = requests.next().unwrap();
        assert_eq!((first.id.get(), first.kind(), first.bytes.get()), (1, Some(RequestKind::Load), 5));
        requests.put_back(1);
        assert_eq!(requests.next(), Some(first));
        assert_eq!(requests.module(1).as_deref(), Some(&[7; 5][..]));
        assert_eq!(requests.next().unwrap().name(), Some("two"));
        assert_eq!((requests.next(), requests.module(2)), (None, None));

        assert_eq!(requests.report(&report(1, 0), b".text zero\n"), Err(ErrorCode::BadArgument));
        assert_eq!(requests.report(&report(1, 0), b".text 0x10\n"), Ok(()));
        assert_eq!(requests.report(&report(1, 0), b".text 0x10\n"), Err(ErrorCode::UnknownRequest));
        assert_eq!(requests.report(&report(2, 16), b""), Ok(()));
        let sections = vec![ModuleSection { name: ".text".into(), address: 16 }];
        assert_eq!(
            requests.take_answers(),
            [
                Answer { id: 1, outcome: Outcome::Done { taint: 4096, sections } },
                Answer { id: 2, outcome: Outcome::Failed { errno: 16, taint: 4096 } }
            ]
        );
        assert_eq!(requests.take_answers(), []);
    }

    #[test]
    fn a_new_agent_loses_what_was_handed_out_and_a_reset_loses_all() {
        let mut requests = Requests::default();
        for name in ["a", "b", "c"] {
            requests.ask(load(name, 1)).unwrap();
        }
        requests.next();
        requests.lose(false);
        assert_eq!(requests.take_answers(), [Answer { id: 1, outcome: Outcome::Lost }]);
        assert_eq!(requests.next().unwrap().id.get(), 2);
        requests.lose(true);
        assert_eq!(requests.take_answers().iter().map(|answer| answer.id).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(requests.next(), None);
    }

    #[test]
    fn nonsense_and_too_much_are_refused() {
        let mut requests = Requests::default();
        assert_eq!(requests.ask(load("../x", 1)), Err(AskError::Name("../x".into())));
        assert_eq!(requests.ask(load("x", 0)), Err(AskError::Size(0)));
        assert_eq!(requests.ask(load("x", (16 << 20) + 1)), Err(AskError::Size((16 << 20) + 1)));
        let ids: Vec<u32> = std::iter::from_fn(|| requests.ask(load("x", 1)).ok()).collect();
        assert_eq!(ids.len(), REQUESTS);
        // Answers that nobody takes count, too.
        requests.next();
        requests.report(&report(1, 1), b"").unwrap();
        assert_eq!(requests.ask(load("x", 1)), Err(AskError::Full));
        assert_eq!(requests.take_answers().len(), 1);
        assert!(!requests.withdraw(2));
        assert_eq!(requests.ask(load("x", 1)), Ok(17));
        assert_eq!(requests.next().unwrap().id.get(), 3);
    }

    #[test]
    fn what_the_agent_was_told_of_is_answered_although_it_was_withdrawn() {
        let mut requests = Requests::default();
        for name in ["a", "b"] {
            requests.ask(load(name, 1)).unwrap();
        }
        requests.next();
        assert!(requests.module(1).is_some());
        assert!(requests.withdraw(1));
        // It is not begun any more, and heard of if it was.
        assert_eq!(requests.module(1), None);
        requests.report(&report(1, 0), b"").unwrap();
        assert!(requests.withdraw(1) && !requests.withdraw(7));
        assert_eq!(requests.take_answers().len(), 1);
        assert!(!requests.withdraw(1) && !requests.withdraw(2));
        assert_eq!(requests.next(), None);
    }
}
