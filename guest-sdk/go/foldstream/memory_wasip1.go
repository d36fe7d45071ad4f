// The memory that a host and a Go module share, and records in the canonical form of the component
// model. Pointers and lengths have 32 bits.

package foldstream

import (
	"encoding/binary"
	"unsafe"
)

// What the host writes into our memory, and what it reads from there until it calls again. Only
// numbers refer to it, so it is kept here.
var (
	chunk  []byte
	chunks [][]byte
	// result is what an export returns a pointer to.
	result record
	// returned is where the host puts what an import returns.
	returned = make([]uint64, 4)
)

// Parts of a batch share chunks: one of each would cost more than the parts.
const chunkBytes = 64 << 10

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

// putText puts a text, which is kept until the host has read it.
func (r record) putText(offset int, text string) {
	chunks = append(chunks, unsafe.Slice(unsafe.StringData(text), len(text)))
	r.refer(offset, text)
}

// refer puts a text, which its caller keeps.
func (r record) refer(offset int, text string) {
	r.put32(offset, address(text))
	r.put32(offset+4, uint32(len(text)))
}

// referSome puts a text that is absent if it is empty.
func (r record) referSome(offset int, text string) {
	if text != "" {
		r.put8(offset, 1)
		r.refer(offset+4, text)
	}
}

// putSome puts a number that is absent if it is 0, as an option behind which it is aligned.
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

// putList puts a list, which is kept until the host has read it: a record for each element.
func (r record) putList(offset, count, size int) record {
	elements := words(count * size)
	chunks = append(chunks, elements)
	r.referList(offset, elements, count)
	return elements
}

// referList puts a list, which its caller keeps.
func (r record) referList(offset int, elements record, count int) {
	r.put32(offset, uint32(uintptr(elements.at())))
	r.put32(offset+4, uint32(count))
}

// putTexts puts a list of texts.
func (r record) putTexts(offset int, texts []string) {
	list := r.putList(offset, len(texts), 8)
	for place, text := range texts {
		list.putText(place*8, text)
	}
}

// at is where the host finds the record.
func (r record) at() unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(r)) }

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

func exported() unsafe.Pointer { return result.at() }
