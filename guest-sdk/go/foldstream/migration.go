package foldstream

import (
	"reflect"
	"strings"
	"unicode/utf8"
	"unsafe"
)

// OldEntry is an entry of an older version of a module, for a migration; see package migration.
type OldEntry struct {
	// Key is its whole key, such as customer/42.
	Key string
	// Value as stored: text or any octets.
	Value string

	isBytes bool
	state   *state
}

// Migrates lets a module convert the state of an older version. Package migration calls it; nothing
// else does.
func Migrates(m Module, convert func(fromVersion uint32, old *OldEntry) error) {
	d := m.definition()
	if d.migrate != nil {
		panic("foldstream: two functions migrate")
	}
	d.migrate = convert
}

// IsIn says whether the entry belongs to a table, or is the single value of that name.
func (o *OldEntry) IsIn(name string) bool {
	return o.Key == name || strings.HasPrefix(o.Key, name+"/")
}

// Keep stores the entry unchanged.
func (o *OldEntry) Keep() {
	o.state.migrated = append(o.state.migrated, write{key: o.Key, value: o.Value, isBytes: o.isBytes})
}

// FromTable is the key and the value of an entry in the format of a table of that name; found is false
// if it belongs to another. A key or value in another format ends the migration.
func FromTable[K comparable, V any](old *OldEntry, name string) (key K, value V, found bool) {
	if !old.IsIn(name) {
		return key, value, false
	}
	kind, err := keyTypeOf(reflect.TypeFor[K]())
	if err == nil {
		err = kind.read(old.Key[len(name):], unsafe.Pointer(&key))
	}
	if err != nil {
		old.state.fail(mismatch("the key ", old.Key, " does not match its old type: ", err.Error()))
		return key, value, false
	}
	value, found = FromValue[V](old, old.Key)
	return key, value, found
}

// FromValue is the value of an entry that is the single value of that name; found is false if it is
// another. A value in another format ends the migration.
func FromValue[V any](old *OldEntry, name string) (value V, found bool) {
	if old.Key != name {
		return value, false
	}
	decoder, err := codecOf(reflect.TypeFor[V]())
	if err == nil && !utf8.ValidString(old.Value) {
		err = mismatch("it is not UTF-8")
	}
	if err == nil {
		err = decoder.decodeText(old.Value, unsafe.Pointer(&value))
	}
	if err != nil {
		old.state.fail(mismatch("the value of ", old.Key, " does not match its old type: ", err.Error()))
	}
	return value, err == nil
}

// migrateAll converts a page of old entries. The instance must not be used for anything else.
func (m *module) migrateAll(fromVersion uint32, page []OldEntry) (entries []write, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			panicked := recovered(reason)
			Error(panicked.trace)
			err = panicked
		}
	}()
	if m.migrate == nil {
		return nil, mismatch("the module has no migration: call migration.Define where it makes its tables")
	}
	m.state.migrating = true
	running := goroutines()
	for place := range page {
		old := &page[place]
		old.state = m.state
		err := m.migrate(fromVersion, old)
		if m.state.failure != nil {
			err = m.state.failure
		}
		if err == nil {
			err = refuseRunning(running)
		}
		if err != nil {
			return nil, err
		}
	}
	return m.state.migrated, nil
}
