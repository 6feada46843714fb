//! What the store of a region runs, each script one atomic step, and the keys that it works on.
//!
//! ```text
//!   lock:<slot>     token:fence:member         LEASE                      word:<slot>    U | F…            as long as it holds
//!   waits:<slot>    1                          5 s                        entry:<slot>   data created fresh stale     keep
//!   parts:<slot>    token, p…, p…, e | x       30 s from the last push    fence          number of locks taken
//!   purges          stream: s scopes, m mode, w who                       floor, log     see `purges`
//!   members         hash: member -> position, time of its heartbeat
//! ```
//! All begin with `perigee:{REGION}:`. The braces are a hash tag: a script has to see lock, entry and purges together, so a region lies
//! in one slot of a cluster. A cluster brings failover, not more room. What grows has a time to live, so `volatile-lru` is the
//! `maxmemory-policy` to choose: it takes entries and never the log.
//!
//! Lua's numbers are doubles. Times in milliseconds fit; a position does not, and travels as a stream id, `ms-sequence`.

use std::sync::LazyLock;

use bytes::Bytes;
use redis::{Cmd, RedisWrite, ToRedisArgs};

use crate::cache::purge::Epoch;

pub struct Script {
    /// In metrics.
    operation: &'static str,
    pub text: &'static str,
    hash: String,
}

/// What is asked of the store: a script with its keys and arguments, or a command.
pub struct Call {
    pub operation: &'static str,
    /// To be loaded when the store does not know it.
    pub script: Option<&'static Script>,
    pub cmd: Cmd,
    /// Of all arguments.
    pub bytes: usize,
}

impl Script {
    fn new(operation: &'static str, text: &'static str) -> Script {
        Script { operation, text, hash: redis::Script::new(text).get_hash().into() }
    }

    pub fn call(&'static self, keys: &[&str]) -> Call {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.hash).arg(keys.len());
        let mut call = Call { operation: self.operation, script: Some(self), cmd, bytes: 0 };
        for key in keys {
            call = call.arg(key.as_bytes());
        }
        call
    }
}

impl Call {
    pub fn command(operation: &'static str, name: &str) -> Call {
        Call { operation, script: None, cmd: redis::cmd(name), bytes: 0 }
    }

    pub fn arg(mut self, value: &[u8]) -> Call {
        self.bytes += value.len();
        self.cmd.arg(value);
        self
    }

    pub fn number(mut self, value: u64) -> Call {
        self.bytes += 8;
        self.cmd.arg(value);
        self
    }

    pub fn epoch(self, epoch: Epoch) -> Call {
        self.arg(id_of(epoch).as_bytes())
    }

    /// One argument, made of a mark and parts.
    pub fn joined(mut self, mark: &[u8], parts: &[Bytes]) -> Call {
        self.bytes += mark.len() + parts.iter().map(Bytes::len).sum::<usize>();
        self.cmd.arg(Joined { mark, parts });
        self
    }
}

struct Joined<'a> {
    mark: &'a [u8],
    parts: &'a [Bytes],
}

impl ToRedisArgs for Joined<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        use std::io::Write;
        out.reserve_space_for_args([self.mark.len() + self.parts.iter().map(Bytes::len).sum::<usize>()]);
        let mut writer = out.writer_for_next_arg();
        for part in std::iter::once(self.mark).chain(self.parts.iter().map(|part| &part[..])) {
            writer.write_all(part).expect("it is written to memory");
        }
    }
}

/// A position as the stream writes it.
pub fn id_of(epoch: Epoch) -> String {
    format!("{}-{}", epoch.ms(), epoch.sequence())
}

pub fn epoch_of(id: &[u8]) -> Option<Epoch> {
    let (ms, sequence) = std::str::from_utf8(id).ok()?.split_once('-')?;
    Some(Epoch::new(ms.parse().ok()?, sequence.parse().ok()?))
}

/// The names of the keys of a region.
pub struct Keys {
    prefix: String,
    pub channel: String,
    pub fence: String,
    pub purges: String,
    pub floor: String,
    pub log: String,
    pub members: String,
}

impl Keys {
    pub fn new(region: &str) -> Keys {
        let prefix = format!("perigee:{{{region}}}:");
        let key = |name: &str| format!("{prefix}{name}");
        Keys {
            channel: key("news"),
            fence: key("fence"),
            purges: key("purges"),
            floor: key("floor"),
            log: key("log"),
            members: key("members"),
            prefix,
        }
    }

