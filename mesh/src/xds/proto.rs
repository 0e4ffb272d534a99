//! Small values that many resources share: durations, ports, wrappers, `Any`, metadata, and maps in a fixed order.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{self, Any, ListValue, Struct, UInt32Value, Value};
use prost::{Message, Name};

use super::error::{At, Decoded, FieldError, refuse, required};

/// Under which key Tulle's own data stands in a resource's `typed_filter_metadata`.
const METADATA: &str = "tulle";

/// The longest duration that is accepted: ten years. What is longer is a mistake, and could overflow a clock.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(315_360_000);

pub(super) fn duration(duration: Duration) -> protobuf::Duration {
    let duration = duration.min(MAX_DURATION);
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).expect("at most MAX_DURATION"),
        nanos: i32::try_from(duration.subsec_nanos()).expect("below a billion"),
    }
}

/// A duration that may be missing or zero, but not negative.
pub(super) fn decode_duration(value: Option<protobuf::Duration>, field: &str) -> Decoded<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    let seconds = u64::try_from(value.seconds).ok();
    let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    match seconds.zip(nanos).map(|(seconds, nanos)| Duration::new(seconds, nanos)) {
        Some(duration) if duration <= MAX_DURATION => Ok(Some(duration)),
        _ => Err(FieldError::new(format!(
            "{} s and {} ns is not a duration from 0 to {} s",
            value.seconds,
            value.nanos,
            MAX_DURATION.as_secs()
        )))
        .at(field),
    }
}

/// A duration that may be missing, but neither negative nor zero.
pub(super) fn decode_positive(value: Option<protobuf::Duration>, field: &str) -> Decoded<Option<Duration>> {
    match decode_duration(value, field)? {
        Some(Duration::ZERO) => Err(FieldError::new("is zero: it must be longer")).at(field),
        duration => Ok(duration),
    }
}

pub(super) fn u32_value(value: impl Into<Option<u32>>) -> Option<UInt32Value> {
    value.into().map(|value| UInt32Value { value })
}

pub(super) fn bool_value(value: bool) -> Option<protobuf::BoolValue> {
    Some(protobuf::BoolValue { value })
}

/// Refuses the options of HTTP connections for which nothing stands in the model.
pub(super) fn refuse_common(options: Option<&core::HttpProtocolOptions>) -> Decoded<()> {
    let Some(options) = options else { return Ok(()) };
    refuse!(options; max_connection_duration, max_response_headers_kb).at("common_http_protocol_options")
}

/// A port of TCP, from 1.
pub(super) fn decode_port(port: u32, field: &str) -> Decoded<u16> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(FieldError::new(format!("{port} is not a port: use 1 to 65535"))).at(field),
    }
}

pub(super) fn socket_address(host: String, port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: host,
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

/// A host (a name or an address) and a port.
pub(super) fn decode_host_port(socket: core::SocketAddress) -> Decoded<(String, u16)> {
    if socket.protocol != core::socket_address::Protocol::Tcp as i32 {
        return Err(FieldError::new("only TCP is supported")).at("protocol");
    }
    refuse!(socket; network_namespace_filepath, resolver_name)?;
    if socket.address.is_empty() {
        return Err(FieldError::new("is empty: set it")).at("address");
    }
    let port = match required(socket.port_specifier, "port_value")? {
        core::socket_address::PortSpecifier::PortValue(port) => decode_port(port, "port_value")?,
        core::socket_address::PortSpecifier::NamedPort(_) => {
            return Err(FieldError::new("is not supported: use port_value")).at("named_port");
        }
    };
    Ok((socket.address, port))
}

/// An IP address and a port.
pub(super) fn decode_socket_address(socket: core::SocketAddress) -> Decoded<SocketAddr> {
    let (host, port) = decode_host_port(socket)?;
    let address: IpAddr = host
        .parse()
        .map_err(|_| FieldError::new(format!("{host:?} is not an IP address: use STRICT_DNS for names")))
        .at("address")?;
    Ok(SocketAddr::new(address, port))
}

/// "Over this very stream": the only source of resources that Tulle knows.
pub(super) fn ads() -> Option<core::ConfigSource> {
    Some(core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource::default(),
        )),
        ..Default::default()
    })
}

pub(super) fn decode_source(source: Option<core::ConfigSource>, field: &str) -> Decoded<()> {
    use core::config_source::ConfigSourceSpecifier::{Ads, Self_};
    match source.and_then(|source| source.config_source_specifier) {
        Some(Ads(_) | Self_(_)) => Ok(()),
        _ => Err(FieldError::new("only resources of the same server are supported: use ads")).at(field),
    }
}

pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(super) fn is<M: Name>(any: &Any) -> bool {
    type_name(&any.type_url) == M::full_name()
}

/// The message in `any`, which is known to be of this type ([`is`]).
pub(super) fn unpack<M: Message + Name + Default>(any: &Any) -> Decoded<M> {
    M::decode(any.value.as_slice())
        .map_err(|error| FieldError::new(format!("not a valid {}: {error}", M::full_name())))
}

/// What a type URL names: the part behind its last slash.
pub(super) fn type_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

pub(super) fn extension(name: &str, config: Any) -> core::TypedExtensionConfig {
    core::TypedExtensionConfig { name: name.into(), typed_config: Some(config) }
}

/// Messages one behind the other, which protobuf reads as their merger: so the entries of a map are written in a fixed
/// order, which the hash map that holds them does not have.
pub(super) fn merged<M: Message>(parts: impl IntoIterator<Item = M>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        part.encode(&mut bytes).expect("a vector grows as far as it must");
    }
    bytes
}

