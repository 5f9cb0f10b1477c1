//! The endpoints of a FlightInfo: a large tensor in as many streams as its reader wants.

use std::ops::Range;

use arrow_flight::{FlightEndpoint, Ticket};
use serde::Serialize;
use sira_tensor::carrier::Carrier;
use sira_tensor::{TensorSpec, region};
use sira_wire::{Code, Ticket as Wanted};
use tonic::Status;

use crate::status::{of_store, refuse};

/// What an endpoint's `app_metadata` says: which bytes of the whole its stream brings.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Portion {
    /// Where its bytes begin.
    offset: u64,
    /// How many there are.
    bytes: u64,
    /// Rows of the column.
    rows: u64,
}

/// The endpoint of a ticket.
fn endpoint(ticket: &Wanted) -> Result<FlightEndpoint, Status> {
    let ticket = serde_json::to_vec(ticket).map_err(|e| refuse(Code::Internal, e.to_string()))?;
    Ok(FlightEndpoint::new().with_ticket(Ticket::new(ticket)))
}

/// The endpoints of `ticket`, which is pinned to a version: one, or where it asks for more, up to as many. `spec` is the whole part's, `carrier` that
/// of what the ticket asks for, and `chunk` how far the part's chunks reach along the leading axis.
pub(crate) fn endpoints(spec: &TensorSpec, carrier: &Carrier, chunk: u64, mut ticket: Wanted) -> Result<Vec<FlightEndpoint>, Status> {
    let Some(count) = ticket.endpoints.take() else { return Ok(vec![endpoint(&ticket)?]) };
    let wanted = region(spec, ticket.slice.iter().map(|(name, range)| (name.as_str(), *range))).map_err(|e| of_store(e.into()))?;
    let total = carrier.rows * carrier.row_bytes;
    let ranges = match (leading(spec), wanted.first()) {
        (Some(_), Some(rows)) if total > 0 => cut(rows.clone(), u64::from(count), chunk),
        _ => Vec::new(),
    };
    let extent: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    // The rows of the column are those of the leading axis or finer, so that those of all streams are of one type.
    let (Some(name), true) = (leading(spec), ranges.len() > 1 && carrier.rows.is_multiple_of(extent)) else {
        let portion = Portion { offset: 0, bytes: total, rows: carrier.rows };
        return Ok(vec![endpoint(&ticket)?.with_app_metadata(said(&portion)?)]);
    };
    ticket.slice.retain(|name, _| spec.axis(name) != Some(0));
    let (start, rows) = (ranges[0].start, carrier.rows / extent);
    let each = ranges.into_iter().map(|range| {
        let slice = [(name.clone(), [range.start, range.end])].into_iter().chain(ticket.slice.clone()).collect();
        let (offset, rows) = ((range.start - start) * rows * carrier.row_bytes, (range.end - range.start) * rows);
        let portion = Portion { offset, bytes: rows * carrier.row_bytes, rows };
        Ok(endpoint(&Wanted { slice, ..ticket.clone() })?.with_app_metadata(said(&portion)?))
    });
    each.collect()
}

fn said(portion: &Portion) -> Result<Vec<u8>, Status> {
    serde_json::to_vec(portion).map_err(|e| refuse(Code::Internal, e.to_string()))
}

/// What a slice calls the leading axis; `None` where there is none that can be sliced.
fn leading(spec: &TensorSpec) -> Option<String> {
    spec.dtype().item_size()?;
    let name = spec.axes().first().map(String::as_str).filter(|name| !name.is_empty());
    [name, Some("0")].into_iter().flatten().find(|name| spec.axis(name) == Some(0)).map(str::to_owned)
}

