//! The schema that is written, and what is asked of one that is read.

use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::schema::{FixedSchema, RecordSchema};

use super::MAX_BLOCK;

/// The text of the schema, as it is written to files.
pub const TEXT: &str = include_str!("../../../../../schemas/export.avsc");

/// Nesting of a schema that is read; the schema of this version has 8.
const MAX_DEPTH: usize = 24;
/// Types in a schema that is read; the schema of this version has 50.
const MAX_TYPES: usize = 2000;
/// Bytes of a `fixed` in a schema that is read.
const MAX_FIXED: usize = 64 << 10;

static SCHEMA: LazyLock<Result<Schema, String>> = LazyLock::new(|| Schema::parse_str(TEXT).map_err(|error| error.to_string()));

/// The schema that is written.
pub fn ours() -> Result<&'static Schema, String> {
    SCHEMA.as_ref().map_err(String::clone)
}

/// Reads the schema of a file. Fields it has beyond ours are skipped, fields it lacks take their defaults.
///
/// A schema is a program for the decoder: one that could recurse, or make values out of no bytes, is refused before anything is decoded by it.
pub fn parse(text: &[u8]) -> Result<Schema, String> {
    // Also the limit of what apache-avro allocates for one value; the first call in a process counts.
    apache_avro::util::max_allocation_bytes(MAX_BLOCK);
    if text == TEXT.as_bytes() {
        return ours().cloned();
    }
    let text = std::str::from_utf8(text).map_err(|_| "the schema is not UTF-8".to_owned())?;
    let schema = Schema::parse_str(text).map_err(|error| format!("the schema is not understood: {error}"))?;
    match &schema {
        Schema::Record(record) if record.name.name() == "Record" && record.fields.iter().any(|field| field.name == "header") => {}
        _ => return Err("the schema is not that of an export of Sira, a record sira.export.Record".into()),
    }
    check(&schema, 0, &mut 0)?;
    Ok(schema)
}

fn check(schema: &Schema, depth: usize, types: &mut usize) -> Result<(), String> {
    *types += 1;
    if depth > MAX_DEPTH || *types > MAX_TYPES {
        return Err(format!("the schema is nested more than {MAX_DEPTH} deep, or has more than {MAX_TYPES} types"));
    }
    match schema {
        Schema::Boolean | Schema::Int | Schema::Long | Schema::Float | Schema::Double | Schema::Bytes | Schema::String => Ok(()),
        Schema::TimestampMillis | Schema::TimestampMicros | Schema::TimestampNanos | Schema::Enum(_) => Ok(()),
        Schema::Fixed(FixedSchema { size, .. }) if (1..=MAX_FIXED).contains(size) => Ok(()),
        Schema::Array(array) => check(&array.items, depth + 1, types),
        Schema::Map(map) => check(&map.types, depth + 1, types),
        // The number of the branch is at least one byte, so a null may be one of them.
        Schema::Union(union) => {
            let others = union.variants().iter().filter(|variant| !matches!(variant, Schema::Null));
            others.into_iter().try_for_each(|variant| check(variant, depth + 1, types))
        }
        Schema::Record(RecordSchema { fields, .. }) if !fields.is_empty() => {
            fields.iter().try_for_each(|field| check(&field.schema, depth + 1, types))
        }
        Schema::Ref { name } => Err(format!("the schema uses the type {name} twice; write it out at both places")),
        _ => Err("the schema has a type that exports have no use for: null outside a union, an empty record, a large fixed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_schema_is_taken_and_dangerous_ones_are_not() {
        assert_eq!(&parse(format!("{TEXT} ").as_bytes()).unwrap(), ours().unwrap());
        let with = |field: &str| {
            format!(r#"{{"type":"record","name":"Record","fields":[{{"name":"header","type":"long"}},{{"name":"x","type":{field}}}]}}"#)
        };
        assert!(parse(with(r#"["null","double"]"#).as_bytes()).is_ok());
        let deep = (0..40).fold("\"int\"".to_owned(), |inner, _| format!(r#"{{"type":"array","items":{inner}}}"#));
        let fixed = r#"{"type":"fixed","name":"F","size":1000000000000}"#;
        let empty = r#"{"type":"record","name":"E","fields":[]}"#;
        for field in [r#""null""#, r#"{"type":"array","items":"null"}"#, r#""Record""#, r#"["null","Record"]"#, fixed, empty, &deep, "7"] {
            assert!(parse(with(field).as_bytes()).is_err(), "{field}");
        }
        for text in ["", "{}", "\"long\"", "[\"null\"]", r#"{"type":"record","name":"Other","fields":[{"name":"header","type":"int"}]}"#] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(&[0xff]).is_err());
    }
}
