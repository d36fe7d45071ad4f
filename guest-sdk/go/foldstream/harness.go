//go:build !wasip1

package foldstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unsafe"
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

// Harness is a projection over a state in memory, to test it without Wasm and without a host:
//
//	visits := foldstream.NewHarness(t, Visits)
//	visits.Given(foldstream.Given{Subject: "visits.home"}, foldstream.Given{Subject: "visits.about"})
//	if got := visits.Get("page/home"); got != "1" {
//		t.Errorf("home was visited %s times", got)
//	}
//	visits.SameForAnyBatching()
type Harness struct {
	t       T
	define  func(*Projection)
	memory  *memory
	running *Projection
	applied []Event
	next    uint64
	time    Timestamp
}

// NewHarness makes a projection with an empty state.
func NewHarness(t T, define func(*Projection)) *Harness {
	harness := &Harness{t: t, define: define, memory: &memory{entries: map[string]string{}}, next: 1}
	harness.time, _ = ParseTimestamp("2026-01-01T00:00:00Z")
	// Mistakes in the definition are found here, not by the first event.
	open(define, harness.memory)
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
// the batch wrote, and applies the events before the failing one again.
func (h *Harness) Try(events ...Given) error {
	h.t.Helper()
	var batch []Event
	for _, given := range events {
		if event, matches := h.store(given); matches {
			batch = append(batch, event)
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
	h.applied = append(h.applied, kept...)
	if failed != nil {
		return failed.err
	}
	return nil
}

// IsRetry says whether an error that a projection returned asks for another attempt.
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
	answer, err := open(h.define, h.memory).answer(name, string(given))
	if errors.Is(err, errUnknownQuery) {
		h.t.Fatalf("the projection has no query %s", name)
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
// restart after each, and compares the stored entries.
func (h *Harness) SameForAnyBatching() {
	h.t.Helper()
	// Small batches, odd ones, one that splits most tests unevenly, and all at once.
	for _, size := range []int{1, 2, 3, 7, 64, max(1, len(h.applied))} {
		for _, how := range []string{"", ", restarted after each"} {
			other := NewHarness(h.t, h.define)
			for batch := range slices.Chunk(h.applied, size) {
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
	shown := func(harness *Harness, key string) string {
		if value, found := harness.memory.entries[key]; found {
			return value
		}
		return "nothing"
	}
	keys := slices.Collect(maps.Keys(h.memory.entries))
	keys = slices.AppendSeq(keys, maps.Keys(other.memory.entries))
	slices.Sort(keys)
	for _, key := range keys {
		if ours, theirs := shown(h, key), shown(other, key); ours != theirs {
			h.t.Fatalf("the result depends on the batches: %s is %s as given, and %s %s, so some of "+
				"what the projection needs is not in its tables", key, ours, theirs, how)
		}
	}
}

// store makes an event of what a test gives, and says whether the projection reads it.
func (h *Harness) store(given Given) (Event, bool) {
	h.t.Helper()
	event := Event{Sequence: h.next, Time: h.time, Subject: given.Subject, Kind: given.Kind}
	// Also of events that do not match: their sequences are missing, as in a stream.
	h.next++
	if given.Time != "" {
		var err error
		if event.Time, err = ParseTimestamp(given.Time); err != nil {
			h.t.Fatalf("the time of event %d: %v", event.Sequence, err)
		}
	}
	h.time = event.Time + 1_000_000_000
	if event.Kind == "" {
		event.Kind = given.Subject[strings.LastIndexByte(given.Subject, '.')+1:]
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
	manifest := open(h.define, h.memory).Manifest
	if manifest.Headers {
		event.Headers = given.Headers
	}
	matches := func(pattern string) bool { return subjectMatches(pattern, given.Subject) }
	return event, slices.ContainsFunc(manifest.Subjects, matches)
}

func (h *Harness) apply(batch []Event) *failed {
	if h.running == nil {
		h.running = open(h.define, h.memory)
	}
	before := maps.Clone(h.memory.entries)
	failed := h.running.applyBatch(batch)
	if failed != nil {
		// What the instance holds no longer matches the state.
		h.memory.entries = before
		h.running = nil
	}
	return failed
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

// memory is a state in memory.
type memory struct{ entries map[string]string }

func (m *memory) get(key string) (string, bool) {
	value, found := m.entries[key]
	return value, found
}

func (m *memory) putMany(writes []write) {
	for _, write := range writes {
		if write.deletes {
			delete(m.entries, write.key)
		} else {
			m.entries[write.key] = write.value
		}
	}
}

func (m *memory) scan(span span, backwards bool, limit int) ([]entry, bool) {
	var covered []string
	for key := range m.entries {
		beyond := span.after == "" || (key > span.after) != backwards && key != span.after
		if beyond && span.start <= key && key < span.end {
			covered = append(covered, key)
		}
	}
	slices.Sort(covered)
	if backwards {
		slices.Reverse(covered)
	}
	more := len(covered) > limit
	var entries []entry
	for _, key := range covered[:min(len(covered), limit)] {
		entries = append(entries, entry{key, m.entries[key]})
	}
	return entries, more
}

// keyText is the text of a key of a table without a name, for the tests of the SDK.
func keyText[K any](key keyType, of K) (string, error) {
	text, err := key.write(nil, unsafe.Pointer(&of))
	return string(text), err
}