/// `all` in up to `count` ranges of about the same length, which begin where a chunk does, so that none is read twice.
fn cut(all: Range<u64>, count: u64, chunk: u64) -> Vec<Range<u64>> {
    let (length, chunk) = (u128::from(all.end - all.start), u128::from(chunk.max(1)));
    let nearest = |i: u64| {
        let at = u128::from(all.start) + length * u128::from(i) / u128::from(count);
        u64::try_from((at + chunk / 2) / chunk * chunk).unwrap_or(u64::MAX)
    };
    let (mut ranges, mut start) = (Vec::new(), all.start);
    for at in (1..count).map(nearest).chain([all.end]) {
        if at > start && at <= all.end {
            ranges.push(start..at);
            start = at;
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use sira_tensor::DType;

    use super::*;
    use crate::get;

    #[test]
    fn ranges_are_even_and_begin_where_chunks_do() {
        assert_eq!(cut(0..100, 4, 1), [0..25, 25..50, 50..75, 75..100]);
        assert_eq!(cut(0..100, 4, 16), [0..32, 32..48, 48..80, 80..100]);
        assert_eq!(cut(10..30, 2, 16), [10..16, 16..30]);
        assert_eq!(cut(0..3, 8, 1), [0..1, 1..2, 2..3]);
        assert_eq!(cut(0..100, 8, 64), [0..64, 64..100]);
        assert_eq!(cut(17..30, 4, 64), vec![17..30; 1]);
        assert_eq!(cut(0..u64::MAX, 2, 1).len(), 2);
        assert!(cut(5..5, 3, 1).is_empty());
    }

    fn portions(spec: &TensorSpec, sliced: &[u64], ticket: Value) -> Vec<(Value, Value)> {
        let (_, ticket) = Wanted::parse_command(ticket.to_string().as_bytes()).unwrap();
        let sliced = TensorSpec::new(spec.dtype(), sliced.to_vec()).unwrap();
        let endpoints = endpoints(spec, &get::carrier(&sliced).0, 8, ticket).unwrap();
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
        endpoints.iter().map(|e| (json(&e.ticket.as_ref().unwrap().ticket)["slice"].clone(), json(&e.app_metadata))).collect()
    }

    #[test]
    fn portions_are_slices_of_the_leading_axis_and_say_where_they_belong() {
        let spec =
            TensorSpec::new(DType::Float32, vec![100, 6, 10]).unwrap().with_axes(vec!["token".into(), "".into(), "dim".into()]).unwrap();
        let ask = |slice: Value| json!({"v": 1, "key": "ns/k", "endpoints": 3, "slice": slice});
        let said = |offset: u64, bytes: u64, rows: u64| json!({"offset": offset, "bytes": bytes, "rows": rows});
        assert_eq!(
            portions(&spec, &[100, 6, 10], ask(json!({}))),
            [
                (json!({"token": [0, 32]}), said(0, 7680, 32)),
                (json!({"token": [32, 64]}), said(7680, 7680, 32)),
                (json!({"token": [64, 100]}), said(15360, 8640, 36))
            ]
        );
        assert_eq!(
            portions(&spec, &[20, 6, 5], ask(json!({"0": [10, 30], "dim": [5, 10]}))),
            [
                (json!({"token": [10, 16], "dim": [5, 10]}), said(0, 720, 6)),
                (json!({"token": [16, 24], "dim": [5, 10]}), said(720, 960, 8)),
                (json!({"token": [24, 30], "dim": [5, 10]}), said(1680, 720, 6))
            ]
        );
        let none = Value::Null;
        assert_eq!(portions(&spec, &[100, 6, 10], json!({"v": 1, "key": "ns/k"})), [(none.clone(), none.clone())]);
        assert_eq!(portions(&spec, &[100, 6, 10], json!({"v": 1, "key": "ns/k", "endpoints": 1})), [(none, said(0, 24000, 100))]);
    }

    #[test]
    fn what_cannot_be_cut_is_one() {
        for (dtype, shape) in [
            (DType::Float32, vec![]),
            (DType::Float32, vec![0, 4]),
            (DType::Float32, vec![100, 0]),
            (DType::Float32, vec![1, 1000]),
            (DType::Float4E2M1Fn, vec![100, 4]),
        ] {
            let spec = TensorSpec::new(dtype, shape.clone()).unwrap();
            assert_eq!(portions(&spec, &shape, json!({"v": 1, "key": "ns/k", "endpoints": 4})).len(), 1, "{shape:?}");
        }
        // Rows finer than the leading axis: 64 MiB an index, rows of 4 MiB at most.
        let spec = TensorSpec::new(DType::UInt8, vec![32, 64, 1 << 20]).unwrap();
        let cut = portions(&spec, &[32, 64, 1 << 20], json!({"v": 1, "key": "ns/k", "endpoints": 4}));
        assert_eq!((cut.len(), &cut[1].1["rows"], &cut[1].1["offset"]), (4, &json!(512), &json!(8u64 << 26)));
    }
}
