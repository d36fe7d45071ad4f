package handler

import (
	"unsafe"

	"foldstream"
)

var guest *foldstream.Guest

func export(define func(*foldstream.Handler)) { guest = foldstream.HandlerGuest(define) }

//go:wasmexport handle
func handle(first unsafe.Pointer, count uint32) unsafe.Pointer { return guest.React(first, count) }

//go:wasmexport on-timer
func onTimer(first unsafe.Pointer, count uint32) unsafe.Pointer { return guest.Fire(first, count) }
