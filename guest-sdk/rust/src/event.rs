//! Events, borrowed from the host and never copied.

use std::fmt;
use std::marker::PhantomData;
use std::slice;

use serde::Deserialize;

use crate::failure::Failure;
use crate::strict;
use crate::time::Timestamp;

/// An immutable fact.
///
/// It borrows from the batch and copies nothing, so it can be decoded into
/// types that borrow as well.
// The layout is that of the contract's record `event`: in the sandbox a batch
// is read where the host wrote it. The fields are private, and only
// `Event::new` and the host write them.
#[repr(C)]
pub struct Event<'a> {
    sequence: u64,
    time_ns: u64,
    subject: Text<'a>,
    kind: Text<'a>,
    headers: List<'a, Header<'a>>,
    data_is_bytes: u8,
    data: List<'a, u8>,
}

/// The name and the value of a header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Header<'a> {
    name: Text<'a>,
    value: Text<'a>,
}

impl<'a> Header<'a> {
    pub(crate) fn new(name: &'a str, value: &'a str) -> Self {
        Self {
            name: Text::new(name),
            value: Text::new(value),
        }
    }
}

/// A value that is either text or raw bytes; both carry the same octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Valid UTF-8; JSON by convention.
    Text(&'a str),
    /// Any octets.
    Bytes(&'a [u8]),
}

impl<'a> Payload<'a> {
    /// The octets of either kind.
    pub fn as_bytes(self) -> &'a [u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }

    /// Decodes JSON. A list is no record, and no member may occur twice.
    #[inline]
    pub fn json<T: Deserialize<'a>>(self) -> Result<T, serde_json::Error> {
        // Always from text, so that the decoder of a type is in the module once.
        match self {
            Self::Text(text) => strict::read(text),
            Self::Bytes(bytes) => {
                strict::read(std::str::from_utf8(bytes).map_err(serde::de::Error::custom)?)
            }
        }
    }
}

impl<'a> Event<'a> {
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn new(sequence: u64, time: Timestamp, subject: &'a str, kind: &'a str) -> Self {
        Self {
            sequence,
            time_ns: time.nanoseconds(),
            subject: Text::new(subject),
            kind: Text::new(kind),
            headers: List::new(&[]),
            data_is_bytes: 0,
            data: List::new(&[]),
        }
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn with(mut self, headers: &'a [Header<'a>], data: Payload<'a>) -> Self {
        self.headers = List::new(headers);
        self.data_is_bytes = u8::from(matches!(data, Payload::Bytes(_)));
        self.data = List::new(data.as_bytes());
        self
    }

    /// Its sequence in the stream, counted from 1. Strictly increasing, with
    /// gaps for events that do not match the projection's subjects.
    #[inline]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// When the stream stored it.
    ///
    /// On JetStream the server sets it, and no publisher can; an embedded log keeps the time that
    /// came with the event. Put the time at which something happened into the data. Tests set the
    /// time with [`GivenEvent::at`](crate::testing::GivenEvent::at).
    #[inline]
    pub fn time(&self) -> Timestamp {
        Timestamp::from_nanoseconds(self.time_ns)
    }

