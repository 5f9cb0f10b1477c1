//! Pages of names in the order of bytes, out of the sets of all shards.

use std::collections::VecDeque;

use redis::RedisResult;

use super::Keys;
use super::pool::Pool;

/// Names that one call looks at: more would keep the server from others for too long.
const LOOK: usize = 4096;

/// Gives the names of a part of the set whose values are there, how many it looked at, and the last of those. A name without a value is
/// one whose value expired: it is dropped, in the same step that finds it so.
const SCRIPT: &str = "
local names = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
local there = {}
for _, name in ipairs(names) do
  if redis.call('EXISTS', ARGV[4] .. name) == 1 then
    there[#there + 1] = name
  else
    redis.call('ZREM', KEYS[1], name)
  end
end
return {#names, names[#names] or '', there}";

/// What is known of one shard's part of a page.
struct Shard {
    index: usize,
    names: VecDeque<String>,
    /// Where the rest begins, as Redis writes it.
    from: Vec<u8>,
    done: bool,
}

pub(super) async fn page(pool: &Pool, keys: &Keys, prefix: &str, after: Option<&str>, limit: usize) -> RedisResult<Vec<String>> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let from = match after {
        Some(after) if after >= prefix => [b"(", after.as_bytes()].concat(),
        _ => [b"[", prefix.as_bytes()].concat(),
    };
    let to = end_of(prefix);
    // An even share of the page, and some more, since shards are not quite even.
    let look = if keys.shards == 1 { limit } else { limit / keys.shards * 5 / 4 + 16 }.min(LOOK);
    let mut shards: Vec<Shard> =
        (0..keys.shards).map(|index| Shard { index, names: VecDeque::new(), from: from.clone(), done: false }).collect();
    let mut page = Vec::new();
    loop {
        let empty = shards.iter_mut().filter(|shard| shard.names.is_empty() && !shard.done);
        futures::future::try_join_all(empty.map(|shard| fill(pool, keys, shard, &to, look))).await?;
        // As long as no shard could hide a smaller name.
        while shards.iter().all(|shard| shard.done || !shard.names.is_empty()) {
            let smallest = shards.iter_mut().filter(|shard| !shard.names.is_empty()).min_by(|a, b| a.names[0].cmp(&b.names[0]));
            let Some(name) = smallest.and_then(|shard| shard.names.pop_front()) else { return Ok(page) };
            page.push(name);
            if page.len() == limit {
                return Ok(page);
            }
        }
    }
}

/// Reads on until there is a name, or no more.
async fn fill(pool: &Pool, keys: &Keys, shard: &mut Shard, to: &[u8], look: usize) -> RedisResult<()> {
    while shard.names.is_empty() && !shard.done {
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(keys.names(shard.index)).arg(&shard.from[..]).arg(to).arg(look).arg(keys.values(shard.index));
        let (looked, last, names): (usize, Vec<u8>, Vec<String>) = pool.command(&command).await?;
        shard.names = names.into();
        shard.done = looked < look;
        shard.from = [b"(", &last[..]].concat();
    }
    Ok(())
}

/// The place behind all names with this prefix, as Redis writes it.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        // No byte of a text is 255.
        Some(last) => *last += 1,
        None => return b"+".to_vec(),
    }
    [b"(", &end[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_behind_its_names() {
        assert_eq!(end_of(""), b"+");
        assert_eq!(end_of("r/a"), b"(r/b");
        assert_eq!(end_of("r/"), b"(r0");
        assert_eq!(end_of("ä")[1..], *"å".as_bytes());
    }
}