    /// The key of that kind for a slot, in hex.
    pub fn of(&self, kind: &str, slot: &str) -> String {
        format!("{}{kind}:{slot}", self.prefix)
    }
}

pub fn all() -> [&'static Script; 13] {
    [&SEEK, &RENEW, &COMMIT, &RELEASE, &PUSH, &ANNOUNCE, &PULL, &LOOK, &PURGE, &MISSING, &TAIL, &MEMBERS, &LEAVE]
}

/// KEYS word entry lock waits fence purges parts
/// ARGV token member lease_ms now_ms have_ms stale_will_do inline_bytes_max waits_ms
pub static SEEK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "seek",
        r#"
-- What is too large goes by its size, and is fetched over another connection.
local function data()
  local size = redis.call('HSTRLEN', KEYS[2], 'data')
  if size > tonumber(ARGV[7]) then return size end
  return redis.call('HGET', KEYS[2], 'data')
end
local entry = redis.call('HMGET', KEYS[2], 'created', 'fresh', 'stale')
local younger = entry[1] and tonumber(entry[1]) > tonumber(ARGV[5])
local now = tonumber(ARGV[4])
if younger and (tonumber(entry[2]) > now or (ARGV[6] == '1' and tonumber(entry[3]) > now)) then
  return {'entry', data()}
end
-- After the entry: what failed a moment ago may be there and stale, and will do.
local word = redis.call('GET', KEYS[1])
if word then return {'word', word, redis.call('PTTL', KEYS[1])} end

local lock = redis.call('GET', KEYS[3])
if lock then
  redis.call('SET', KEYS[4], '1', 'PX', ARGV[8])
  local arriving = redis.call('LINDEX', KEYS[7], 0) == lock:sub(1, 32)
  return {'held', redis.call('PTTL', KEYS[3]), arriving and lock:sub(1, 32)}
end
local fence = redis.call('INCR', KEYS[5])
redis.call('SET', KEYS[3], ARGV[1] .. ':' .. fence .. ':' .. ARGV[2], 'PX', ARGV[3])
local last = redis.call('XREVRANGE', KEYS[6], '+', '-', 'COUNT', 1)
return {'won', fence, last[1] and last[1][1] or '0-0', younger and data()}
"#,
    )
});

/// KEYS lock parts; ARGV token lease_ms parts_ms
pub static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "renew",
        r#"
local lock = redis.call('GET', KEYS[1])
if not lock or lock:sub(1, 32) ~= ARGV[1] then return 0 end
-- An origin may pause for longer than parts are kept.
if redis.call('LINDEX', KEYS[2], 0) == ARGV[1] then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"#,
    )
});

/// KEYS lock entry word waits parts purges
/// ARGV token epoch scopes created fresh stale keep_ms slot channel parts_ms data
pub static COMMIT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "commit",
        r#"
local lock = redis.call('GET', KEYS[1])
if not lock or lock:sub(1, 32) ~= ARGV[1] then return 'lost' end

-- Records and scopes to look at: beyond that it is called purged, which is always right and seldom needed.
local function purged()
  local after = redis.call('XRANGE', KEYS[6], '(' .. ARGV[2], '+', 'COUNT', 1001)
  if #after == 0 then return false end
  if #after > 1000 then return true end
  local own = {[string.rep('\0', 16)] = true}
  for i = 1, #ARGV[3], 16 do own[ARGV[3]:sub(i, i + 15)] = true end
  local looked = 0
  for _, record in ipairs(after) do
    local scopes = record[2][2]
    looked = looked + #scopes / 16
    if looked > 10000 then return true end
    for i = 1, #scopes, 16 do
      if own[scopes:sub(i, i + 15)] then return true end
    end
  end
  return false
end

local outcome = 'purged'
if not purged() then
  outcome = 'stored'
  redis.call('HSET', KEYS[2], 'data', ARGV[11], 'created', ARGV[4], 'fresh', ARGV[5], 'stale', ARGV[6])
  redis.call('PEXPIRE', KEYS[2], ARGV[7])
  redis.call('DEL', KEYS[3])
