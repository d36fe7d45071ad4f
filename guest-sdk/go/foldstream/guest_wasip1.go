// What a Go module exports to a host, in the canonical form of the component model. The comments name
// the records of wit/. The packages projection, handler and migration export what only some modules have.

package foldstream

import (
	"errors"
	"time"
	"unsafe"
)

// Guest is a module as a host calls it. Packages projection and handler make one; nothing else does.
type Guest struct {
	// define makes an instance.
	define func() *module
	// manifest writes the result of the export manifest.
	manifest func(*module)
	// running is the instance that handles events.
	running *module
}

// exports is the module.
var exports *Guest

// ProjectionGuest makes a projection the module.
func ProjectionGuest(define func(*Projection)) *Guest {
	opens := func() *module { return openProjection(define, hostState{}) }
	return only(&Guest{define: opens, manifest: lowerProjection})
}

// HandlerGuest makes a handler the module.
func HandlerGuest(define func(*Handler)) *Guest {
	opens := func() *module { return openHandler(define, hostState{}, hostOutbox{}) }
	return only(&Guest{define: opens, manifest: lowerHandler})
}

func only(guest *Guest) *Guest {
	defer tellMistake()
	if exports != nil {
		panic("foldstream: a module has one projection or handler")
	}
	exports = guest
	return guest
}

// open makes an instance.
func (g *Guest) open() *module {
	defer tellMistake()
	return g.define()
}

// tellMistake shows a mistake in a definition, which ends the call: the host repeats what was logged
// last. It is deferred.
func tellMistake() {
	if reason := recover(); reason != nil {
		Error(recovered(reason).message)
		panic(reason)
	}
}

func current() *Guest {
	defer tellMistake()
	if exports == nil {
		panic("foldstream: the module exports nothing: add func init() { projection.Export(…) } or handler.Export(…)")
	}
	return exports
}

//go:wasmexport manifest
func exportManifest() unsafe.Pointer {
	release()
	guest := current()
	guest.manifest(guest.open())
	return exported()
}

// lowerProjection writes the record manifest.
func lowerProjection(m *module) {
	// Its kind comes first, which is 0.
	lowerManifest(m, export(128), 4)
}

// lowerHandler writes the record handler-manifest.
func lowerHandler(m *module) {
	out := export(144)
	lowerManifest(m, out, 0)
	out.putTexts(128, m.manifest.published())
	if m.manifest.Timers {
		out.put8(136, 1)
	}
}

// lowerManifest writes what both records have; those fields that are not aligned begin at an offset.
func lowerManifest(m *module, out record, first int) {
	asked := m.manifest
	out.putText(first, asked.Name)
	out.putText(first+8, asked.Description)
	out.putTexts(first+16, asked.Subjects)
	if asked.wantsHeaders() {
		out.put8(first+24, 1)
	}
	out.put8(first+28, asked.Key.kind)
	if asked.Key.kind == 2 {
		out.put32(first+32, asked.Key.number)
	} else {
		out.putText(first+32, asked.Key.text)
	}
	out.put32(first+40, max(asked.StateVersion, 1))
	out.putSome(first+44, uint64(asked.Attempts), 4)
	out.putSome(first+52, milliseconds(asked.InitialBackoff), 4)
	out.putSome(first+60, milliseconds(asked.MaxBackoff), 4)
	out.putSome(72, asked.MemoryLimit, 8)
	out.putSome(88, milliseconds(asked.Deadline), 4)
	out.putSome(96, uint64(asked.BatchLimit), 4)
	out.putSome(104, asked.StateLimit, 8)
	queries := out.putList(120, len(m.queries), 16)
	for place, query := range m.queries {
		queries.putText(place*16, query.name)
		queries.putText(place*16+8, query.description)
	}
}

func milliseconds(span time.Duration) uint64 { return uint64(max(span.Milliseconds(), 0)) }

//go:wasmexport inbox
func exportInbox() unsafe.Pointer {
	release()
	out := export(40)
	if asked := current().open().manifest.Inbox; asked != nil {
		ids := asked.IDsMax
		if ids == 0 {
			ids = 1_000_000
		}
		out.put8(0, 1)
		out.put8(8, asked.ID.kind)
		out.putText(12, asked.ID.text)
		out.put64(24, milliseconds(asked.Window))
		out.put32(32, ids)
	}
	return exported()
}

// React is the export apply of a projection, and handle of a handler.
func (g *Guest) React(first unsafe.Pointer, count uint32) unsafe.Pointer {
	return g.call(func(m *module) *failed { return m.applyBatch(liftEvents(first, int(count))) })
}

// Fire is the export on-timer of a handler.
func (g *Guest) Fire(first unsafe.Pointer, count uint32) unsafe.Pointer {
	return g.call(func(m *module) *failed { return m.fire(liftFired(first, int(count))) })
}

