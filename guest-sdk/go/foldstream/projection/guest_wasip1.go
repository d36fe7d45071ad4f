package projection

import (
	"unsafe"

	"foldstream"
)

var guest *foldstream.Guest

func export(define func(*foldstream.Projection)) { guest = foldstream.ProjectionGuest(define) }

//go:wasmexport apply
func apply(first unsafe.Pointer, count uint32) unsafe.Pointer { return guest.React(first, count) }
