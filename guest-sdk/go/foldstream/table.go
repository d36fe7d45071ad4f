package foldstream

import (
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"
)

const (
	// entriesMax is how many entries all tables of an instance together keep decoded.
	entriesMax = 32_768
	// textMax is the size of these entries as text, in bytes. Decoded they take several times as much.
	textMax = 4 << 20
	// noEvent is the index of the event between two events, and of entries that are written.
	noEvent = -1
	// notHeld is the index of the event that may hold a value, if none ever did.
	notHeld = -2
)

// backend is the state that tables read and write: a host's, or one in memory for tests.
type backend interface {
	get(key string) (value string, found bool)
	putMany(entries []write)
	// scan returns a page of the keys from start to before end, and whether there is more.
	scan(span span, backwards bool, limit int) (entries []entry, more bool)
}

// write is a key with its new value.
type write struct {
	key, value string
	// deletes says that the key is removed.
	deletes bool
	// isBytes says that the value is no text; only a migration keeps such a value.
	isBytes bool
}

// entry is a key with its value.
type entry struct{ key, value string }

// state is what the tables of one instance share.
type state struct {
	backend backend
	tables  []interface {
		collect(writes []write) ([]write, error)
		clear()
	}
	names []string
	// event is the index in its batch of the event that is being applied.
	event int
	// writable is false in queries.
	writable bool
	// migrating says that what is set goes to migrated, and that there is nothing to read.
	migrating bool
	migrated  []write
	// failure is the first error of a method that returns none.
	failure error
	entries int
	text    int
}

func (s *state) fail(err error) {
	if s.failure == nil {
		s.failure = err
	}
}

// flush writes what has changed in any table.
func (s *state) flush() error {
	var writes []write
	for _, table := range s.tables {
		var err error
		if writes, err = table.collect(writes); err != nil {
			return err
		}
	}
	if len(writes) > 0 {
		s.backend.putMany(writes)
	}
	return nil
}

// refusesReading refuses what needs entries of a table while a migration runs.
func (s *state) refusesReading(table string) bool {
	if s.migrating {
		s.fail(mismatch("a migration cannot read or remove entries of table ", table, "; it only sets them"))
	}
	return s.migrating
}

