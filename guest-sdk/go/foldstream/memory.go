//go:build !wasip1

package foldstream

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unsafe"
)

// Published is a message that a handler published, with what it was given.
type Published struct {
	Subject string
	// Kind is the given one, or the last token of the subject.
	Kind string
	// Data as it is sent.
	Data    string
	Headers map[string]string
	Key     string

	NotBefore    Timestamp
	TimeToLive   time.Duration
	ExpectedLast *ExpectedLast
}

// String shows all that is given.
func (p Published) String() string {
	shown := []string{p.Subject, p.Kind, p.Data}
	for _, name := range slices.Sorted(maps.Keys(p.Headers)) {
		shown = append(shown, "header "+name+": "+p.Headers[name])
	}
	if p.Key != "" {
		shown = append(shown, "key "+p.Key)
	}
	if p.NotBefore != 0 {
		shown = append(shown, "not before "+p.NotBefore.String())
	}
	if p.TimeToLive != 0 {
		shown = append(shown, "time to live "+p.TimeToLive.String())
	}
	if last := p.ExpectedLast; last != nil {
		shown = append(shown, fmt.Sprintf("expected last %d of %q", last.Sequence, last.Subject))
	}
	return strings.Join(shown, ", ")
}

// memory is a state, timers and messages in memory.
type memory struct {
	manifest *Manifest
	entries  map[string]string
	timers   map[string]Timer
	messages []Published
}

func newMemory() *memory { return &memory{entries: map[string]string{}, timers: map[string]Timer{}} }

// copied is what the memory is brought back to if a batch fails.
func (m *memory) copied() memory {
	return memory{m.manifest, maps.Clone(m.entries), maps.Clone(m.timers), slices.Clone(m.messages)}
}

// publish refuses what a host would refuse.
func (m *memory) publish(_ int, messages []message) error {
	for _, one := range messages {
		covers := func(pattern string) bool { return subjectMatches(pattern, one.Subject) }
		if !slices.ContainsFunc(m.manifest.published(), covers) {
			return mismatch("it publishes to ", one.Subject, ", which its manifest does not declare; add it to Publishes")
		}
		if last := one.ExpectedLast; last != nil && last.Subject != "" && !covers(last.Subject) {
			return mismatch("a message to ", one.Subject, " expects the last sequence of ", last.Subject, ", which does not cover it")
		}
		m.messages = append(m.messages, published(one))
	}
	return nil
}

func published(one message) Published {
	shown := Published{
		Subject:    one.Subject,
		Kind:       cmp.Or(one.Kind, lastToken(one.Subject)),
		Data:       one.data,
		Headers:    one.Headers,
		Key:        one.Key,
		NotBefore:  one.NotBefore,
		TimeToLive: time.Duration(one.seconds) * time.Second,
	}
	if last := one.ExpectedLast; last != nil {
		shown.ExpectedLast = &ExpectedLast{cmp.Or(last.Subject, one.Subject), last.Sequence}
	}
	return shown
}

func lastToken(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }

func (m *memory) changeTimers(_ int, changes []timerChange) error {
	for _, change := range changes {
		switch {
		case change.cancels:
			delete(m.timers, change.Name)
		case !m.manifest.Timers:
			return mismatch("it sets timers, which its manifest does not declare; add Timers: true")
		default:
			m.timers[change.Name] = change.Timer
		}
	}
	return nil
}

// pending are the pending timers, in the order in which they fire.
func (m *memory) pending() []Timer {
	return slices.SortedFunc(maps.Values(m.timers), func(one, other Timer) int {
		return cmp.Or(cmp.Compare(one.At, other.At), strings.Compare(one.Name, other.Name))
	})
}

// results are all that must not depend on batches, each with what it is.
func (m *memory) results() map[string]string {
	results := maps.Clone(m.entries)
	for place, message := range m.messages {
		results[fmt.Sprintf("message %d", place)] = message.String()
	}
	for name, timer := range m.timers {
		results["timer "+name] = strings.TrimSpace(timer.At.String() + " " + timer.Key)
	}
	return results
}

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
