// What a Go module imports of a host: its state and its log.

package foldstream

import (
	"runtime"
	"unsafe"
)

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

// putsMax is how many entries a host takes in one call.
const putsMax = 65_536

func (hostState) putMany(writes []write) {
	const size = 24
	for len(writes) > 0 {
		part := writes[:min(len(writes), putsMax)]
		writes = writes[len(part):]
		out := words(len(part) * size)
		for place, one := range part {
			at := place * size
			out.refer(at, one.key)
			if !one.deletes {
				out.put8(at+8, 1)
				out.refer(at+16, one.value)
			}
		}
		importPutMany(out.at(), uint32(len(part)))
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
	first, count := unsafe.Pointer(uintptr(load32(area, 0))), int(load32(area, 4))
	more := uint8(load32(area, 8)) != 0
	entries := make([]entry, count)
	for place := range entries {
		at := unsafe.Add(first, place*entrySize)
		entries[place] = entry{textAt(at, 0), textAt(at, 12)}
	}
	return entries, more
}