    /// The subject under which it was published, such as `orders.42.placed`.
    #[inline]
    pub fn subject(&self) -> &'a str {
        self.subject.get()
    }

    /// One token of the subject, counted from 1: the second of `orders.42.placed` is `42`.
    #[inline]
    pub fn token(&self, number: usize) -> Result<&'a str, Failure> {
        // Subjects are short, and this runs for each event: a loop over the octets is faster than a
        // search.
        let subject = self.subject();
        // Token 0 wraps to a number that no subject has tokens for, so it is reported as missing.
        let (mut left, mut start) = (number.wrapping_sub(1), 0);
        for (place, octet) in subject.bytes().enumerate() {
            if octet == b'.' {
                if left == 0 {
                    return Ok(&subject[start..place]);
                }
                left -= 1;
                start = place + 1;
            }
        }
        if left == 0 {
            Ok(&subject[start..])
        } else {
            Err(self.no_token(number))
        }
    }

    /// Whether its subject is one of these: `orders.*.placed`, where `*` matches any token, or
    /// `orders.>`, where `>` at the end matches one token or more.
    #[inline]
    pub fn is_under(&self, pattern: &str) -> bool {
        let mut tokens = self.subject().split('.');
        for wanted in pattern.split('.') {
            match (wanted, tokens.next()) {
                // `>` needs at least one token, which the first arm has made sure of.
                (_, None) => return false,
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
                _ => return false,
            }
        }
        // Tokens that the pattern does not cover: the subject is longer.
        tokens.next().is_none()
    }

    #[cold]
    fn no_token(&self, number: usize) -> Failure {
        Failure::reject(format_args!(
            "subject {} has no token {number}",
            self.subject()
        ))
    }

    /// Its type: the CloudEvents `type`, otherwise the `Event-Type` header,
    /// otherwise the last token of the subject.
    #[inline]
    pub fn kind(&self) -> &'a str {
        self.kind.get()
    }

    /// The value of a header, by lower-case name; none unless the manifest asks for headers.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// Headers by lower-case name, sorted; empty unless the manifest asks for them.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.headers
            .get()
            .iter()
            .map(|header| (header.name.get(), header.value.get()))
    }

    /// What happened.
    #[inline]
    pub fn data(&self) -> Payload<'a> {
        let octets = self.data.get();
        if self.data_is_bytes == 0 {
            // SAFETY: data that is not marked as bytes is UTF-8: `with` took it from a `str`, and
            // the host checked it.
            Payload::Text(unsafe { std::str::from_utf8_unchecked(octets) })
        } else {
            Payload::Bytes(octets)
        }
    }

    /// Decodes the data as JSON, whatever the event's type.
    ///
    /// The type may borrow: a field of type `&str` is not copied, but rejects
    /// text with escapes; `Cow<str>` with `#[serde(borrow)]` accepts both.
    #[inline]
    pub fn json<T: Deserialize<'a>>(&self) -> Result<T, Failure> {
        self.data().json().map_err(|error| self.undecodable(&error))
    }

    /// Decodes the event by its type, into an enum made with [`events!`](crate::events).
    #[inline]
    pub fn decode<T: Decode<'a>>(&self) -> Result<T, Failure> {
        T::decode(self)
    }

    #[cold]
    fn undecodable(&self, error: &serde_json::Error) -> Failure {
        Failure::reject(format_args!(
            "event {} ({}): {error}",
            self.sequence,
            self.subject()
        ))
    }
}

impl fmt::Debug for Event<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Event")
            .field("sequence", &self.sequence)
            .field("time", &self.time())
            .field("subject", &self.subject())
            .field("kind", &self.kind())
            .field("headers", &self.headers().collect::<Vec<_>>())
            .field("data", &self.data())
            .finish()
    }
}

/// A type into which an event can be decoded; [`events!`](crate::events) implements it.
pub trait Decode<'a>: Sized {
    /// Decodes an event by its type.
    fn decode(event: &Event<'a>) -> Result<Self, Failure>;
}

