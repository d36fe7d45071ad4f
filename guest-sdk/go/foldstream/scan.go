package foldstream

import (
	"iter"
	"reflect"
	"unicode/utf8"
	"unsafe"
)

// pageEntriesMax is how many entries of a scan are requested at once.
const pageEntriesMax = 1_000

// span is the keys of a scan, as texts.
type span struct {
	// start is the first key, end is behind the last.
	start, end string
	// after is the key behind which the scan continues in its direction; empty if it begins.
	after string
}

// Scan reads entries in the order of their keys:
//
//	// The last seven days of a customer, up to one.
//	scan := days.Scan().Under("42").Through(dayKey{"42", day}).Backwards().Limit(7)
//	for key, totals := range scan.All() {
//		…
//	}
type Scan[K comparable, V any] struct {
	table     *Table[K, V]
	span      span
	backwards bool
	limit     int
	// parts of the key that Under has given.
	leading int
	stem    string
}

// Scan begins a scan over the whole table; its methods narrow it.
func (t *Table[K, V]) Scan() *Scan[K, V] {
	// Zero follows the slash.
	return &Scan[K, V]{
		table: t, span: span{start: t.name + "/", end: t.name + "0"}, limit: -1, stem: t.name,
	}
}

// Under narrows a scan to keys whose first parts are these, of the types of the parts.
func (s *Scan[K, V]) Under(parts ...any) *Scan[K, V] {
	text := []byte(s.table.name)
	for number, part := range parts {
		if number+1 >= len(s.table.key.parts) {
			s.table.state.fail(mismatch("table ", s.table.name, ": Under takes fewer parts than a key has"))
			return s
		}
		wanted := &s.table.key.parts[number]
		given := reflect.ValueOf(part)
		if !given.IsValid() || !given.CanConvert(wanted.kind) || given.Kind() != wanted.kind.Kind() {
			s.table.state.fail(mismatch("table ", s.table.name, ": Under takes parts of the types of the key, such as ", wanted.kind.String()))
			return s
		}
		copied := reflect.New(wanted.kind)
		copied.Elem().Set(given.Convert(wanted.kind))
		var err error
		if text, err = wanted.write(append(text, '/'), copied.UnsafePointer()); err != nil {
			s.table.state.fail(within("table "+s.table.name, err))
			return s
		}
	}
	s.stem = string(text)
	s.leading = len(parts)
	s.from(s.stem + "/")
	s.before(s.stem + "0")
	return s
}

// StartingWith narrows a scan to keys whose next part, after those of Under, is a text that begins
// with this one.
func (s *Scan[K, V]) StartingWith(text string) *Scan[K, V] {
	low, err := appendKeyText([]byte(s.stem+"/"), text)
	if err != nil {
		s.table.state.fail(within("table "+s.table.name, err))
	} else if text != "" {
		s.from(string(low))
		s.before(behindAll(string(low)))
	}
	return s
}

// From narrows a scan to keys from this one on.
func (s *Scan[K, V]) From(key K) *Scan[K, V] {
	if text, sound := s.table.text(key); sound {
		s.from(text)
	}
	return s
}

// Before narrows a scan to keys before this one.
func (s *Scan[K, V]) Before(key K) *Scan[K, V] {
	if text, sound := s.table.text(key); sound {
		s.before(text)
	}
	return s
}

// Through narrows a scan to keys up to this one, which belongs to it.
func (s *Scan[K, V]) Through(key K) *Scan[K, V] {
	if text, sound := s.table.text(key); sound {
		// The text after a key is the key with the lowest character appended.
		s.before(text + "\x00")
	}
	return s
}

// After continues a scan behind this key, in its direction.
func (s *Scan[K, V]) After(key K) *Scan[K, V] {
	if text, sound := s.table.text(key); sound {
		s.span.after = text
	}
	return s
}

// Backwards scans from the largest key down.
func (s *Scan[K, V]) Backwards() *Scan[K, V] {
	s.backwards = true
	return s
}

// Limit scans at most this many entries.
func (s *Scan[K, V]) Limit(entries int) *Scan[K, V] {
	s.limit = max(entries, 0)
	return s
}

func (s *Scan[K, V]) from(text string)   { s.span.start = max(s.span.start, text) }
func (s *Scan[K, V]) before(text string) { s.span.end = min(s.span.end, text) }

// All reads the entries page by page.
func (s *Scan[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		t := s.table
		for page := range s.pages() {
			for _, entry := range page {
				var key K
				if err := t.key.read(entry.key[len(t.name):], unsafe.Pointer(&key)); err != nil {
					t.state.fail(within("key "+entry.key, err))
					return
				}
				var value V
				if !t.decode(entry.key, entry.value, &value) || !yield(key, value) {
					return
				}
			}
		}
	}
}

// Delete removes all entries that the scan covers, and says how many. Nothing is decoded, so this
// also removes values that no longer fit their type.
func (s *Scan[K, V]) Delete() int {
	t, count := s.table, 0
	for page := range s.pages() {
		for _, entry := range page {
			var key K
			if err := t.key.read(entry.key[len(t.name):], unsafe.Pointer(&key)); err != nil {
				t.state.fail(within("key "+entry.key, err))
				return count
			}
			t.Delete(key)
			count++
		}
	}
	return count
}

// pages reads the entries of the scan as they are stored.
func (s *Scan[K, V]) pages() iter.Seq[[]entry] {
	return func(yield func([]entry) bool) {
		state, span, left := s.table.state, s.span, s.limit
		if state.refusesReading(s.table.name) {
			return
		}
		more := span.start < span.end
		for more && left != 0 && state.failure == nil {
			// The host scans what it has, so the writes of this batch have to be there first.
			if err := state.flush(); err != nil {
				state.fail(err)
				return
			}
			wanted := pageEntriesMax
			if left > 0 {
				wanted = min(left, wanted)
			}
			var page []entry
			page, more = state.backend.scan(span, s.backwards, wanted)
			if len(page) == 0 {
				return
			}
			span.after = page[len(page)-1].key
			if left > 0 {
				left -= len(page)
			}
			if !yield(page) {
				return
			}
		}
	}
}

// behindAll is the lowest text after all texts with this prefix.
func behindAll(prefix string) string {
	runes := []rune(prefix)
	for last := len(runes) - 1; ; last-- {
		// A prefix begins with the name of its table, so there is always one.
		if next := runes[last] + 1; next <= utf8.MaxRune {
			if next == 0xD800 {
				// Surrogates are no characters.
				next = 0xE000
			}
			return string(append(runes[:last], next))
		}
	}
}
