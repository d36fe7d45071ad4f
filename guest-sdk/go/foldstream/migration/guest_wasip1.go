package migration

import (
	"unsafe"

	"foldstream"
)

//go:wasmexport migrate
func migrate(fromVersion uint32, first unsafe.Pointer, count uint32) unsafe.Pointer {
	return foldstream.MigrateGuest(fromVersion, first, count)
}
