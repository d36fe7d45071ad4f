//go:build !wasip1

package foldstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// T is what a [Harness] needs of a test; *testing.T has it.
type T interface {
	Helper()
	Fatalf(format string, arguments ...any)
}

// Given is an event to apply in a test.
type Given struct {
	Subject string
	// Data as a value of Go, or as the text or bytes that it is. Nil is an object without fields.
	Data any
	// Kind is its type; by default the last token of the subject.
	Kind string
	// Time in RFC 3339; by default one second after the event before.
	Time string
	// Headers by lower-case name.
	Headers map[string]string
}

// Harness is a projection or handler over a state in memory, to test it without Wasm and without a
// host:
//
//	visits := foldstream.NewHarness(t, Visits)
//	visits.Given(foldstream.Given{Subject: "visits.home"}, foldstream.Given{Subject: "visits.about"})
//	if got := visits.Get("page/home"); got != "1" {
//		t.Errorf("home was visited %s times", got)
//	}
//	visits.SameForAnyBatching()
//
// Of a handler it also shows what was published and which timers are pending, and lets time pass:
//
//	payments := foldstream.NewHarness(t, Payments)
//	payments.Given(foldstream.Given{Subject: "orders.42.placed"})
//	payments.After(30 * time.Minute)
//	published := payments.Published()
type Harness struct {
	t T
	// open makes an instance over a memory.
	open func(*memory) *module
	// begun are the entries before the first event, which a migration made.
	begun    map[string]string
	memory   *memory
	running  *module
	reacted  []input
	sequence uint64
	time     Timestamp
}

// input is what a module reacts to: an event, or a timer that fires.
type input struct {
	event Event
	fired *Fired
}

// firingsMax is how many timers fire at most while a test lets time pass.
const firingsMax = 100_000

// NewHarness makes a projection or handler with an empty state.
func NewHarness[M Projection | Handler](t T, define func(*M)) *Harness {
	return newHarness(t, opens(define), nil)
}

// NewMigrated is a harness whose state a migration made of the entries of an older version: values as
// JSON by their keys, as [Harness.Entries] returns them. It returns why a migration failed.
func NewMigrated[M Projection | Handler](t T, define func(*M), fromVersion uint32, old map[string]string) (*Harness, error) {
	t.Helper()
	open := opens(define)
	var page []OldEntry
	// A host hands them over in the order of the keys.
	for _, key := range slices.Sorted(maps.Keys(old)) {
		page = append(page, OldEntry{Key: key, Value: old[key]})
	}
	made, err := open(newMemory()).migrateAll(fromVersion, page)
	if err != nil {
		return nil, err
	}
	migrated := newMemory()
	migrated.putMany(made)
	return newHarness(t, open, migrated.entries), nil
}

// opens makes instances over a memory.
func opens[M Projection | Handler](define func(*M)) func(*memory) *module {
	return func(memory *memory) *module {
		var opened *module
		switch define := any(define).(type) {
		case func(*Projection):
			opened = openProjection(define, memory)
		case func(*Handler):
			opened = openHandler(define, memory, memory)
		}
		memory.manifest = opened.manifest
		return opened
	}
}

func newHarness(t T, open func(*memory) *module, begun map[string]string) *Harness {
	harness := &Harness{t: t, open: open, begun: begun, memory: newMemory(), sequence: 1}
	maps.Copy(harness.memory.entries, begun)
	harness.time, _ = ParseTimestamp("2026-01-01T00:00:00Z")
	// Mistakes in the definition are found here, not by the first event.
	open(harness.memory)
	return harness
}

// Given applies events, as one batch. Like a host, it ignores events that the manifest's subjects do
// not match. It ends the test if one fails.
func (h *Harness) Given(events ...Given) {
	h.t.Helper()
	if err := h.Try(events...); err != nil {
		h.t.Fatalf("%v", err)
	}
}

// Try applies events, as one batch, and returns why one of them failed. It then drops everything that
// the batch wrote and published, and applies the events before the failing one again.
func (h *Harness) Try(events ...Given) error {
	h.t.Helper()
	var batch []input
	for _, given := range events {
		if event, matches := h.store(given); matches {
			batch = append(batch, input{event: event})
		}
	}
	failed := h.apply(batch)
	kept := batch
	if failed != nil {
		kept = batch[:failed.index]
		if again := h.apply(kept); again != nil {
			h.t.Fatalf("the events before the failing one fail on their own: %v", again.err)
		}
	}
	h.reacted = append(h.reacted, kept...)
	if failed != nil {
		return failed.err
	}
	return nil
}

