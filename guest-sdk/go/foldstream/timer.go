package foldstream

import "strings"

// Timer is a timer to set: what a handler asks to be called for at a time.
type Timer struct {
	// Name: 1 to 512 bytes. A timer that is pending under the same name is replaced.
	Name string
	// At is when it fires, such as event.Time.Add(30 * time.Minute). A time in the past fires at once.
	At Timestamp
	// Key is that of messages that it causes, and it waits behind parked events of this key; if empty,
	// that of the event that sets it.
	Key string
}

// Fired is a timer that fires. It is pending no more.
type Fired struct {
	// Name of the timer.
	Name string
	// At is the time that it was set to.
	At Timestamp
	// Time at which it fired, by the clock of the stream: not before At, and later if the host was
	// stopped or the stream away.
	Time Timestamp
	// Sequence of its firing in the stream, where it has a place like an event.
	Sequence uint64
	// Key of the timer; empty if it has none.
	Key string
}

// Part is a part of its name between slashes, counted from 1: the second of payment/42 is 42. It is
// empty if the name has fewer.
func (f *Fired) Part(number int) string {
	place := 0
	for part := range strings.SplitSeq(f.Name, "/") {
		if place++; place == number {
			return part
		}
	}
	return ""
}
