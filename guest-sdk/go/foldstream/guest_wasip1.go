// What a Go module exports to a host: the functions of the world `projection`, and `inbox`, in the
// canonical form of the component model. Pointers and lengths have 32 bits; the comments name the
// records of wit/foldstream.wit.

package foldstream

import (
	"encoding/binary"
	"errors"
	"runtime"
	"time"
	"unsafe"
)

// The definition of the module, and the instance that applies events.
var (
	define  func(*Projection)
	running *Projection
)

// Export makes a projection the module. Call it once, from a function init of package main.
func Export(projection func(p *Projection)) {
	if define != nil {
		panic("foldstream: a module has one projection")
	}
	define = projection
}

func opened() *Projection {
	if define == nil {
		panic("foldstream: the module has no projection: add func init() { foldstream.Export(…) }")
	}
	return open(define, hostState{})
}

// What the host writes into our memory, and what it reads from there until it calls again. Only
// numbers refer to it, so it is kept here.
var (
	chunk  []byte
	chunks [][]byte
	// result is what an export returns a pointer to.
	result []byte
	// returned is where the host puts what an import returns.
	returned = make([]uint64, 4)
)

const (
	// Parts of a batch share chunks: one of each would cost more than the parts.
	chunkBytes = 64 << 10
	// putsMax is how many entries a host takes in one call.
	putsMax = 65_536
)

//go:wasmexport cabi_realloc
func cabiRealloc(old unsafe.Pointer, oldSize, align, size uint32) unsafe.Pointer {
	if old != nil {
		// The host grows only texts in encodings that we do not have.
		panic("foldstream: the host moved what it had allocated")
	}
	if size == 0 {
		return unsafe.Pointer(uintptr(align))
	}
	// The end of a chunk is aligned, so this is how many bytes lie before the next aligned place.
	place := len(chunk) & int(align-1)
	if size > chunkBytes/4 {
		large := make([]byte, size)
		chunks = append(chunks, large)
		return unsafe.Pointer(unsafe.SliceData(large))
	}
	if len(chunk)-place < int(size) {
		chunk = make([]byte, chunkBytes)
		chunks = append(chunks, chunk)
		place = 0
	}
	at := unsafe.Pointer(&chunk[place])
	chunk = chunk[place+int(size):]
	return at
}

// release lets go of what the host has written. What strings refer to lives on.
func release() {
	chunk = nil
	clear(chunks)
	chunks = chunks[:0]
}

func load32(at unsafe.Pointer, offset uintptr) uint32 { return *(*uint32)(unsafe.Add(at, offset)) }
func load64(at unsafe.Pointer, offset uintptr) uint64 { return *(*uint64)(unsafe.Add(at, offset)) }

// textAt is a text or list of bytes, by its pointer and length. It is not copied.
func textAt(at unsafe.Pointer, offset uintptr) string {
	return text(load32(at, offset), load32(at, offset+4))
}

func text(at, length uint32) string {
	if length == 0 {
		return ""
	}
	return unsafe.String((*byte)(unsafe.Pointer(uintptr(at))), length)
}

func address(of string) uint32 { return uint32(uintptr(unsafe.Pointer(unsafe.StringData(of)))) }

// A record is what an export or an argument consists of, as the host reads it.
type record []byte

func (r record) put8(offset int, value uint8)   { r[offset] = value }
func (r record) put32(offset int, value uint32) { binary.LittleEndian.PutUint32(r[offset:], value) }
func (r record) put64(offset int, value uint64) { binary.LittleEndian.PutUint64(r[offset:], value) }

func (r record) putText(offset int, text string) {
	// Kept until the host has read it.
	chunks = append(chunks, unsafe.Slice(unsafe.StringData(text), len(text)))
	r.put32(offset, address(text))
	r.put32(offset+4, uint32(len(text)))
}

// putSome puts a number that may be absent, as an option behind which it is aligned.
func (r record) putSome(offset int, value uint64, size int) {
	if value == 0 {
		return
	}
	r.put8(offset, 1)
	if size == 8 {
		r.put64(offset+8, value)
	} else {
		r.put32(offset+4, uint32(min(value, 1<<32-1)))
	}
}

// A list is a record for each element.
func (r record) putList(offset, count, size int) record {
	elements := words(count * size)
	r.put32(offset, address(unsafe.String(unsafe.SliceData(elements), len(elements))))
	r.put32(offset+4, uint32(count))
	chunks = append(chunks, elements)
	return elements
}

// words is memory that is aligned for all records.
func words(size int) record {
	if size == 0 {
		return nil
	}
	memory := make([]uint64, (size+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(memory))), size)
}

// export begins the result of an export.
func export(size int) record {
	result = words(size)
	return result
}

func exported() unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(result)) }