// After lets time pass after the last event, and fires the timers that are due meanwhile, in order,
// each at its time. It ends the test if one fails.
func (h *Harness) After(span time.Duration) {
	h.t.Helper()
	if err := h.TryAfter(span); err != nil {
		h.t.Fatalf("%v", err)
	}
}

// TryAfter is [Harness.After], and returns why a timer failed. That timer stays pending, like those
// after it, and everything that it did is dropped.
func (h *Harness) TryAfter(span time.Duration) error {
	h.t.Helper()
	until := h.time.Add(span)
	for range firingsMax {
		due := h.memory.pending()
		if len(due) == 0 || due[0].At > until {
			h.time = until
			return nil
		}
		timer := due[0]
		// Never before an event that came already: time does not go back in a stream.
		h.time = max(h.time, timer.At)
		// Firings are stored in the stream, so they have sequences like events.
		firing := input{fired: &Fired{timer.Name, timer.At, h.time, h.sequence, timer.Key}}
		h.sequence++
		if failed := h.apply([]input{firing}); failed != nil {
			return failed.err
		}
		h.reacted = append(h.reacted, firing)
	}
	h.t.Fatalf("more than %d timers fired: timers set each other without end", firingsMax)
	return nil
}

// Published is what the handler has published so far, in order.
func (h *Harness) Published() []Published { return slices.Clone(h.memory.messages) }

// Timers are the pending timers, in the order in which they fire.
func (h *Harness) Timers() []Timer { return h.memory.pending() }

// IsRetry says whether an error that a module returned asks for another attempt.
func IsRetry(err error) bool { return isRetry(err) }

// Query runs a query with its arguments as a value of Go, nil for none, and returns the answer as
// JSON text.
func (h *Harness) Query(name string, arguments any) (string, error) {
	h.t.Helper()
	var given []byte
	if arguments != nil {
		var err error
		if given, err = appendAny(nil, arguments); err != nil {
			h.t.Fatalf("the arguments of the query %s: %v", name, err)
		}
	}
	// An instance of its own, as in a host: what is only in memory is not there.
	answer, err := h.open(h.memory).answer(name, string(given))
	if errors.Is(err, errUnknownQuery) {
		h.t.Fatalf("the module has no query %s", name)
	}
	return answer, err
}

// Answer runs a query that has an answer, and returns it as JSON text.
func (h *Harness) Answer(name string, arguments any) string {
	h.t.Helper()
	answer, err := h.Query(name, arguments)
	if err != nil {
		h.t.Fatalf("query %s: %v", name, err)
	}
	return answer
}

// Get is the stored value of a key such as customer/42, as JSON text; empty if there is none.
func (h *Harness) Get(key string) string { return h.memory.entries[key] }

// Entries are the stored entries whose keys begin with a text.
func (h *Harness) Entries(prefix string) map[string]string {
	found := map[string]string{}
	for key, value := range h.memory.entries {
		if strings.HasPrefix(key, prefix) {
			found[key] = value
		}
	}
	return found
}

// Restart drops everything that is not in the state, as a restart does.
func (h *Harness) Restart() { h.running = nil }

// SameForAnyBatching applies all events so far again in batches of other sizes, with and without a
// restart after each, and compares the stored entries, the messages and the pending timers.
func (h *Harness) SameForAnyBatching() {
	h.t.Helper()
	// Small batches, odd ones, one that splits most tests unevenly, and all at once.
	for _, size := range []int{1, 2, 3, 7, 64, max(1, len(h.reacted))} {
		for _, how := range []string{"", ", restarted after each"} {
			other := newHarness(h.t, h.open, h.begun)
			for batch := range slices.Chunk(h.reacted, size) {
				if failed := other.apply(batch); failed != nil {
					h.t.Fatalf("in batches of %d: %v", size, failed.err)
				}
				if how != "" {
					other.Restart()
				}
			}
			h.compare(other, fmt.Sprintf("in batches of %d%s", size, how))
		}
	}
}

