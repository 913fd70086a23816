//! What the client commands print.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Result;
use data_encoding::BASE64;
use raft_node::client::Page;
use serde_json::{Map, Value};

use super::ClientArgs;

/// JSON for programs, text for people.
pub(super) fn line(args: &ClientArgs, json_value: &Value, text: &str) -> Result<()> {
    if args.json { json(json_value) } else { Ok(writeln!(io::stdout(), "{text}")?) }
}

/// One JSON document on a line.
pub(super) fn json(value: &Value) -> Result<()> {
    Ok(writeln!(io::stdout(), "{value}")?)
}

/// A value as it is; on a terminal with a line end, so that the prompt stands where it should.
pub(super) fn raw(value: &[u8]) -> Result<()> {
    let mut out = io::stdout();
    out.write_all(value)?;
    if out.is_terminal() && !value.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Rows whose columns line up; the first is the heading.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> Result<()> {
    Ok(io::stdout().write_all(aligned(rows).as_bytes())?)
}

/// The same as a text.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let mut table = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        table.push_str(cells.join("  ").trim_end());
        table.push('\n');
    }
    table
}

/// A page as lines of `key revision value`, with tabs in between and everything unprintable escaped.
pub(super) fn table(page: &Page) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for item in &page.items {
        writeln!(out, "{}\t{}\t{}", item.key.escape_ascii(), item.revision, printable(&item.value))?;
    }
    out.flush()?;
    if page.more {
        eprintln!("there are more keys: raise --limit, or go on after the last one");
    }
    Ok(())
}

/// A key as an object. What is not UTF-8 is given as base64 under another name.
pub(super) fn key_value(key: &[u8], revision: u64, value: &[u8]) -> Value {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", key);
    object.insert("revision".into(), revision.into());
    insert_bytes(&mut object, "value", value);
    Value::Object(object)
}

fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.into(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), BASE64.encode(bytes).into()),
    };
}

fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_safe_for_any_bytes() {
        let text = key_value(b"k", 3, "\u{fc}\n".as_bytes());
        assert_eq!(text.to_string(), "{\"key\":\"k\",\"revision\":3,\"value\":\"\u{fc}\\n\"}");
        let binary = key_value(b"\xff", 1, b"\xfe");
        assert_eq!(binary.to_string(), r#"{"key_base64":"/w==","revision":1,"value_base64":"/g=="}"#);
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(printable("\u{fc} x".as_bytes()), "\u{fc} x");
        assert_eq!(printable(b"a\nb"), "a\\nb");
        assert_eq!(printable(b"\xff"), "\\xff");
    }
}
