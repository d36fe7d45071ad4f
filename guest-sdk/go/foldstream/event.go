package foldstream

import (
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"
)

// Event is an immutable fact.
type Event struct {
	// Sequence in the stream, counted from 1. Strictly increasing, with gaps for events that do not
	// match the module's subjects.
	Sequence uint64
	// Time at which the stream stored it. On JetStream the server sets it, and no publisher can: put
	// the time at which something happened into the data.
	Time Timestamp
	// Subject under which it was published, such as orders.42.placed.
	Subject string
	// Kind is its type: the CloudEvents type, otherwise the Event-Type header, otherwise the last
	// token of the subject.
	Kind string
	// Headers by lower-case name; empty unless the manifest asks for them.
	Headers map[string]string
	// Data is what happened, as text or any octets. Keep parts of it with strings.Clone: each of
	// them keeps much of its batch in memory.
	Data string

	state *state
}

// Token is one token of the subject, counted from 1: the second of orders.42.placed is 42.
func (e *Event) Token(number int) string {
	token, found := tokenOf(e.Subject, number)
	if !found {
		e.state.fail(mismatch("subject ", e.Subject, " has no token ", strconv.Itoa(number)))
	}
	return token
}

func tokenOf(subject string, number int) (string, bool) {
	place := 0
	for token := range strings.SplitSeq(subject, ".") {
		if place++; place == number {
			return token, true
		}
	}
	return "", false
}

// IsUnder says whether the subject is one of these: orders.*.placed, where * matches any token, or
// orders.>, where > at the end matches one token or more.
func (e *Event) IsUnder(pattern string) bool { return subjectMatches(pattern, e.Subject) }

func subjectMatches(pattern, subject string) bool {
	for {
		want, wanted, more := strings.Cut(pattern, ".")
		token, rest, others := strings.Cut(subject, ".")
		switch {
		case want == ">" && !more:
			return true
		case want != "*" && want != token:
			return false
		case more != others:
			return false
		case !more:
			return true
		}
		pattern, subject = wanted, rest
	}
}

// Data is the data of an event as JSON, checked against a type. Return the error: it rejects the
// event, and says where the data differs from its type.
func Data[T any](event *Event) (T, error) {
	var data T
	decoder, err := codecOf(reflect.TypeFor[T]())
	if err == nil {
		err = event.decode(decoder, unsafe.Pointer(&data))
	}
	return data, err
}

func (e *Event) decode(decoder *codec, data unsafe.Pointer) error {
	var err error
	if utf8.ValidString(e.Data) {
		err = decoder.decodeText(e.Data, data)
	} else {
		err = mismatch("the data is not UTF-8")
	}
	if err == nil {
		return nil
	}
	return mismatch("event ", strconv.FormatUint(e.Sequence, 10), " (", e.Subject, "): ", err.Error())
}