// makeRoom empties the tables if they have grown too large. Never within an event, which may hold
// a value that it is about to change.
func (s *state) makeRoom() error {
	if s.entries <= entriesMax && s.text <= textMax {
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	for _, table := range s.tables {
		table.clear()
	}
	s.entries, s.text = 0, 0
	return nil
}

// unwritableError says that a value has no form in JSON. It blames the event that touched it last.
type unwritableError struct {
	index int
	error
}

// slot is a decoded entry of a table.
type slot[V any] struct {
	// text is its key, as in the state.
	text  string
	value V
	found bool
	// size of its value as text, in bytes.
	size int
	// changed is the index in the batch of the event that changed it last.
	changed int
	// held is the index of the last event that may hold the value, to change it in place.
	held int
}

// Table is a typed collection: keys of type K in order, values of type V as JSON.
//
// The state stores an entry under the name and the key: customer/42, or day/42/2026-11-23 if the key
// is a struct. A key is a string, a number with a width such as uint64, a bool, [Date], [Timestamp],
// or a struct of 2 to 4 of them. A value is of almost any type, and looks as with encoding/json;
// struct{} is null.
//
// A table keeps what it reads or writes decoded, and writes changes once at the end of a batch.
type Table[K comparable, V any] struct {
	name    string
	state   *state
	key     keyType
	value   *codec
	slots   map[K]*slot[V]
	changed []*slot[V]
	buffer  []byte
}

// NewTable makes a table for a projection or handler, while it is being defined. Names have lower-case letters,
// digits and hyphens.
func NewTable[K comparable, V any](m Module, name string) *Table[K, V] {
	key, err := keyTypeOf(reflect.TypeFor[K]())
	if err != nil {
		panic("foldstream: table " + name + ": " + err.Error())
	}
	checkTableName(name)
	return newTable[K, V](m, name, key)
}

// NewPart makes a table of which several parts share the name, such as one for each saga: its keys
// begin with name/part/. A key of struct{} is one entry, name/part. Package saga makes them; nothing
// else does.
func NewPart[K comparable, V any](m Module, name, part string) *Table[K, V] {
	var key keyType
	if kind := reflect.TypeFor[K](); kind != reflect.TypeFor[struct{}]() {
		var err error
		if key, err = keyTypeOf(kind); err != nil {
			panic("foldstream: table " + name + ": " + err.Error())
		}
	}
	checkTableName(name)
	checkTableName(part)
	return newTable[K, V](m, name+"/"+part, key)
}

func checkTableName(name string) {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
	if name == "" || len(name) > 64 || strings.Trim(name, letters) != "" {
		panic("foldstream: table name " + strconv.Quote(name) + ": use 1 to 64 lower-case letters, digits and hyphens")
	}
}

func newTable[K comparable, V any](m Module, name string, key keyType) *Table[K, V] {
	state := m.definition().state
	for _, other := range state.names {
		// A part of a table is not in another table.
		if strings.HasPrefix(name+"/", other+"/") || strings.HasPrefix(other+"/", name+"/") {
			panic("foldstream: two tables are named " + name)
		}
	}
	value, err := codecOf(reflect.TypeFor[V]())
	if err != nil {
		panic("foldstream: table " + name + ": " + err.Error())
	}
	table := &Table[K, V]{name: name, state: state, key: key, value: value, slots: map[K]*slot[V]{}}
	state.tables = append(state.tables, table)
	state.names = append(state.names, name)
	return table
}

// Get returns the value of a key, and whether there is one. It is a copy: changing it changes
// nothing.
func (t *Table[K, V]) Get(key K) (value V, found bool) {
	slot := t.load(key)
	if slot == nil || !slot.found {
		return value, false
	}
	return t.copied(slot.value), true
}

// Has says whether there is an entry of a key.
func (t *Table[K, V]) Has(key K) bool {
	slot := t.load(key)
	return slot != nil && slot.found
}

// Set sets the value of a key.
func (t *Table[K, V]) Set(key K, value V) {
	if t.state.migrating {
		t.migrate(key, value)
		return
	}
	if slot := t.mark(t.slot(key)); slot != nil {
		slot.value, slot.found = t.copied(value), true
	}
}

// Edit returns the value of a key, to be changed in place until the event ends. If there is none, it
// begins as a zero value.
func (t *Table[K, V]) Edit(key K) *V {
	slot := t.mark(t.load(key))
	if slot == nil {
		// What is changed is lost, as the event is rejected.
		return new(V)
	}
	slot.found = true
	slot.held = t.state.event
	return &slot.value
}

// Delete removes the entry of a key; it does nothing if there is none.
func (t *Table[K, V]) Delete(key K) {
	if slot := t.mark(t.slot(key)); slot != nil {
		var none V
		slot.value, slot.found = none, false
	}
}

// KeyText is a key as the state has it, such as customer/42.
func (t *Table[K, V]) KeyText(key K) string {
	text, _ := t.text(key)
	return text
}

// migrate sets an entry in place of an old one. The last value of a key wins, so it is written at once.
func (t *Table[K, V]) migrate(key K, value V) {
	text, sound := t.text(key)
	if !sound {
		return
	}
	stored, err := t.value.encode(nil, unsafe.Pointer(&value))
	if err != nil {
		t.state.fail(mismatch("the value of ", text, " cannot be stored: ", err.Error()))
		return
	}
	t.state.migrated = append(t.state.migrated, write{key: text, value: string(stored)})
}

// copied is a value that shares nothing changeable with the first.
func (t *Table[K, V]) copied(value V) V {
	if !t.value.shares {
		return value
	}
	var copied V
	text, err := t.value.encode(nil, unsafe.Pointer(&value))
	if err == nil {
		err = t.value.decodeText(string(text), unsafe.Pointer(&copied))
	}
	if err != nil {
		t.state.fail(mismatch("a value of table ", t.name, " cannot be stored: ", err.Error()))
	}
	return copied
}

// text is a key as in the state.
func (t *Table[K, V]) text(key K) (string, bool) {
	text, err := t.key.write(append(t.buffer[:0], t.name...), unsafe.Pointer(&key))
	t.buffer = text
	if err == nil && len(text) > keyBytesMax {
		// Refused here with a message that names the limit; the host would end the call.
		err = mismatch("a key has ", strconv.Itoa(len(text)), " bytes; at most ", strconv.Itoa(keyBytesMax), " are allowed")
	}
	if err != nil {
		t.state.fail(within("table "+t.name, err))
	}
	return string(text), err == nil
}

// slot is the slot of a key; what is set or removed need not be read first.
func (t *Table[K, V]) slot(key K) *slot[V] {
	if slot := t.slots[key]; slot != nil {
		return slot
	}
	if t.state.refusesReading(t.name) {
		return nil
	}
	text, sound := t.text(key)
	if !sound {
		return nil
	}
	return t.add(text)
}

// add makes a slot for a key. The map's key is read from its text, as the caller's may be a small
// part of a large batch, which would stay in memory.
func (t *Table[K, V]) add(text string) *slot[V] {
	made := &slot[V]{text: text, changed: noEvent, held: notHeld}
	var key K
	if err := t.key.read(text[len(t.name):], unsafe.Pointer(&key)); err != nil {
		t.state.fail(within("key "+text, err))
		return nil
	}
	t.slots[key] = made
	t.state.entries++
	t.state.text += len(text)
	return made
}

// load is the slot of a key with its value.
func (t *Table[K, V]) load(key K) *slot[V] {
	if slot := t.slots[key]; slot != nil {
		return slot
	}
	if t.state.refusesReading(t.name) {
		return nil
	}
	text, sound := t.text(key)
	if !sound {
		return nil
	}
	stored, found := t.state.backend.get(text)
	slot := t.add(text)
	if slot == nil || !found {
		return slot
	}
	slot.found = true
	slot.size = len(stored)
	t.state.text += len(stored)
	if !t.decode(text, stored, &slot.value) {
		return nil
	}
	return slot
}

func (t *Table[K, V]) decode(text, stored string, value *V) bool {
	err := mismatch("it is not UTF-8")
	if utf8.ValidString(stored) {
		err = t.value.decodeText(stored, unsafe.Pointer(value))
	}
	if err != nil {
		t.state.fail(mismatch("the value of ", text, " does not match its type: ", err.Error(),
			"; raise the state version if values change their format"))
	}
	return err == nil
}

func (t *Table[K, V]) mark(slot *slot[V]) *slot[V] {
	if slot == nil {
		return nil
	}
	if !t.state.writable {
		t.state.fail(mismatch("a query cannot change table ", t.name))
		return nil
	}
	if slot.changed == noEvent {
		t.changed = append(t.changed, slot)
	}
	// The event that changed it last is blamed if the value cannot be encoded.
	slot.changed = t.state.event
	return slot
}

func (t *Table[K, V]) collect(writes []write) ([]write, error) {
	kept := t.changed[:0]
	for _, slot := range t.changed {
		size := 0
		if slot.found {
			value, err := t.value.encode(t.buffer[:0], unsafe.Pointer(&slot.value))
			t.buffer = value
			if err != nil {
				shown := mismatch("the value of ", slot.text, " cannot be stored: ", err.Error())
				return writes, &unwritableError{slot.changed, shown}
			}
			size = len(value)
			writes = append(writes, write{key: slot.text, value: string(value)})
		} else {
			writes = append(writes, write{key: slot.text, deletes: true})
		}
		t.state.text += size - slot.size
		slot.size = size
		// The event that is being applied may hold the value, and change it again.
		if slot.held == t.state.event {
			kept = append(kept, slot)
		} else {
			slot.changed = noEvent
		}
	}
	clear(t.changed[len(kept):])
	t.changed = kept
	return writes, nil
}

func (t *Table[K, V]) clear() {
	clear(t.slots)
	t.changed = nil
}

// Value is a single value under a name of its own.
type Value[V any] struct{ table *Table[struct{}, V] }

// NewValue makes a single value for a projection or handler, while it is being defined.
func NewValue[V any](m Module, name string) *Value[V] {
	checkTableName(name)
	// No parts: its key is its name alone.
	return &Value[V]{newTable[struct{}, V](m, name, keyType{})}
}

// Get returns the value, and whether there is one.
func (v *Value[V]) Get() (value V, found bool) { return v.table.Get(struct{}{}) }

// Set sets the value.
func (v *Value[V]) Set(value V) { v.table.Set(struct{}{}, value) }

// Edit returns the value, to be changed in place until the event ends. See [Table.Edit].
func (v *Value[V]) Edit() *V { return v.table.Edit(struct{}{}) }

// Delete removes the value.
func (v *Value[V]) Delete() { v.table.Delete(struct{}{}) }
