//! The form in which a response lies on disk and in the store of a region: our own, flat, with a version.
//!
//! ```text
//!   packed = head bytes u32 · head · body                        all numbers little-endian
//!   head   = version u8 · status u16 · created, fresh until, stored at (unix ms, u64) · windows (s, u32) × 2
//!            · primary key [16] · variance 0 | 1 [16] · family u64 · owner [16] · began u64 × 2
//!            · tags u16 × text · fields u16 × (name, value)            texts: length u32 · bytes
//! ```
//! Whoever stores it also keeps a checksum of it (`storage::node`) or trusts its store (`storage::regional`); reading checks every length
//! all the same and never panics, whatever the bytes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};
use pingora_http::ResponseHeader;

use super::entry::{Entry, Place, Source};
use super::freshness::Lifetime;
use super::purge::{Epoch, Position, Scope};

const VERSION: u8 = 1;

/// Another version, or bytes that are not a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

/// A response but for its body.
#[derive(Debug)]
pub struct Head {
    pub header: ResponseHeader,
    pub lifetime: Lifetime,
    pub place: Place,
    pub stored_at: SystemTime,
}

impl Head {
    pub fn with_body(self, body: Bytes, source: Source) -> Entry {
        Entry::stored(self.header, body, self.lifetime, self.place, source, self.stored_at)
    }
}

/// Head and body, to be written one after the other.
pub fn pack(entry: &Entry) -> [Bytes; 2] {
    [pack_head(&entry.header, &entry.lifetime, &entry.place, entry.stored_at), entry.body.clone()]
}

pub fn pack_head(header: &ResponseHeader, lifetime: &Lifetime, place: &Place, stored_at: SystemTime) -> Bytes {
    let mut head = BytesMut::with_capacity(512);
    head.put_u32_le(0);
    head.put_u8(VERSION);
    head.put_u16_le(header.status.as_u16());
    for time in [lifetime.created, lifetime.fresh_until, stored_at] {
        head.put_u64_le(unix_ms(time));
    }
    head.put_u32_le(lifetime.stale_while_revalidate_s);
    head.put_u32_le(lifetime.stale_if_error_s);
    head.put_slice(&place.primary);
    match place.variance {
        None => head.put_u8(0),
        Some(variance) => {
            head.put_u8(1);
            head.put_slice(&variance);
        }
    }
    head.put_u64_le(place.family);
    head.put_slice(&place.owner.0);
    head.put_u64_le(place.began.node.0);
    head.put_u64_le(place.began.region.0);
    head.put_u16_le(u16::try_from(place.tags.len()).unwrap_or(u16::MAX));
    for tag in place.tags.iter().take(usize::from(u16::MAX)) {
        put_text(&mut head, tag.as_bytes());
    }
    head.put_u16_le(u16::try_from(header.headers.len()).unwrap_or(u16::MAX));
    for (name, value) in header.headers.iter().take(usize::from(u16::MAX)) {
        put_text(&mut head, name.as_str().as_bytes());
        put_text(&mut head, value.as_bytes());
    }
    let bytes = u32::try_from(head.len() - 4).expect("a header is far below 4 GiB");
    head[..4].copy_from_slice(&bytes.to_le_bytes());
    head.freeze()
}

/// The response; its body shares the bytes that were given.
pub fn unpack(mut packed: Bytes, source: Source) -> Result<Entry, Unreadable> {
    let head = unpack_head(&mut packed)?;
    Ok(head.with_body(packed, source))
}

/// Reads the head and leaves the body in `packed`.
pub fn unpack_head(packed: &mut Bytes) -> Result<Head, Unreadable> {
    let bytes = usize::try_from(take_u32(packed)?).map_err(|_| Unreadable)?;
    let mut head = take(packed, bytes)?;
    if take_u8(&mut head)? != VERSION {
        return Err(Unreadable);
    }
    let status = take_u16(&mut head)?;
    let mut times = [SystemTime::UNIX_EPOCH; 3];
    for time in &mut times {
        *time = time_of(take_u64(&mut head)?)?;
    }
    let [created, fresh_until, stored_at] = times;
    let (stale_while_revalidate_s, stale_if_error_s) = (take_u32(&mut head)?, take_u32(&mut head)?);
    let primary = take_array(&mut head)?;
    let variance = match take_u8(&mut head)? {
        0 => None,
        1 => Some(take_array(&mut head)?),
        _ => return Err(Unreadable),
    };
    let family = take_u64(&mut head)?;
    let owner = Scope(take_array(&mut head)?);
    let began = Position { node: Epoch(take_u64(&mut head)?), region: Epoch(take_u64(&mut head)?) };
    let mut tags: Vec<Box<str>> = Vec::new();
    for _ in 0..take_u16(&mut head)? {
        tags.push(std::str::from_utf8(&take_text(&mut head)?).map_err(|_| Unreadable)?.into());
    }
    let fields = take_u16(&mut head)?;
    let mut header = ResponseHeader::build_no_case(status, Some(usize::from(fields) + 8)).map_err(|_| Unreadable)?;
    for _ in 0..fields {
        let name = HeaderName::from_bytes(&take_text(&mut head)?).map_err(|_| Unreadable)?;
        let value = HeaderValue::from_maybe_shared(take_text(&mut head)?).map_err(|_| Unreadable)?;
        header.append_header(name, value).map_err(|_| Unreadable)?;
    }
    if head.has_remaining() {
        return Err(Unreadable);
    }
    let place = Place::new(primary, family, owner, began, Arc::from(tags)).variant(variance);
    let lifetime = Lifetime { created, fresh_until, stale_while_revalidate_s, stale_if_error_s };
    Ok(Head { header, lifetime, place, stored_at })
}

pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// No time of a response is later than this: the year 3000. Later ones could overflow when windows are added.
const TIME_MS_MAX: u64 = 32_503_680_000_000;

fn time_of(ms: u64) -> Result<SystemTime, Unreadable> {
    if ms > TIME_MS_MAX {
        return Err(Unreadable);
    }
    Ok(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
}

fn put_text(head: &mut BytesMut, text: &[u8]) {
    head.put_u32_le(u32::try_from(text.len()).expect("a field is far below 4 GiB"));
    head.put_slice(text);
}

fn take(bytes: &mut Bytes, n: usize) -> Result<Bytes, Unreadable> {
    if bytes.len() < n {
        return Err(Unreadable);
    }
    Ok(bytes.split_to(n))
}

fn take_text(bytes: &mut Bytes) -> Result<Bytes, Unreadable> {
    let length = usize::try_from(take_u32(bytes)?).map_err(|_| Unreadable)?;
    take(bytes, length)
}

fn take_array<const N: usize>(bytes: &mut Bytes) -> Result<[u8; N], Unreadable> {
    let mut array = [0; N];
    array.copy_from_slice(&take(bytes, N)?);
    Ok(array)
}

fn take_u8(bytes: &mut Bytes) -> Result<u8, Unreadable> {
    bytes.try_get_u8().map_err(|_| Unreadable)
}

fn take_u16(bytes: &mut Bytes) -> Result<u16, Unreadable> {
    bytes.try_get_u16_le().map_err(|_| Unreadable)
}

fn take_u32(bytes: &mut Bytes) -> Result<u32, Unreadable> {
    bytes.try_get_u32_le().map_err(|_| Unreadable)
}

fn take_u64(bytes: &mut Bytes) -> Result<u64, Unreadable> {
    bytes.try_get_u64_le().map_err(|_| Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::freshness;

    fn entry() -> Entry {
        let mut header = ResponseHeader::build(200, None).expect("200 is a status");
        for (name, value) in [("x-a", "1"), ("x-a", "2"), ("content-type", "text/plain; \u{e9}"), ("x-empty", "")] {
            header.append_header(name, value.as_bytes()).expect("valid");
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let lifetime = freshness::lifetime(now, 60, 3, Some(crate::cache::directives::Window::Unbounded), None);
        let tags = Arc::from(vec!["a".into(), "b c".into()]);
        let place =
            Place::new([7; 16], 42, Scope::deployment("d"), Position { node: Epoch(98), region: Epoch(99) }, tags);
        Entry::new(&header, Bytes::from_static(b"hello"), lifetime, place.variant(Some([9; 16])), now)
    }

    fn packed(entry: &Entry) -> Bytes {
        Bytes::from(pack(entry).concat())
    }

    #[test]
    fn a_response_comes_back_as_it_was() {
        let before = entry();
        let after = unpack(packed(&before), Source::Node).expect("readable");
        assert_eq!(after.header.status, before.header.status);
        assert_eq!(after.header.headers, before.header.headers);
        assert_eq!(after.body, before.body);
        assert_eq!(after.lifetime, before.lifetime);
        assert_eq!(after.place, before.place);
        assert_eq!(after.stored_at, before.stored_at);
        assert_eq!((before.source, after.source), (Source::Origin, Source::Node));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = packed(&entry());
        let head_bytes = whole.len() - 5;
        for cut in 0..head_bytes {
            assert!(unpack(whole.slice(..cut), Source::Node).is_err(), "cut at {cut}");
        }
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..100_000 {
            let mut bytes = whole.to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            let _ = unpack(Bytes::from(bytes), Source::Node);
        }
    }

    #[test]
    fn another_version_is_not_read() {
        let mut bytes = packed(&entry()).to_vec();
        bytes[4] = VERSION + 1;
        assert_eq!(unpack(Bytes::from(bytes), Source::Node).err(), Some(Unreadable));
    }
}