//go:wasmexport manifest
func exportManifest() unsafe.Pointer {
	release()
	p := opened()
	asked := &p.Manifest
	out := export(128)
	out.putText(4, asked.Name)
	out.putText(12, asked.Description)
	subjects := out.putList(20, len(asked.Subjects), 8)
	for place, subject := range asked.Subjects {
		subjects.putText(place*8, subject)
	}
	if asked.Headers {
		out.put8(28, 1)
	}
	out.put8(32, asked.Key.kind)
	if asked.Key.kind == 2 {
		out.put32(36, asked.Key.number)
	} else {
		out.putText(36, asked.Key.text)
	}
	out.put32(44, max(asked.StateVersion, 1))
	out.putSome(48, uint64(asked.Attempts), 4)
	out.putSome(56, milliseconds(asked.InitialBackoff), 4)
	out.putSome(64, milliseconds(asked.MaxBackoff), 4)
	out.putSome(72, asked.MemoryLimit, 8)
	out.putSome(88, milliseconds(asked.Deadline), 4)
	out.putSome(96, uint64(asked.BatchLimit), 4)
	out.putSome(104, asked.StateLimit, 8)
	queries := out.putList(120, len(p.queries), 16)
	for place, query := range p.queries {
		queries.putText(place*16, query.name)
		queries.putText(place*16+8, query.description)
	}
	return exported()
}

func milliseconds(span time.Duration) uint64 { return uint64(max(span.Milliseconds(), 0)) }

//go:wasmexport inbox
func exportInbox() unsafe.Pointer {
	release()
	out := export(40)
	if asked := opened().Manifest.Inbox; asked != nil {
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

//go:wasmexport apply
func exportApply(first unsafe.Pointer, count uint32) unsafe.Pointer {
	if running == nil {
		running = opened()
	}
	failed := running.applyBatch(lift(first, int(count)))
	release()
	out := export(20)
	if failed != nil {
		// What the instance holds no longer matches the host's state.
		running = nil
		out.put8(0, 1)
		out.put32(4, uint32(failed.index))
		if !isRetry(failed.err) {
			out.put8(8, 1)
		}
		out.putText(12, failed.err.Error())
	}
	return exported()
}

// Types of events by themselves: there are few, and they come with each event.
var kinds = map[string]string{}

func lift(first unsafe.Pointer, count int) []Event {
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

//go:wasmexport query
func exportQuery(name unsafe.Pointer, nameLength, kind uint32, arguments unsafe.Pointer, argumentsLength uint32) unsafe.Pointer {
	// An instance of its own: the state of a query is a snapshot of its own.
	p := opened()
	asked := text(uint32(uintptr(name)), nameLength)
	answer, err := p.answer(asked, text(uint32(uintptr(arguments)), argumentsLength))
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
		out.putText(8, err.Error())
	case errors.Is(err, ErrNotFound):
		out.put8(4, 2)
	default:
		out.put8(4, 3)
		out.putText(8, err.Error())
	}
	return exported()
}

// hostState is the state of the host.
type hostState struct{}

//go:wasmimport foldstream:module/state@0.1.0 get
func importGet(key string, returned unsafe.Pointer)

//go:wasmimport foldstream:module/state@0.1.0 put-many
func importPutMany(first unsafe.Pointer, count uint32)

//go:wasmimport foldstream:module/state@0.1.0 scan
func importScan(
	selection, hasStart, start, startLength, hasEnd, end, endLength, hasAfter, after, afterLength,
	direction, limit uint32, returned unsafe.Pointer,
)

//go:wasmimport foldstream:module/log@0.1.0 write
func importWrite(level uint32, message string)

func writeLog(level level, message string) { importWrite(uint32(level), message) }

func returnArea() unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(returned)) }

func (hostState) get(key string) (string, bool) {
	area := returnArea()
	importGet(key, area)
	runtime.KeepAlive(key)
	if uint8(load32(area, 0)) == 0 {
		return "", false
	}
	return textAt(area, 8), true
}

func (hostState) putMany(writes []write) {
	const size = 24
	for len(writes) > 0 {
		part := writes[:min(len(writes), putsMax)]
		writes = writes[len(part):]
		out := words(len(part) * size)
		for place, one := range part {
			at := place * size
			out.put32(at, address(one.key))
			out.put32(at+4, uint32(len(one.key)))
			if !one.deletes {
				out.put8(at+8, 1)
				out.put32(at+16, address(one.value))
				out.put32(at+20, uint32(len(one.value)))
			}
		}
		importPutMany(unsafe.Pointer(unsafe.SliceData(out)), uint32(len(part)))
		runtime.KeepAlive(part)
	}
}

func (hostState) scan(span span, backwards bool, limit int) ([]entry, bool) {
	hasAfter, direction := uint32(0), uint32(0)
	if span.after != "" {
		hasAfter = 1
	}
	if backwards {
		direction = 1
	}
	area := returnArea()
	importScan(
		1, 1, address(span.start), uint32(len(span.start)), 1, address(span.end), uint32(len(span.end)),
		hasAfter, address(span.after), uint32(len(span.after)), direction, uint32(limit), area,
	)
	runtime.KeepAlive(span)
	const size = 20
	first, count := unsafe.Pointer(uintptr(load32(area, 0))), int(load32(area, 4))
	more := uint8(load32(area, 8)) != 0
	entries := make([]entry, count)
	for place := range entries {
		at := unsafe.Add(first, place*size)
		entries[place] = entry{textAt(at, 0), textAt(at, 12)}
	}
	return entries, more
}
