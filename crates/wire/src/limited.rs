//! Lists in JSON that may have so many items: one that has more is refused before memory is taken for the rest.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// A list of at most `MOST` items.
pub(crate) struct List<T, const MOST: usize>(pub Vec<T>);

/// Reads a field that is a list of at most `MOST` items.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error> {
    List::<T, MOST>::deserialize(deserializer).map(|list| list.0)
}

/// Reads a field that may be absent, or is a list of at most `MOST` items.
pub(crate) fn option<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Option::<List<T, MOST>>::deserialize(deserializer).map(|list| list.map(|list| list.0))
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for List<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<List<T, MOST>, D::Error> {
        deserializer.deserialize_seq(Items::<T, MOST>(PhantomData)).map(List)
    }
}

struct Items<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Items<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            if list.len() == MOST {
                return Err(Error::custom(format_args!("a list of more than {MOST} items; at most {MOST} are taken")));
            }
            list.push(item);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_end_at_their_limit() {
        let read = |text: &str| serde_json::from_str::<List<u64, 3>>(text).map(|list| list.0);
        assert_eq!(read("[1,2,3]").unwrap(), [1, 2, 3]);
        assert!(read("[1,2,3,4]").unwrap_err().to_string().contains("at most 3 are taken"));
        // The rest is not even looked at.
        assert!(read("[1,2,3,4,x").unwrap_err().to_string().contains("at most 3 are taken"));
        assert!(read("{}").unwrap_err().to_string().contains("a list of at most 3 items"));
    }
}
