//! Brings the static files of a deployment to the client: as a cache entry for what fits, straight from the disk for the rest.
//! A URL never becomes a path here: the routing chose a row of the deployment's table, and the row holds the path.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::Method;
use http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, LAST_MODIFIED,
    RANGE,
};
use pingora_error::{Error, ErrorType, OrErr, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::cache::entry::{Entry, Place};
use crate::cache::freshness;
use crate::cache::policy::BODY_BYTES_MAX;
use crate::cache::purge::{Position, Scope};
use crate::deliver;
use crate::deployment::{Deployment, StaticFile};
use crate::error::Code;
use crate::exchange::Exchange;
use crate::static_files::{self, Conditional, Multipart, RangePlan};
use crate::storage;

/// How much of a file is read at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// One file of one deployment.
#[derive(Clone)]
pub struct StaticRef {
    deployment: Arc<Deployment>,
    index: u32,
}

impl StaticRef {
    pub fn new(deployment: Arc<Deployment>, index: u32) -> StaticRef {
        StaticRef { deployment, index }
    }

    pub fn file(&self) -> io::Result<&StaticFile> {
        self.deployment
            .static_file(self.index)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such row in the deployment's table"))
    }

    /// The whole file as an entry of the cache, fresh for 31 days (seed "Caching").
    pub async fn load(&self, primary: [u8; 16], began: Position, now: SystemTime) -> io::Result<Entry> {
        let file = self.file()?;
        let body = tokio::fs::read(&file.path).await?;
        if body.len() as u64 != file.bytes {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} has {} bytes, and {} when it was deployed", file.path.display(), body.len(), file.bytes),
            ));
        }
        let header = header(file, 200).map_err(io::Error::other)?;
        let lifetime = freshness::lifetime(now, freshness::STATIC_S, 0, None, None);
        let owner = Scope::deployment(&self.deployment.id.0);
        let place = Place::new(primary, storage::new_family(), owner, began, Arc::default()).fixed();
        Ok(Entry::new(&header, Bytes::from(body), lifetime, place, now))
    }
}

/// Whether a file may live in the cache.
pub fn is_cacheable(file: &StaticFile) -> bool {
    file.bytes <= BODY_BYTES_MAX
}

fn header(file: &StaticFile, status: u16) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build_no_case(status, Some(16))?;
    header.insert_header(CONTENT_TYPE, file.content_type.as_str())?;
    header.insert_header(CONTENT_LENGTH, file.bytes)?;
    header.insert_header(ETAG, file.etag.as_str())?;
    header.insert_header(LAST_MODIFIED, httpdate::fmt_http_date(file.modified))?;
    header.insert_header(CONTENT_DISPOSITION, file.disposition.as_str())?;
    header.insert_header(ACCEPT_RANGES, "bytes")?;
    Ok(header)
}

/// Answers from the disk: what bypasses the cache, what is too large for it, and pages with a status of their own.
pub async fn serve(
    session: &mut Session,
    exchange: &mut Exchange,
    file: &StaticRef,
    status: Option<u16>,
) -> Result<()> {
    let file = file.file().or_err(ErrorType::InternalError, "finding a static file")?;
    let method = session.req_header().method.clone();
    if method != Method::GET && method != Method::HEAD {
        return deliver::error(session, exchange, Code::InvalidRequestMethod).await;
    }
    if let Some(status) = status.filter(|status| *status != 200) {
        return send(session, exchange, header(file, status)?, file, Parts::whole(file)).await;
    }
    let fields = &session.req_header().headers;
    match static_files::evaluate(&method, fields, &file.etag, file.modified) {
        Conditional::Proceed => {}
        Conditional::NotModified => return deliver::header_only(session, exchange, not_modified(file, 304)?).await,
        Conditional::PreconditionFailed => {
            return deliver::header_only(session, exchange, not_modified(file, 412)?).await;
        }
    }
    let field = |name| fields.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    // Range is defined for GET alone (RFC 9110 section 14.2).
    let range = (method == Method::GET).then(|| field(RANGE)).flatten();
    match static_files::plan_ranges(range, field(IF_RANGE), &file.etag, file.modified, file.bytes) {
        RangePlan::Whole => send(session, exchange, header(file, 200)?, file, Parts::whole(file)).await,
        RangePlan::One(range) => {
            let mut header = header(file, 206)?;
            header.insert_header(CONTENT_RANGE, range.content_range(file.bytes))?;
            header.insert_header(CONTENT_LENGTH, range.length())?;
            send(session, exchange, header, file, Parts::one(range.start, range.end_inclusive + 1)).await
        }
        RangePlan::Many(ranges) => {
            let multipart = Multipart::new(&ranges, &file.content_type, file.bytes, &static_files::boundary());
            let mut header = header(file, 206)?;
            header.insert_header(CONTENT_TYPE, multipart.content_type.as_str())?;
            header.insert_header(CONTENT_LENGTH, multipart.content_length)?;
            send(session, exchange, header, file, Parts::many(multipart)).await
        }
        RangePlan::Unsatisfiable(code) => {
            exchange.extra_field(CONTENT_RANGE, static_files::unsatisfied_content_range(file.bytes));
            deliver::error(session, exchange, code).await
        }
    }
}