/// Declares an enum of events, one variant per event type. It uses
/// [`Event::kind`](crate::Event::kind): if events have no type of their own, that is the last token
/// of the subject. To distinguish `orders.42.placed` from `returns.42.placed`, use `by subject`, as
/// shown below.
///
/// Each line names an event type, the variant, and the type of its data. The
/// last line handles all other types: with `_ => Other` they decode to that
/// variant and can be ignored; without such a line they are rejected. A variant
/// without data ignores the data of the event.
///
/// ```
/// use foldstream_sdk::prelude::*;
///
/// #[derive(Deserialize)]
/// struct Placed<'a> {
///     #[serde(borrow)]
///     product: std::borrow::Cow<'a, str>,
///     total_cents: u64,
/// }
///
/// events! {
///     /// What happens to an order.
///     enum OrderEvent<'a> {
///         "placed" => Placed(Placed<'a>),
///         "cancelled" | "returned" => Gone,
///         _ => Other,
///     }
/// }
///
/// fn total(event: &Event<'_>) -> Result<u64, Failure> {
///     match event.decode()? {
///         OrderEvent::Placed(order) => Ok(order.total_cents),
///         OrderEvent::Gone | OrderEvent::Other => Ok(0),
///     }
/// }
/// ```
///
/// With `by subject` each line names subjects instead, with `*` for any token and `>` for one or
/// more at the end, and the first that fits counts:
///
/// ```
/// use foldstream_sdk::prelude::*;
///
/// #[derive(Deserialize)]
/// struct Parcel {
///     grams: u64,
/// }
///
/// events! {
///     enum Moved by subject {
///         "orders.*.shipped" => Out(Parcel),
///         "returns.*.shipped" | "returns.*.brought" => In(Parcel),
///         _ => Other,
///     }
/// }
/// ```
///
/// # Old versions
///
/// An event in a stream is never changed, so a type whose data changes gets another name, such as
/// `placed.v2`. After the type of the current data, a line lists the types of old events and their
/// data. It is decoded as what it was and then converted, with [`From`] or [`TryFrom`]; the rest of
/// the module knows the current version only. With `as`, the data becomes one version after the
/// other:
///
/// ```
/// use foldstream_sdk::prelude::*;
///
/// #[derive(Deserialize)]
/// struct Placed {
///     total_cents: u64,
///     currency: String,
/// }
///
/// /// Version 2: all totals were in euros.
/// #[derive(Deserialize)]
/// struct PlacedV2 {
///     total_cents: u64,
/// }
///
/// impl From<PlacedV2> for Placed {
///     fn from(old: PlacedV2) -> Self {
///         Self { total_cents: old.total_cents, currency: "EUR".to_owned() }
///     }
/// }
///
/// /// Version 1: totals were text, such as `12.50`.
/// #[derive(Deserialize)]
/// struct PlacedV1 {
///     total: String,
/// }
///
/// impl TryFrom<PlacedV1> for PlacedV2 {
///     type Error = String;
///
///     fn try_from(old: PlacedV1) -> Result<Self, String> {
///         let digits = old.total.replace('.', "");
///         let total_cents = digits.parse().map_err(|_| format!("{} is no total", old.total))?;
///         Ok(Self { total_cents })
///     }
/// }
///
/// events! {
///     enum OrderEvent {
///         "placed.v3" => Placed(Placed, "placed.v2" => PlacedV2, "placed" => PlacedV1 as PlacedV2),
///         _ => Other,
///     }
/// }
/// ```
///
/// Conversions may use the data alone, as every rebuild repeats them. An error of a conversion
/// rejects the event. To share them, put the types, their conversions and the enum into a library.
#[macro_export]
macro_rules! events {
    ($(#[$attribute:meta])* $visibility:vis enum $name:ident $(<$life:lifetime>)? by subject { $($body:tt)* }) => {
        $crate::__events! { [subject "Events under"] [$(#[$attribute])* $visibility] $name [$($life)?] { $($body)* } }
    };
    ($(#[$attribute:meta])* $visibility:vis enum $name:ident $(<$life:lifetime>)? { $($body:tt)* }) => {
        $crate::__events! { [kind "Events of type"] [$(#[$attribute])* $visibility] $name [$($life)?] { $($body)* } }
    };
}

/// Makes the enum for `events!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __events {
    (
        [$by:ident $of:literal] [$($begin:tt)*] $name:ident [$($life:lifetime)?] {
            $($($kind:literal)|+ => $variant:ident $(($data:ty $(, $($old:literal)|+ => $from:ty $(as $via:ty)*)* $(,)?))?,)+
            _ => $other:ident $(,)?
        }
    ) => {
        $($begin)* enum $name $(<$life>)? {
            $(#[doc = concat!($of, $(" `", $kind, "`",)+ ".")] $variant $(($data))?,)+
            /// All other events.
            $other,
        }
        $crate::__decode! {
            $by $name [$($life)?] { $($($kind)|+ => $variant $(($data $(, $($old)|+ => $from $(as $via)*)*))?,)+ } [_event, Ok($name::$other)]
        }
    };
    (
        [$by:ident $of:literal] [$($begin:tt)*] $name:ident [$($life:lifetime)?] {
            $($($kind:literal)|+ => $variant:ident $(($data:ty $(, $($old:literal)|+ => $from:ty $(as $via:ty)*)* $(,)?))?),+ $(,)?
        }
    ) => {
        $($begin)* enum $name $(<$life>)? {
            $(#[doc = concat!($of, $(" `", $kind, "`",)+ ".")] $variant $(($data))?,)+
        }
        $crate::__decode! {
            $by $name [$($life)?] { $($($kind)|+ => $variant $(($data $(, $($old)|+ => $from $(as $via)*)*))?,)+ }
            [event, Err($crate::event::unknown(event))]
        }
    };
}

/// Implements `Decode` for `events!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __decode {
    ($by:ident $name:ident [] { $($body:tt)* } [$($other:tt)*]) => {
        impl<'event> $crate::event::Decode<'event> for $name {
            $crate::__decode_body! { $by $name 'event { $($body)* } [$($other)*] }
        }
    };
    ($by:ident $name:ident [$life:lifetime] { $($body:tt)* } [$($other:tt)*]) => {
        impl<$life> $crate::event::Decode<$life> for $name<$life> {
            $crate::__decode_body! { $by $name $life { $($body)* } [$($other)*] }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __decode_body {
    (
        kind $name:ident $life:lifetime
        { $($($kind:literal)|+ => $variant:ident $(($data:ty $(, $($old:literal)|+ => $from:ty $(as $via:ty)*)*))?,)+ }
        [$event:ident, $other:expr]
    ) => {
        #[inline]
        // A conversion from an old version may be one that never fails.
        #[allow(clippy::unnecessary_fallible_conversions)]
        fn decode($event: &$crate::Event<$life>) -> Result<Self, $crate::Failure> {
            match $event.kind() {
                $($($kind)|+ => Ok($name::$variant $(($event.json::<$data>()?))?),)+
                $($($($($old)|+ => Ok($name::$variant(
                    $crate::__upcast!($event, $event.json::<$from>()?, $($via,)* $data)
                )),)*)?)+
                _ => $other,
            }
        }
    };
    (
        subject $name:ident $life:lifetime
        { $($($pattern:literal)|+ => $variant:ident $(($data:ty $(, $($old:literal)|+ => $from:ty $(as $via:ty)*)*))?,)+ }
        [$event:ident, $other:expr]
    ) => {
        #[inline]
        // A conversion from an old version may be one that never fails.
        #[allow(clippy::unnecessary_fallible_conversions)]
        fn decode($event: &$crate::Event<$life>) -> Result<Self, $crate::Failure> {
            $(if $($event.is_under($pattern))||+ {
                return Ok($name::$variant $(($event.json::<$data>()?))?);
            }
            $($(if $($event.is_under($old))||+ {
                return Ok($name::$variant(
                    $crate::__upcast!($event, $event.json::<$from>()?, $($via,)* $data)
                ));
            })*)?)+
            $other
        }
    };
}

/// Converts data through one version after the other.
#[doc(hidden)]
#[macro_export]
macro_rules! __upcast {
    ($event:ident, $value:expr, $next:ty) => {
        <$next as ::core::convert::TryFrom<_>>::try_from($value).map_err(|error| $crate::event::not_upcast($event, &error))?
    };
    ($event:ident, $value:expr, $next:ty, $($more:ty),+) => {
        $crate::__upcast!($event, $crate::__upcast!($event, $value, $next), $($more),+)
    };
}

/// The failure of an event of an old version that has no form in the next one.
#[doc(hidden)]
#[cold]
pub fn not_upcast(event: &Event<'_>, error: &dyn fmt::Display) -> Failure {
    let (sequence, subject, kind) = (event.sequence, event.subject(), event.kind());
    Failure::reject(format_args!(
        "event {sequence} ({subject}) of type {kind} does not become the current version: {error}"
    ))
}

/// The failure of an event whose type the enum does not list.
#[doc(hidden)]
#[cold]
pub fn unknown(event: &Event<'_>) -> Failure {
    let (sequence, subject, kind) = (event.sequence, event.subject(), event.kind());
    Failure::reject(format_args!(
        "event {sequence} ({subject}) of type {kind} is none that events! lists; add it, or `_ => \
         Other`"
    ))
}

/// A list as the contract lays it out: address and length.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct List<'a, T> {
    start: *const T,
    length: usize,
    life: PhantomData<&'a [T]>,
}

impl<'a, T> List<'a, T> {
    pub(crate) fn new(items: &'a [T]) -> Self {
        Self {
            start: items.as_ptr(),
            length: items.len(),
            life: PhantomData,
        }
    }

    #[inline]
    pub(crate) fn get(self) -> &'a [T]
    where
        T: Copy,
    {
        // An empty list may have any address, also none, which a slice must not have.
        if self.length == 0 {
            return &[];
        }
        // SAFETY: `new` took start and length from a slice that lives for 'a. In the sandbox the
        // host wrote both: by the canonical ABI there are `length` values at `start`, which stay
        // for the batch.
        unsafe { slice::from_raw_parts(self.start, self.length) }
    }
}

/// A text as the contract lays it out.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Text<'a>(List<'a, u8>);

impl<'a> Text<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self(List::new(text.as_bytes()))
    }

    #[inline]
    pub(crate) fn get(self) -> &'a str {
        // SAFETY: `new` took the octets from a `str`; in the sandbox the host checked that they are
        // UTF-8.
        unsafe { std::str::from_utf8_unchecked(self.0.get()) }
    }
}
