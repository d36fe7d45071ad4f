package foldstream

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Message is a message to publish. Only its subject is required.
type Message struct {
	// Subject, without wildcards. The manifest must declare it in Publishes.
	Subject string
	// Data is written as JSON; a string or []byte is the data as it is. Nil is empty data.
	Data any
	// Kind is its type; if empty, the last token of the subject.
	Kind string
	// Headers by name. The host refuses those that it sets itself, and those that steer the server.
	Headers map[string]string
	// Key: messages with one key are stored in order; if empty, it is the key of the event or timer.
	Key string
	// NotBefore is a time before which it is not sent. Until then it waits in the outbox, through
	// restarts and new code, and holds back no other message of its key. A timer decides when its time
	// has come; this decides now.
	NotBefore Timestamp
	// TimeToLive is for how long the stream keeps it, in whole seconds, at least 1; zero is for ever.
	// The stream must allow that; an embedded log can't, and the host refuses the message.
	TimeToLive time.Duration
	// ExpectedLast is the condition on which it is stored.
	ExpectedLast *ExpectedLast
}

// ExpectedLast is a condition on which a message is stored: the last message of a subject has this
// sequence in the stream that the message goes to.
//
// The state is committed by then, and is not undone: a message whose condition does not hold is set
// aside as a conflict, for an operator to send or drop, and later messages continue.
type ExpectedLast struct {
	// Subject, or a pattern that covers that of the message; if empty, it is that of the message.
	Subject string
	// Sequence of the last message; 0 if there must not be any.
	Sequence uint64
}

// Effects are what one event, or one timer, causes: messages in order, and changes to timers.
//
// The host stores them together with what the handler writes into its tables, and sends the messages
// after that. If the handler returns an error, nothing is sent, set or cancelled. A value that no
// message can have, such as text that is not UTF-8, rejects the event, whatever the handler returns.
type Effects struct {
	state    *state
	messages []message
	changes  []timerChange
	// closed is set once the event is handled.
	closed bool
}

// isClosed rejects an event that uses the effects of an earlier one, which are passed on already.
func (e *Effects) isClosed() bool {
	if e.closed {
		e.state.fail(mismatch("these are the effects of an earlier event: they can't change any more"))
	}
	return e.closed
}

// message is a message, checked.
type message struct {
	Message
	data   string
	isText bool
	// headers are the names of the headers in order.
	headers []string
	// seconds that the stream keeps it; 0 is for ever.
	seconds uint32
}

// timerChange sets a timer, or cancels the one of this name.
type timerChange struct {
	Timer
	cancels bool
}

// outbox is where effects go: to a host, or to memory in tests. The cause is the index of the event
// or timer in its batch.
type outbox interface {
	publish(cause int, messages []message) error
	changeTimers(cause int, changes []timerChange) error
}

// Publish publishes a message.
func (e *Effects) Publish(published Message) {
	if e.isClosed() {
		return
	}
	checked, err := check(published)
	if err != nil {
		e.state.fail(within("a message to "+published.Subject, err))
		return
	}
	e.messages = append(e.messages, checked)
}

// SetTimer sets a timer. One that is pending under the same name is replaced. The manifest must say
// Timers.
func (e *Effects) SetTimer(timer Timer) {
	if e.isClosed() {
		return
	}
	if !utf8.ValidString(timer.Name) || !utf8.ValidString(timer.Key) {
		e.state.fail(mismatch("timer ", strconv.Quote(timer.Name), ": its name or key is not UTF-8"))
		return
	}
	e.changes = append(e.changes, timerChange{Timer: timer})
}

// CancelTimer cancels a timer: it does not fire, whatever its time. It does nothing if none is pending
// under that name.
func (e *Effects) CancelTimer(name string) {
	if e.isClosed() {
		return
	}
	if !utf8.ValidString(name) {
		e.state.fail(mismatch("timer ", strconv.Quote(name), ": its name is not UTF-8"))
		return
	}
	e.changes = append(e.changes, timerChange{Timer: Timer{Name: name}, cancels: true})
}

// Reply replies to the publisher of the event, if it named its inbox in its header
// foldstream-reply-to. Otherwise, and if the operator has granted no replies, it does nothing. The
// manifest must say Replies.
//
// A reply leaves after the commit of what the event changed, over plain NATS. Nobody confirms it: it
// may be lost, and come twice after a crash.
func (e *Effects) Reply(event *Event, data any) {
	inbox := event.Headers[replyTo]
	if isInbox(inbox) {
		e.Publish(Message{Subject: inbox, Kind: "reply", Data: data})
	}
}

const (
	// replyTo is the header of an event that names the inbox of its requester.
	replyTo       = "foldstream-reply-to"
	inboxBytesMax = 256
)

// isInbox says whether the host sends a reply to this subject: a stranger wrote it.
func isInbox(subject string) bool {
	if len(subject) > inboxBytesMax || !strings.HasPrefix(subject, "_INBOX.") {
		return false
	}
	for token := range strings.SplitSeq(subject, ".") {
		isOther := func(char rune) bool { return char <= ' ' || char > '~' || char == '*' || char == '>' }
		if token == "" || strings.ContainsFunc(token, isOther) {
			return false
		}
	}
	return true
}

func (e *Effects) passOn(cause int, outbox outbox) error {
	if len(e.messages) > 0 {
		if err := outbox.publish(cause, e.messages); err != nil {
			return err
		}
	}
	if len(e.changes) > 0 {
		return outbox.changeTimers(cause, e.changes)
	}
	return nil
}

// check refuses what must not reach the host: the call would end without saying which value it was.
func check(published Message) (message, error) {
	checked := message{Message: published, headers: slices.Sorted(maps.Keys(published.Headers))}
	texts := []struct{ name, text string }{
		{"its subject", published.Subject}, {"Kind", published.Kind}, {"Key", published.Key},
	}
	for _, name := range checked.headers {
		texts = append(texts, struct{ name, text string }{"Headers", name + published.Headers[name]})
	}
	if last := published.ExpectedLast; last != nil {
		texts = append(texts, struct{ name, text string }{"ExpectedLast", last.Subject})
	}
	for _, one := range texts {
		if !utf8.ValidString(one.text) {
			return checked, mismatch(one.name, ": it is not UTF-8")
		}
	}
	var err error
	if checked.data, checked.isText, err = written(published.Data); err != nil {
		return checked, within("Data", err)
	}
	span := published.TimeToLive
	if span != 0 && (span < time.Second || span/time.Second > math.MaxUint32) {
		return checked, mismatch("TimeToLive: expected 1 to 4294967295 s, found ", span.String())
	}
	checked.seconds = uint32(span / time.Second)
	return checked, nil
}

// written is data as it is sent, and whether it is text.
func written(data any) (string, bool, error) {
	switch data := data.(type) {
	case nil:
		return "", true, nil
	case []byte:
		return string(data), false, nil
	case string:
		if !utf8.ValidString(data) {
			return "", true, mismatch("it is not UTF-8; data of other octets is []byte")
		}
		return data, true, nil
	}
	text, err := appendAny(nil, data)
	return string(text), true, err
}
