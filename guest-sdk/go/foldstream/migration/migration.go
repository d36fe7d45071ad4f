// Package migration converts the state of an older version of a module, so that it need not be rebuilt
// from the beginning of the stream.
package migration

import "foldstream"

// Define makes a module convert the state of an older version: raise the state version in its
// manifest, and call this where it makes its tables.
//
//	// Version 1 stored a number for each page.
//	migration.Define(p, func(fromVersion uint32, old *foldstream.OldEntry) error {
//		if fromVersion != 1 {
//			return foldstream.UnknownVersion(fromVersion)
//		}
//		if page, count, found := foldstream.FromTable[string, uint64](old, "page"); found {
//			visits.Set(page, visit{Count: count})
//		}
//		return nil
//	})
//
// The host calls it once for every old entry, in the order of the keys. Only what it sets in tables, or
// keeps with [foldstream.OldEntry.Keep], is stored; if a key is set more than once, the last value
// wins. The result must equal a fold of the stream with this version. Tables can't be read here, and one
// entry knows nothing of the others. An error ends the migration, and the old state stays unchanged.
// [foldstream.NewMigrated] helps to test it.
func Define(m foldstream.Module, convert func(fromVersion uint32, old *foldstream.OldEntry) error) {
	foldstream.Migrates(m, convert)
}