/// A 304 repeats what the client would have been told about the file (RFC 9110 section 15.4.5).
fn not_modified(file: &StaticFile, status: u16) -> Result<ResponseHeader> {
    let mut header = header(file, status)?;
    for name in [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_DISPOSITION] {
        header.remove_header(&name);
    }
    Ok(header)
}

/// What is sent: text of our own between spans of the file.
struct Parts(Vec<Part>);

enum Part {
    Text(Bytes),
    Span { start: u64, end: u64 },
}

impl Parts {
    fn whole(file: &StaticFile) -> Parts {
        Parts::one(0, file.bytes)
    }

    fn one(start: u64, end: u64) -> Parts {
        Parts(vec![Part::Span { start, end }])
    }

    fn many(multipart: Multipart) -> Parts {
        let mut parts = Vec::with_capacity(multipart.parts.len() * 2 + 1);
        for part in multipart.parts {
            parts.push(Part::Text(part.head));
            parts.push(Part::Span { start: part.range.start, end: part.range.end_inclusive + 1 });
        }
        parts.push(Part::Text(multipart.closing));
        Parts(parts)
    }
}

async fn send(
    session: &mut Session,
    exchange: &mut Exchange,
    header: ResponseHeader,
    file: &StaticFile,
    parts: Parts,
) -> Result<()> {
    let head = session.req_header().method == Method::HEAD;
    // Opened before the header is sent: a file that is gone is an error page and not a cut answer.
    let mut source = match File::open(&file.path).await {
        Ok(source) => source,
        Err(error) => {
            log::error!("cannot open the static file {}: {error}", file.path.display());
            return deliver::error(session, exchange, Code::InternalStaticRequestFailed).await;
        }
    };
    deliver::header(session, exchange, header, head).await?;
    if head {
        return Ok(());
    }
    for part in parts.0 {
        match part {
            Part::Text(text) => session.write_response_body(Some(text), false).await?,
            Part::Span { start, end } => copy(session, &mut source, start, end).await?,
        }
    }
    session.write_response_body(None, true).await
}

async fn copy(session: &mut Session, source: &mut File, start: u64, end: u64) -> Result<()> {
    source.seek(io::SeekFrom::Start(start)).await.or_err(ErrorType::InternalError, "seeking in a static file")?;
    let mut left = end - start;
    while left > 0 {
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES)));
        let read = source.read_buf(&mut chunk).await.or_err(ErrorType::InternalError, "reading a static file")? as u64;
        if read == 0 {
            return Error::e_explain(ErrorType::InternalError, "a static file is shorter than when it was deployed");
        }
        chunk.truncate(usize::try_from(read.min(left)).unwrap_or(usize::MAX));
        left -= chunk.len() as u64;
        session.write_response_body(Some(chunk.freeze()), false).await?;
    }
    Ok(())
}

/// GET and HEAD are what a file answers.
pub fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}