// call calls the running instance, and writes the result with a failure.
func (g *Guest) call(method func(*module) *failed) unsafe.Pointer {
	if g.running == nil {
		g.running = g.open()
	}
	failed := method(g.running)
	release()
	out := export(20)
	if failed != nil {
		// What the instance holds no longer matches the host's state.
		g.running = nil
		out.put8(0, 1)
		out.put32(4, uint32(failed.index))
		if !isRetry(failed.err) {
			out.put8(8, 1)
		}
		out.putText(12, inUTF8(reasonOf(failed.err)))
	}
	return exported()
}

// MigrateGuest is the export migrate. Package migration exports it; nothing else does.
func MigrateGuest(fromVersion uint32, first unsafe.Pointer, count uint32) unsafe.Pointer {
	// An instance of its own: what it sets is no state.
	entries, err := current().open().migrateAll(fromVersion, liftEntries(first, int(count)))
	release()
	out := export(12)
	if err != nil {
		out.put8(0, 1)
		out.putText(4, inUTF8(reasonOf(err)))
		return exported()
	}
	list := out.putList(4, len(entries), entrySize)
	for place, entry := range entries {
		at := place * entrySize
		list.putText(at, entry.key)
		if entry.isBytes {
			list.put8(at+8, 1)
		}
		list.putText(at+12, entry.value)
	}
	return exported()
}

// entrySize is the size of the record entry.
const entrySize = 20

func liftEntries(first unsafe.Pointer, count int) []OldEntry {
	entries := make([]OldEntry, count)
	for place := range entries {
		at := unsafe.Add(first, place*entrySize)
		isBytes := uint8(load32(at, 8)) != 0
		entries[place] = OldEntry{Key: textAt(at, 0), Value: textAt(at, 12), isBytes: isBytes}
	}
	return entries
}

// Types of events by themselves: there are few, and they come with each event.
var kinds = map[string]string{}

func liftEvents(first unsafe.Pointer, count int) []Event {
	const size = 56
	events := make([]Event, count)
	for place := range events {
		at := unsafe.Add(first, place*size)
		kind := textAt(at, 24)
		known, found := kinds[kind]
		if !found {
			if len(kinds) >= 1_000 {
				clear(kinds)
			}
			known = string([]byte(kind))
			kinds[known] = known
		}
		events[place] = Event{
			Sequence: load64(at, 0),
			Time:     Timestamp(load64(at, 8)),
			// A copy, as tokens of it are kept.
			Subject: string([]byte(textAt(at, 16))),
			Kind:    known,
			Data:    textAt(at, 44),
		}
		if headers := int(load32(at, 36)); headers > 0 {
			events[place].Headers = liftHeaders(unsafe.Pointer(uintptr(load32(at, 32))), headers)
		}
	}
	return events
}

func liftHeaders(first unsafe.Pointer, count int) map[string]string {
	headers := make(map[string]string, count)
	for place := range count {
		at := unsafe.Add(first, place*16)
		headers[string([]byte(textAt(at, 0)))] = string([]byte(textAt(at, 8)))
	}
	return headers
}

func liftFired(first unsafe.Pointer, count int) []Fired {
	const size = 48
	timers := make([]Fired, count)
	for place := range timers {
		at := unsafe.Add(first, place*size)
		timers[place] = Fired{
			// A copy, as parts of it are kept.
			Name:     string([]byte(textAt(at, 0))),
			At:       Timestamp(load64(at, 8)),
			Time:     Timestamp(load64(at, 16)),
			Sequence: load64(at, 24),
		}
		if uint8(load32(at, 32)) != 0 {
			timers[place].Key = string([]byte(textAt(at, 36)))
		}
	}
	return timers
}

//go:wasmexport query
func exportQuery(name unsafe.Pointer, nameLength, kind uint32, arguments unsafe.Pointer, argumentsLength uint32) unsafe.Pointer {
	// An instance of its own: the state of a query is a snapshot of its own.
	m := current().open()
	asked := text(uint32(uintptr(name)), nameLength)
	answer, err := m.answer(asked, text(uint32(uintptr(arguments)), argumentsLength))
	release()
	out := export(16)
	if err == nil {
		out.putText(8, answer)
		return exported()
	}
	out.put8(0, 1)
	var invalid argumentsError
	switch {
	case err == errUnknownQuery:
	case errors.As(err, &invalid):
		out.put8(4, 1)
		out.putText(8, inUTF8(reasonOf(err)))
	case errors.Is(err, ErrNotFound):
		out.put8(4, 2)
	default:
		out.put8(4, 3)
		out.putText(8, inUTF8(reasonOf(err)))
	}
	return exported()
}