end
-- Who reads the parts along is still at it.
redis.call('PEXPIRE', KEYS[5], ARGV[10])
redis.call('DEL', KEYS[1])
if redis.call('DEL', KEYS[4]) == 1 then redis.call('PUBLISH', ARGV[9], ARGV[8]) end
return outcome
"#,
    )
});

/// KEYS lock word waits entry; ARGV token slot channel word word_ms only_if_somebody_waits
pub static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "release",
        r#"
local lock = redis.call('GET', KEYS[1])
if not lock or lock:sub(1, 32) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
local waited = redis.call('DEL', KEYS[3]) == 1
if ARGV[4] ~= '' and (waited or ARGV[6] == '0') then redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5]) end
-- The origin has a new answer and does not want it kept: the old one must not outlive it.
if ARGV[4] == 'U' then redis.call('DEL', KEYS[4]) end
if waited then redis.call('PUBLISH', ARGV[3], ARGV[2]) end
return 1
"#,
    )
});

/// KEYS lock parts waits; ARGV token slot channel parts_ms from element…
pub static PUSH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "push",
        r#"
local lock = redis.call('GET', KEYS[1])
if not lock or lock:sub(1, 32) ~= ARGV[1] then return -1 end
local from = tonumber(ARGV[5])
if redis.call('LINDEX', KEYS[2], 0) ~= ARGV[1] then
  if from > 0 then return -2 end
  redis.call('DEL', KEYS[2])
  redis.call('RPUSH', KEYS[2], ARGV[1])
end
-- A push whose answer was lost comes again: what it brought then is there.
local there = redis.call('LLEN', KEYS[2]) - 1
if there < from then return -2 end
for i = 6 + there - from, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
redis.call('PEXPIRE', KEYS[2], ARGV[4])
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('PUBLISH', ARGV[3], ARGV[2]) end
return redis.call('LLEN', KEYS[2]) - 1
"#,
    )
});

/// KEYS lock word entry waits; ARGV token word word_ms slot channel
pub static ANNOUNCE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "announce",
        r#"
local lock = redis.call('GET', KEYS[1])
if not lock or lock:sub(1, 32) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[3])
if redis.call('EXISTS', KEYS[4]) == 1 then redis.call('PUBLISH', ARGV[5], ARGV[4]) end
return 1
"#,
    )
});

/// KEYS lock parts waits; ARGV token from bytes_max waits_ms
pub static PULL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "pull",
        r#"
if redis.call('LINDEX', KEYS[2], 0) ~= ARGV[1] then return {'cut'} end
local parts, bytes, at = {}, 0, tonumber(ARGV[2]) + 1
while true do
  local some = redis.call('LRANGE', KEYS[2], at, at + 7)
  if #some == 0 then break end
  for _, part in ipairs(some) do
    local mark = part:sub(1, 1)
    if mark == 'e' then return {'whole', parts} end
    if mark == 'x' then return {'cut', parts} end
    bytes = bytes + #part
    if #parts > 0 and bytes > tonumber(ARGV[3]) then return {'open', parts} end
    parts[#parts + 1] = part
  end
  at = at + #some
end
local lock = redis.call('GET', KEYS[1])
if not lock or lock:sub(1, 32) ~= ARGV[1] then return {'cut', parts} end
redis.call('SET', KEYS[3], '1', 'PX', ARGV[4])
return {'open', parts}
"#,
    )
});

/// KEYS entry lock word; ARGV inline_bytes_max
pub static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "look",
        r#"
local size = redis.call('HSTRLEN', KEYS[1], 'data')
local data = size
if size <= tonumber(ARGV[1]) then data = redis.call('HGET', KEYS[1], 'data') end
return {data, redis.call('GET', KEYS[2]), redis.call('PTTL', KEYS[2]), redis.call('GET', KEYS[3]), redis.call('PTTL', KEYS[3])}
"#,
    )
});

/// KEYS purges floor log; ARGV at_least_ms at_least_sequence scopes mode who channel new_log records_max records_kept
pub static PURGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "purge",
        r#"
redis.call('SET', KEYS[3], ARGV[7], 'NX')
local time = redis.call('TIME')
local ms, sequence = time[1] * 1000 + math.floor(time[2] / 1000), 0
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if last[1] then
  local last_ms, last_sequence = last[1][1]:match('(%d+)-(%d+)')
  last_ms, last_sequence = tonumber(last_ms), tonumber(last_sequence)
  if last_ms >= ms then
    ms, sequence = last_ms, last_sequence + 1
    if sequence >= 1048575 then ms, sequence = ms + 1, 0 end
  end
