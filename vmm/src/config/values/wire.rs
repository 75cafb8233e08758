//! Values as JSON and TOML write them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    CpuCount, CpuProfile, DiskSpec, GuestPatches, LogLevel, MacAddress, MemorySize, NetSpec, SerialSpec,
    Trapping,
};

/// Written as the flag spells it.
macro_rules! serialized_as_text {
    ($($kind:ident),+) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}

serialized_as_text!(MacAddress, SerialSpec, CpuProfile, GuestPatches, LogLevel, Trapping);

/// Read as the flag spells it, or as a number or table where the type has that form.
macro_rules! deserialized_from_text {
    ($($kind:ident: $what:literal $(, $form:ident)?;)+) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;

                impl<'de> serde::de::Visitor<'de> for Visitor {
                    type Value = $kind;

                    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                        out.write_str($what)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$kind, E> {
                        text.parse().map_err(E::custom)
                    }

                    $(deserialized_from_text!(@$form $kind);)?
                }

                deserializer.deserialize_any(Visitor)
            }
        }
    )+};
    (@number $kind:ident) => {
        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$kind, E> {
            number.try_into().map_err(E::custom)
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$kind, E> {
            match u64::try_from(number) {
                Ok(number) => self.visit_u64(number),
                Err(_) => Err(E::invalid_value(serde::de::Unexpected::Signed(number), &self)),
            }
        }
    };
    (@table $kind:ident) => {
        fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<$kind, A::Error> {
            tables::$kind::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Into::into)
        }
    };
}

deserialized_from_text! {
    MemorySize: "a size such as \"512M\", or a number of bytes", number;
    CpuCount: "a number of vCPUs", number;
    DiskSpec: "a path, \"path=...,readonly=on\", or a table with `path` and `readonly`", table;
    NetSpec: "\"tap=...,mac=...\", or a table with `tap` and `mac`", table;
    MacAddress: "a MAC address such as \"52:54:00:12:34:56\"";
    SerialSpec: "\"tty\", \"null\" or \"file=PATH\"";
    CpuProfile: "\"stock\" or \"host\"";
    GuestPatches: "\"refuse\" or \"signed\"";
    Trapping: "\"best\", \"second-view\" or \"hold-all\"";
    LogLevel: "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
}

/// The table forms, whose fields serde reads by itself.
mod tables {
    use std::path::PathBuf;

    use serde::Deserialize;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct DiskSpec {
        path: PathBuf,
        #[serde(default)]
        readonly: bool,
    }

    impl From<DiskSpec> for super::DiskSpec {
        fn from(table: DiskSpec) -> Self {
            Self { path: table.path, readonly: table.readonly }
        }
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct NetSpec {
        tap: String,
        mac: Option<super::MacAddress>,
    }

    impl From<NetSpec> for super::NetSpec {
        fn from(table: NetSpec) -> Self {
            Self { tap: table.tap, mac: table.mac }
        }
    }
}