/// The fields of Tulle's own data, for which Envoy has none.
pub(super) type Fields = BTreeMap<String, Value>;

/// Tulle's own data of a resource, or `None` where there is none. It is a `Struct` in `typed_filter_metadata`, not in
/// `filter_metadata`, because the bytes there are ours to order; Envoy and gRPC pass over a key that they don't know.
pub(super) fn metadata(fields: Fields) -> Option<core::Metadata> {
    (!fields.is_empty()).then(|| {
        let data = Any { type_url: Struct::type_url(), value: struct_bytes(fields) };
        core::Metadata { typed_filter_metadata: [(METADATA.to_owned(), data)].into(), ..Default::default() }
    })
}

pub(super) fn decode_metadata(metadata: Option<&core::Metadata>) -> Decoded<Fields> {
    let data = metadata.and_then(|metadata| metadata.typed_filter_metadata.get(METADATA));
    match data {
        Some(data) if is::<Struct>(data) => {
            let data: Struct = unpack(data).at_key("metadata.typed_filter_metadata", METADATA)?;
            Ok(data.fields.into_iter().collect())
        }
        _ => Ok(Fields::new()),
    }
}

/// `xds.type.v3.TypedStruct`, which `envoy-types` leaves out.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TypedStruct {
    /// What the fields are settings of.
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    /// The fields.
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<Struct>,
}

impl Name for TypedStruct {
    const NAME: &'static str = "TypedStruct";
    const PACKAGE: &'static str = "xds.type.v3";

    fn type_url() -> String {
        format!("type.googleapis.com/{}", Self::full_name())
    }
}

/// An extension by its fields, not by its message: one that only Tulle has, so that others can print it.
pub(super) fn extension_fields(type_url: &str, fields: Fields) -> Any {
    let head = TypedStruct { type_url: type_url.into(), value: None };
    let fields = fields
        .into_iter()
        .map(|field| TypedStruct { type_url: String::new(), value: Some(Struct { fields: [field].into() }) });
    Any { type_url: TypedStruct::type_url(), value: merged(std::iter::once(head).chain(fields)) }
}

/// The fields of an extension that [`extension_fields`] wrote, or `None` for any other.
pub(super) fn decode_fields(any: &Any, type_url: &str) -> Decoded<Option<Fields>> {
    if !is::<TypedStruct>(any) {
        return Ok(None);
    }
    let typed: TypedStruct = unpack(any)?;
    let fields = typed.value.map(|value| value.fields).unwrap_or_default();
    Ok((type_name(&typed.type_url) == type_name(type_url)).then(|| fields.into_iter().collect()))
}

/// The name of the type in `any`, looking through a `TypedStruct`; for messages.
pub(super) fn inner_type(any: &Any) -> String {
    let typed = is::<TypedStruct>(any).then(|| unpack::<TypedStruct>(any).ok()).flatten();
    type_name(typed.as_ref().map_or(&any.type_url, |typed| &typed.type_url)).into()
}

pub(super) fn struct_bytes(fields: Fields) -> Vec<u8> {
    merged(fields.into_iter().map(|field| Struct { fields: [field].into() }))
}

pub(super) fn text(value: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

pub(super) fn number(value: u32) -> Value {
    Value { kind: Some(Kind::NumberValue(value.into())) }
}

pub(super) fn flag(value: bool) -> Value {
    Value { kind: Some(Kind::BoolValue(value)) }
}

pub(super) fn list(values: impl IntoIterator<Item = Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: values.into_iter().collect() })) }
}

/// At most one field, since several would have no order.
pub(super) fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    const { assert!(N <= 1) };
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

/// Reading of Tulle's own data.
pub(super) trait Read {
    /// A text, empty where it is missing.
    fn text(&self, key: &str) -> Decoded<String>;
    /// A whole number from 0, or `None` where it is missing.
    fn number(&self, key: &str) -> Decoded<Option<u32>>;
    /// A truth value, false where it is missing.
    fn flag(&self, key: &str) -> Decoded<bool>;
    /// A list, empty where it is missing.
    fn list(&self, key: &str) -> Decoded<&[Value]>;
}

impl Read for Fields {
    fn text(&self, key: &str) -> Decoded<String> {
        match self.get(key).map(|value| &value.kind) {
            None => Ok(String::new()),
            Some(Some(Kind::StringValue(text))) => Ok(text.clone()),
            Some(_) => Err(FieldError::new("is not a string")).at(key),
        }
    }

    fn number(&self, key: &str) -> Decoded<Option<u32>> {
        match self.get(key).map(|value| &value.kind) {
            None => Ok(None),
            // The range is checked first, so that the conversion is exact.
            Some(Some(Kind::NumberValue(number)))
                if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(number) =>
            {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                Ok(Some(*number as u32))
            }
            Some(_) => Err(FieldError::new("is not a whole number from 0 to 4294967295")).at(key),
        }
    }

    fn flag(&self, key: &str) -> Decoded<bool> {
        match self.get(key).map(|value| &value.kind) {
            None => Ok(false),
            Some(Some(Kind::BoolValue(flag))) => Ok(*flag),
            Some(_) => Err(FieldError::new("is neither true nor false")).at(key),
        }
    }

    fn list(&self, key: &str) -> Decoded<&[Value]> {
        match self.get(key).map(|value| &value.kind) {
            None => Ok(&[]),
            Some(Some(Kind::ListValue(list))) => Ok(&list.values),
            Some(_) => Err(FieldError::new("is not a list")).at(key),
        }
    }
}
