//! Reads what the store answers. An answer of another shape is `None`, and counts as no answer.

use bytes::Bytes;
use redis::Value;

pub fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

pub fn array<const N: usize>(value: Value) -> Option<[Value; N]> {
    list(value)?.try_into().ok()
}

/// Of a script: what it is called, and at most N values, nil where there is none.
pub fn tagged<const N: usize>(value: Value) -> Option<(String, [Value; N])> {
    let mut values = list(value)?.into_iter();
    let tag = text(values.next()?)?;
    Some((tag, std::array::from_fn(|_| values.next().unwrap_or_default())))
}

pub fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}

pub fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

pub fn number(value: Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(number).ok(),
        _ => None,
    }
}

/// Of all strings in it.
pub fn size(value: &Value) -> usize {
    match value {
        Value::BulkString(bytes) => bytes.len(),
        Value::Array(values) => values.iter().map(size).sum(),
        _ => 8,
    }
}
