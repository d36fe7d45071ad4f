package foldstream

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Manifest is what a projection or a handler is and needs. Only name and subjects are required; a zero
// value takes the host's setting.
type Manifest struct {
	// Name, and the default name of its deployment: 1 to 63 lower-case letters, digits and hyphens,
	// a letter first.
	Name string
	// Description is for people: its purpose.
	Description string
	// Subjects that it reads, with the wildcards * (one token) and > (the rest).
	Subjects []string
	// Key is how the host finds the key of an event.
	Key KeyRule
	// Headers says whether events carry their headers, which cost about as much as the rest of an
	// event.
	Headers bool
	// StateVersion is the version of the stored entries. Raise it if the code changes the meaning of
	// old keys or values: the host then rebuilds the state.
	StateVersion uint32
	// Inbox says how to recognise events that a producer published twice.
	Inbox *Inbox
	// Attempts is how often the host tries a failing batch, including the first attempt.
	Attempts uint32
	// InitialBackoff is the pause before the second attempt, which doubles each time up to MaxBackoff.
	InitialBackoff, MaxBackoff time.Duration
	// MemoryLimit is the linear memory that one instance needs, in bytes; Go takes about 10 MiB.
	MemoryLimit uint64
	// Deadline is the longest time that one call may need.
	Deadline time.Duration
	// BatchLimit is the most events that one batch may have.
	BatchLimit uint32
	// StateLimit is the largest total size of all keys and values, in bytes.
	StateLimit uint64

	// Publishes are the subjects that a handler publishes to, with the wildcards * and >. This grants
	// nothing: who deploys it decides, with --allow-publish, which of them it may publish to.
	Publishes []string
	// Replies says whether a handler replies to the publishers of events, with [Effects.Reply]. Events
	// then carry their headers. Who deploys it decides whether it may, with
	// --allow-publish '_INBOX.>@SOURCE'.
	Replies bool
	// Timers says whether a handler sets timers, with [Effects.SetTimer]. The host records their
	// firings in the stream that the handler reads.
	Timers bool
}

// isOfHandler says whether only a handler can be this.
func (m *Manifest) isOfHandler() bool { return len(m.Publishes) > 0 || m.Replies || m.Timers }

// wantsHeaders says whether events carry their headers.
func (m *Manifest) wantsHeaders() bool { return m.Headers || m.Replies }

// published are all subjects that it publishes to.
func (m *Manifest) published() []string {
	if m.Replies {
		return append(slices.Clone(m.Publishes), "_INBOX.>")
	}
	return m.Publishes
}

// KeyRule says how the host finds the key of an event. Events with one key are applied in order, and
// can be rebuilt without the others. Without a rule only the whole state can be rebuilt.
type KeyRule struct {
	kind   uint8
	number uint32
	text   string
}

// Of is the key of an event by this rule. A value inside data is a text or a whole number.
func (r KeyRule) Of(event *Event) (string, error) {
	missing := func(what string) (string, error) {
		return "", mismatch("event ", strconv.FormatUint(event.Sequence, 10), " (", event.Subject, ") has no ", what)
	}
	switch r.kind {
	case 1:
		return event.Subject, nil
	case 2:
		token, found := tokenOf(event.Subject, int(r.number))
		if !found {
			return missing("token " + strconv.FormatUint(uint64(r.number), 10))
		}
		return token, nil
	case 3:
		value, found := event.Headers[r.text]
		if !found {
			return missing("header " + r.text)
		}
		return value, nil
	case 4:
		data, err := Data[any](event)
		if err != nil {
			return "", err
		}
		switch found := pointedAt(data, r.text).(type) {
		case string:
			return found, nil
		case int64:
			return strconv.FormatInt(found, 10), nil
		case uint64:
			return strconv.FormatUint(found, 10), nil
		}
		return missing("text or whole number at " + r.text)
	}
	return missing("key")
}

// pointedAt is the value at a JSON pointer (RFC 6901); nil if there is none.
func pointedAt(value any, pointer string) any {
	start, rest, more := strings.Cut(pointer, "/")
	if start != "" {
		return nil
	}
	for more {
		var step string
		step, rest, more = strings.Cut(rest, "/")
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		switch inner := value.(type) {
		case map[string]any:
			value = inner[step]
		case []any:
			number, err := strconv.ParseUint(step, 10, 31)
			if err != nil || strconv.FormatUint(number, 10) != step || int(number) >= len(inner) {
				return nil
			}
			value = inner[number]
		default:
			return nil
		}
	}
	return value
}

// SubjectKey is the whole subject.
func SubjectKey() KeyRule { return KeyRule{kind: 1} }

// SubjectTokenKey is one token of the subject, counted from 1.
func SubjectTokenKey(number uint32) KeyRule { return KeyRule{kind: 2, number: number} }

// HeaderKey is the value of a header, by lower-case name.
func HeaderKey(name string) KeyRule { return KeyRule{kind: 3, text: name} }

// DataPointerKey is a value inside JSON data, as a JSON pointer (RFC 6901).
func DataPointerKey(pointer string) KeyRule { return KeyRule{kind: 4, text: pointer} }

// EventID is what two events with one subject have in common if they are the same. The zero value is
// the id of the message: ce-id with ce-source of a CloudEvent, otherwise Nats-Msg-Id.
type EventID struct {
	kind uint8
	text string
}

// HeaderID is the value of a header, by lower-case name.
func HeaderID(name string) EventID { return EventID{1, name} }

// DataPointerID is a value inside JSON data, as a JSON pointer (RFC 6901).
func DataPointerID(pointer string) EventID { return EventID{2, pointer} }

// Inbox leaves out events that their producer published again within a window.
type Inbox struct {
	// ID is what identifies an event.
	ID EventID
	// Window is how much later than the first one an event is recognised.
	Window time.Duration
	// IDsMax is how many ids the host keeps; the oldest are forgotten first. Zero is a million.
	IDsMax uint32
}
