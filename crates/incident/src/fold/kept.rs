//! Incidents as a snapshot keeps them, so that a start need not read their records again.
//!
//! An entry is written as the API shows it, flat, and its place comes first: so it is read without
//! being buffered, which for whole ledgers of them is most of the time.

use std::{collections::BTreeMap, fmt, marker::PhantomData, sync::Arc};

use estoppel_model::{IncidentId, RunId};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{Entry, IncidentView, Incidents};

impl Serialize for Incidents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Kept<'i> {
            incidents: Vec<&'i IncidentView>,
            runs: &'i BTreeMap<RunId, IncidentId>,
            unreadable: u64,
        }
        let incidents = self.iter().collect();
        Kept { incidents, runs: &self.runs, unreadable: self.unreadable }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Incidents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Kept {
            incidents: Vec<IncidentView>,
            runs: BTreeMap<RunId, IncidentId>,
            unreadable: u64,
        }
        let Kept { incidents, runs, unreadable } = Kept::deserialize(deserializer)?;
        let order = incidents.iter().map(IncidentView::id).collect();
        let incidents = incidents.into_iter().map(|view| (view.id(), Arc::new(view))).collect();
        Ok(Self { incidents, order, runs, unreadable })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entry<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PlaceFirst(PhantomData))
    }
}

struct PlaceFirst<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for PlaceFirst<T> {
    type Value = Entry<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry whose first fields are `seq` and `at`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry<T>, A::Error> {
        let seq = field(&mut map, "seq")?;
        let at = field(&mut map, "at")?;
        let body = T::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Entry { seq, at, body })
    }
}

/// The value of the field that must come next.
fn field<'de, A: MapAccess<'de>, V: Deserialize<'de>>(
    map: &mut A,
    name: &'static str,
) -> Result<V, A::Error> {
    match map.next_key::<String>()? {
        Some(found) if found == name => map.next_value(),
        _ => Err(A::Error::missing_field(name)),
    }
}
