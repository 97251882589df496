//! An event's bytes can be made again from its row: what seals the events seals the rows.

use arrow::{
    array::{Array, AsArray},
    datatypes::{Float64Type, Int64Type, TimestampMicrosecondType, UInt8Type},
};
use estoppel_model::EventLimits;
use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;

fn stored_bytes(json: &str) -> Vec<u8> {
    let now = "2026-03-01T00:00:00.000001Z".parse().unwrap();
    let event = Event::parse(json).unwrap().receive(now, EventLimits::at(now)).unwrap();
    encode(event).unwrap()
}

/// The bytes of the event in the one row of a batch.
fn bytes_of_row(table: EventTable, batch: &RecordBatch) -> Vec<u8> {
    let texts = batch.column_by_name("_json_texts").unwrap().as_primitive::<UInt8Type>().value(0);
    let mut json = Map::new();
    let mut raws = Vec::new();
    for (field, column) in table.visible().fields().iter().zip(batch.columns()) {
        if column.is_null(0) {
            continue;
        }
        let name = field.name().as_str();
        let value: Value = match field.data_type() {
            DataType::Timestamp(..) => {
                let at = column.as_primitive::<TimestampMicrosecondType>().value(0);
                Timestamp::from_micros(at).to_string().into()
            }
            DataType::Int64 => column.as_primitive::<Int64Type>().value(0).into(),
            DataType::Float64 => column.as_primitive::<Float64Type>().value(0).into(),
            _ => column.as_string_view().value(0).into(),
        };
        let raw = ["params", "result", "detections", "attributes"];
        match raw.iter().position(|raw| *raw == name) {
            Some(bit) if texts & 1 << bit == 0 => {
                raws.push(format!(",\"{name}\":{}", value.as_str().unwrap()));
            }
            _ => {
                json.insert(name.to_owned(), value);
            }
        }
    }
    let received: Timestamp =
        json.remove("received_at").unwrap().as_str().unwrap().parse().unwrap();
    let id = json.remove("event_id").unwrap();
    json.insert("id".to_owned(), id);
    let kind = if table == EventTable::AuditLog { "audit" } else { "network" };
    json.insert("kind".to_owned(), kind.into());
    let mut text = Value::Object(json).to_string();
    text.pop();
    let event = Event::parse(&format!("{text}{}}}", raws.concat())).unwrap();
    encode(event.receive(received, EventLimits::at(received)).unwrap()).unwrap()
}

fn check(json: &str) {
    let bytes = stored_bytes(json);
    let mut rows = BothRows::new();
    let (table, _) = rows.push(7, &bytes).unwrap();
    let copied = rows.as_of(table).copy().unwrap();
    let batch = rows.of(table).finish().unwrap();
    assert_eq!(copied, batch);
    let again = bytes_of_row(table, &batch);
    assert_eq!(
        String::from_utf8_lossy(&bytes[HEAD_BYTES..]),
        String::from_utf8_lossy(&again[HEAD_BYTES..])
    );
    assert_eq!(bytes, again);
}

#[test]
fn bytes_are_made_again_from_rows() {
    for json in [
        r#"{"kind":"audit"}"#,
        r#"{"kind":"audit","params":"text","result":{"a":"text"},"detections":["x"],"attributes":1.50}"#,
        r#"{"kind":"audit","params":"[1]","result":[1],"detections":"\u00e4\/\n","attributes":"\ud83d\ude00"}"#,
        r#"{"kind":"audit","params":"half \ud800 a pair","result":null}"#,
        r#"{"kind":"audit","params":{ "spaces" : [ ] },"estimated_cost":1,"duration_ms":1e-7}"#,
        r#"{"kind":"audit","input_tokens":18446744073709551615,"output_tokens":0,"tool":"\u0000"}"#,
        r#"{"kind":"network","bytes_sent":18446744073709551615,"port":0,"pid":4294967295,"verdict":"cut"}"#,
        r#"{"kind":"network","timestamp":"2026-02-05T03:00:00.000001+01:00","destination":"ß"}"#,
    ] {
        check(json);
    }
}

proptest! {
    #[test]
    fn bytes_of_any_event_are_made_again(
        texts in prop::collection::vec(any::<String>(), 3),
        cost in 0.0..1e12_f64,
        count in any::<u64>(),
        kind in 0..3,
    ) {
        let text = |n: usize| Value::from(texts[n].as_str());
        let raw = match kind {
            0 => text(0),
            1 => serde_json::json!([texts[0], {"a": texts[1]}]),
            _ => Value::from(cost),
        };
        let event = serde_json::json!({
            "kind": "audit", "params": raw, "result": text(1), "tool": text(2),
            "estimated_cost": cost, "input_tokens": count,
        });
        check(&event.to_string());
    }

    /// Bytes that nobody encoded are refused, not rows.
    #[test]
    fn any_bytes_are_a_row_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut rows = BothRows::new();
        if rows.push(0, &bytes).is_err() {
            prop_assert_eq!(rows.audit.len() + rows.network.len(), 0);
        }
    }
}