func (h *Harness) compare(other *Harness, how string) {
	h.t.Helper()
	ours, theirs := h.memory.results(), other.memory.results()
	shown := func(results map[string]string, key string) string {
		if value, found := results[key]; found {
			return value
		}
		return "nothing"
	}
	keys := slices.AppendSeq(slices.Collect(maps.Keys(ours)), maps.Keys(theirs))
	slices.Sort(keys)
	for _, key := range keys {
		if our, their := shown(ours, key), shown(theirs, key); our != their {
			h.t.Fatalf("the result depends on the batches: %s is %s as given, and %s %s, so some of "+
				"what the module needs is not in its tables", key, our, their, how)
		}
	}
}

// store makes an event of what a test gives, and says whether the module reads it.
func (h *Harness) store(given Given) (Event, bool) {
	h.t.Helper()
	event := Event{Sequence: h.sequence, Time: h.time, Subject: given.Subject, Kind: given.Kind}
	// Also of events that do not match: their sequences are missing, as in a stream.
	h.sequence++
	if given.Time != "" {
		var err error
		if event.Time, err = ParseTimestamp(given.Time); err != nil {
			h.t.Fatalf("the time of event %d: %v", event.Sequence, err)
		}
	}
	h.time = event.Time + 1_000_000_000
	if event.Kind == "" {
		event.Kind = lastToken(given.Subject)
	}
	switch data := given.Data.(type) {
	case nil:
		event.Data = "{}"
	case string:
		event.Data = data
	case []byte:
		event.Data = string(data)
	default:
		text, err := appendAny(nil, data)
		if err != nil {
			h.t.Fatalf("the data of event %d: %v", event.Sequence, err)
		}
		event.Data = string(text)
	}
	manifest := h.memory.manifest
	if manifest.wantsHeaders() {
		event.Headers = given.Headers
	}
	matches := func(pattern string) bool { return subjectMatches(pattern, given.Subject) }
	return event, slices.ContainsFunc(manifest.Subjects, matches)
}

// apply calls the module with events and timers that fire: those one by one, and events up to the
// next one in one batch.
func (h *Harness) apply(batch []input) *failed {
	if h.running == nil {
		h.running = h.open(h.memory)
	}
	before := h.memory.copied()
	for first := 0; first < len(batch); {
		count, failed := h.call(batch[first:])
		if failed != nil {
			// What the instance holds no longer matches the state.
			*h.memory = before
			h.running = nil
			failed.index += first
			return failed
		}
		first += count
	}
	return nil
}

// call is one call of the module with what comes next, and how much that was.
func (h *Harness) call(rest []input) (int, *failed) {
	if fired := rest[0].fired; fired != nil {
		_, pending := h.memory.timers[fired.Name]
		if !pending {
			return 1, nil
		}
		// It is pending no more, and may be set again under its name.
		delete(h.memory.timers, fired.Name)
		return 1, h.running.fire([]Fired{*fired})
	}
	var events []Event
	for _, next := range rest {
		if next.fired != nil {
			break
		}
		events = append(events, next.event)
	}
	return len(events), h.running.applyBatch(events)
}

// EventsFromNDJSON reads events from lines of JSON, in the format of foldstream events import.
func EventsFromNDJSON(text string) ([]Given, error) {
	var events []Given
	number := 0
	for line := range strings.Lines(text) {
		number++
		if strings.TrimSpace(line) == "" {
			continue
		}
		var read struct {
			Subject string            `json:"subject"`
			Type    string            `json:"type"`
			Time    string            `json:"time"`
			Headers map[string]string `json:"headers"`
			Data    json.RawMessage   `json:"data"`
		}
		if err := json.Unmarshal([]byte(line), &read); err != nil || read.Subject == "" {
			return nil, fmt.Errorf("line %d is no event: %v", number, err)
		}
		event := Given{Subject: read.Subject, Kind: read.Type, Time: read.Time, Headers: read.Headers}
		// A text is the data as it is.
		var plain string
		if json.Unmarshal(read.Data, &plain) == nil {
			event.Data = plain
		} else if read.Data != nil {
			event.Data = []byte(read.Data)
		}
		events = append(events, event)
	}
	return events, nil
}