end
local least_ms, least_sequence = tonumber(ARGV[1]), tonumber(ARGV[2])
if ms < least_ms or (ms == least_ms and sequence <= least_sequence) then ms, sequence = least_ms + 1, 0 end
local id = string.format('%.0f-%.0f', ms, sequence)
redis.call('XADD', KEYS[1], id, 's', ARGV[3], 'm', ARGV[4], 'w', ARGV[5])
if redis.call('XLEN', KEYS[1]) > tonumber(ARGV[8]) then
  redis.call('XTRIM', KEYS[1], 'MAXLEN', '=', ARGV[9])
  local first_ms, first_sequence = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1]:match('(%d+)-(%d+)')
  first_ms, first_sequence = tonumber(first_ms), tonumber(first_sequence) - 1
  if first_sequence < 0 then first_ms, first_sequence = first_ms - 1, 1048575 end
  redis.call('SET', KEYS[2], string.format('%.0f-%.0f', first_ms, first_sequence))
end
redis.call('PUBLISH', ARGV[6], 'purge')
return id
"#,
    )
});

/// Which of these records of ours are not in the log. KEYS purges; ARGV who id…
pub static MISSING: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "missing",
        r#"
local missing = {}
for i = 2, #ARGV do
  local record = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if not record or record[2][6] ~= ARGV[1] then missing[#missing + 1] = i - 2 end
end
return missing
"#,
    )
});

/// KEYS purges floor log members; ARGV read bytes_max new_log member taken
pub static TAIL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "tail",
        r#"
redis.call('SET', KEYS[3], ARGV[3], 'NX')
if ARGV[5] ~= '' then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[4], ARGV[4], ARGV[5] .. ' ' .. string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
end
-- A hundred at a time: a record has up to 16 kB.
local records, bytes, read = {}, 0, ARGV[1]
repeat
  local some = redis.call('XRANGE', KEYS[1], '(' .. read, '+', 'COUNT', 100)
  for _, record in ipairs(some) do
    records[#records + 1] = record
    bytes, read = bytes + 64 + #record[2][2], record[1]
  end
until #some < 100 or bytes > tonumber(ARGV[2])
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
return {redis.call('GET', KEYS[3]), redis.call('GET', KEYS[2]) or '0-0', last[1] and last[1][1] or '0-0', records}
"#,
    )
});

/// KEYS members; ARGV forgotten_after_ms
pub static MEMBERS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "members",
        r#"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local fields = redis.call('HGETALL', KEYS[1])
local members = {}
for i = 1, #fields, 2 do
  local taken, heard = fields[i + 1]:match('(%d+%-%d+) (%d+)')
  local age = heard and now - tonumber(heard) or 1 / 0
  if age > tonumber(ARGV[1]) then
    redis.call('HDEL', KEYS[1], fields[i])
  else
    members[#members + 1] = {fields[i], taken, age}
  end
end
return members
"#,
    )
});

/// KEYS members; ARGV member
pub static LEAVE: LazyLock<Script> =
    LazyLock::new(|| Script::new("leave", "return redis.call('HDEL', KEYS[1], ARGV[1])"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_the_way_to_the_stream_and_back() {
        for epoch in [Epoch(0), Epoch(1), Epoch::new(1_900_000_000_000, 0), Epoch::new(1_900_000_000_000, 1_048_575)] {
            assert_eq!(epoch_of(id_of(epoch).as_bytes()), Some(epoch));
        }
        for wrong in ["", "5", "-", "5-", "a-1", "1-b"] {
            assert_eq!(epoch_of(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn all_keys_of_a_region_share_one_hash_tag() {
        let keys = Keys::new("fra1");
        assert_eq!(keys.of("lock", "00ff"), "perigee:{fra1}:lock:00ff");
        assert_eq!(keys.channel, "perigee:{fra1}:news");
        for key in [&keys.fence, &keys.purges, &keys.floor, &keys.log, &keys.members] {
            assert!(key.starts_with("perigee:{fra1}:"), "{key}");
        }
    }
}
