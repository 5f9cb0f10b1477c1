//! Several backends that are as good as each other, or stand in for each other.

use super::{Candidate, PlacementRequest, RoutingStrategy, View, Why};

/// How one of several is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The first: those behind it stand in while it is out or degraded.
    #[default]
    First,
    /// By the key: each has its share of the keys, and a key always goes to the same one, while that is well.
    Key,
    /// The one with the least to do; by the key where they have the same.
    LeastLoaded,
}

/// One of several backends.
#[derive(Clone, Debug)]
pub struct Group {
    names: Vec<String>,
    balance: Balance,
}

impl Group {
    /// One of these backends.
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>, balance: Balance) -> Group {
        Group { names: names.into_iter().map(Into::into).collect(), balance }
    }

    /// This one.
    pub fn one(name: &str) -> Group {
        Group::new([name], Balance::First)
    }
}

impl RoutingStrategy for Group {
    fn select_backend<'a>(&self, request: &PlacementRequest<'_>, view: &View<'a>, why: &mut Why) -> Option<Candidate<'a>> {
        let best = view.best(self.names.iter().map(String::as_str), why);
        match self.balance {
            Balance::First => best.first().copied(),
            Balance::Key => request.own(best),
            Balance::LeastLoaded => {
                for Candidate { name, load, .. } in &best {
                    why.say(|| format!("{name} has {} calls and puts of {} bytes under way", load.calls, load.put_bytes));
                }
                let least = best.iter().map(|candidate| candidate.load).min()?;
                request.own(best.into_iter().filter(|candidate| candidate.load == least))
            }
        }
    }

    fn describe(&self) -> String {
        let names = self.names.join(", ");
        match self.balance {
            _ if self.names.len() == 1 => names,
            Balance::First => format!("the first of {names}"),
            Balance::Key => format!("by key one of {names}"),
            Balance::LeastLoaded => format!("the least loaded of {names}"),
        }
    }
}
