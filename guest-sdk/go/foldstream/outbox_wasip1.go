// What a Go module imports of a host: its outbox and its timers, which only handlers use.

package foldstream

import (
	"runtime"
	"unsafe"
)

// hostOutbox is the outbox of the host.
type hostOutbox struct{}

//go:wasmimport foldstream:module/outbox@0.1.0 publish-with
func importPublishWith(first unsafe.Pointer, count uint32)

//go:wasmimport foldstream:module/timers@0.1.0 set
func importSet(cause uint32, first unsafe.Pointer, count uint32)

//go:wasmimport foldstream:module/timers@0.1.0 cancel
func importCancel(cause uint32, first unsafe.Pointer, count uint32)

// publish passes on a list of pairs of message and delivery.
func (hostOutbox) publish(cause int, messages []message) error {
	const size, delivery = 112, 56
	out := words(len(messages) * size)
	headers := make([]record, len(messages))
	for place := range messages {
		one := &messages[place]
		headers[place] = words(len(one.headers) * 16)
		lowerMessage(out[place*size:], cause, one, headers[place])
		lowerDelivery(out[place*size+delivery:], one)
	}
	importPublishWith(out.at(), uint32(len(messages)))
	runtime.KeepAlive(messages)
	runtime.KeepAlive(headers)
	return nil
}

func lowerMessage(out record, cause int, one *message, headers record) {
	out.put32(0, uint32(cause))
	out.refer(4, one.Subject)
	out.referSome(12, one.Kind)
	for place, name := range one.headers {
		headers.refer(place*16, name)
		headers.refer(place*16+8, one.Headers[name])
	}
	out.referList(24, headers, len(one.headers))
	if !one.isText {
		out.put8(32, 1)
	}
	out.refer(36, one.data)
	out.referSome(44, one.Key)
}

func lowerDelivery(out record, one *message) {
	out.putSome(0, uint64(one.NotBefore), 8)
	out.putSome(16, uint64(one.seconds), 4)
	if last := one.ExpectedLast; last != nil {
		out.put8(24, 1)
		out.referSome(32, last.Subject)
		out.put64(48, last.Sequence)
	}
}

// changeTimers passes on changes in order: a timer may be set again after it was cancelled.
func (hostOutbox) changeTimers(cause int, changes []timerChange) error {
	for _, change := range changes {
		out := words(32)
		out.refer(0, change.Name)
		if change.cancels {
			importCancel(uint32(cause), out.at(), 1)
		} else {
			out.put64(8, uint64(change.At))
			out.referSome(16, change.Key)
			importSet(uint32(cause), out.at(), 1)
		}
	}
	runtime.KeepAlive(changes)
	return nil
}
