package foldstream

import (
	"encoding/json"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// vector is a key of guest-sdk/conformance/keys.json.
type vector struct {
	Types []string
	Key   []json.RawMessage
	Text  string
}

var keyKinds = map[string]reflect.Type{
	"u8": reflect.TypeFor[uint8](), "u16": reflect.TypeFor[uint16](),
	"u32": reflect.TypeFor[uint32](), "u64": reflect.TypeFor[uint64](),
	"i8": reflect.TypeFor[int8](), "i16": reflect.TypeFor[int16](),
	"i32": reflect.TypeFor[int32](), "i64": reflect.TypeFor[int64](),
	"bool": reflect.TypeFor[bool](), "text": reflect.TypeFor[string](),
	"date": dateType, "time": timestampType,
}

// of is the Go type of a key: of several parts a struct.
func of(t *testing.T, names []string) (reflect.Type, keyType) {
	kind := keyKinds[names[0]]
	if len(names) > 1 {
		var fields []reflect.StructField
		for place, name := range names {
			fields = append(fields, reflect.StructField{Name: "ABCD"[place : place+1], Type: keyKinds[name]})
		}
		kind = reflect.StructOf(fields)
	}
	key, err := keyTypeOf(kind)
	if err != nil {
		t.Fatal(err)
	}
	return kind, key
}

func vectors(t *testing.T) (found struct{ Written, Refused []vector }) {
	text, err := os.ReadFile("../../conformance/keys.json")
	if err == nil {
		err = json.Unmarshal(text, &found)
	}
	if err != nil || len(found.Written) < 20 || len(found.Refused) < 10 {
		t.Fatalf("cannot read the keys: %v", err)
	}
	return found
}

func TestKeysAreWrittenAndReadAsInEveryLanguage(t *testing.T) {
	for _, vector := range vectors(t).Written {
		kind, key := of(t, vector.Types)
		given := reflect.New(kind)
		for place, part := range vector.Key {
			field := given.Elem()
			if len(vector.Types) > 1 {
				field = field.Field(place)
			}
			decoder, err := codecOf(field.Type())
			if err == nil {
				err = decoder.decodeText(string(part), field.Addr().UnsafePointer())
			}
			if err != nil {
				t.Fatalf("%s: %v", vector.Text, err)
			}
		}
		text, err := key.write(nil, given.UnsafePointer())
		if err != nil || string(text) != vector.Text {
			t.Errorf("%q is written as %q (%v)", vector.Text, text, err)
		}
		read := reflect.New(kind)
		if err := key.read(vector.Text, read.UnsafePointer()); err != nil {
			t.Errorf("%q cannot be read: %v", vector.Text, err)
		} else if !read.Elem().Equal(given.Elem()) {
			t.Errorf("%q is read as %v", vector.Text, read.Elem())
		}
	}
}

func TestKeysOfAnotherFormAreRefused(t *testing.T) {
	for _, vector := range vectors(t).Refused {
		kind, key := of(t, vector.Types)
		if err := key.read(vector.Text, reflect.New(kind).UnsafePointer()); err == nil {
			t.Errorf("%v takes %q", vector.Types, vector.Text)
		}
	}
}

func TestTypesThatAreNoKeysAreRefused(t *testing.T) {
	for _, kind := range []reflect.Type{
		reflect.TypeFor[int](), reflect.TypeFor[uint](), reflect.TypeFor[float64](),
		reflect.TypeFor[[]byte](), reflect.TypeFor[*string](), reflect.TypeFor[struct{ A string }](),
		reflect.TypeFor[struct {
			A string
			B float64
		}](),
		reflect.TypeFor[struct{ A, B, C, D, E string }](),
	} {
		if _, err := keyTypeOf(kind); err == nil {
			t.Errorf("%v is taken as a key", kind)
		}
	}
}

func TestTextsAndDatesThatAreNoKeysAreRefused(t *testing.T) {
	text, _ := keyTypeOf(reflect.TypeFor[string]())
	if _, err := keyText(text, "\xff"); err == nil {
		t.Error("a text that is not UTF-8 is a key")
	}
	day, _ := keyTypeOf(dateType)
	for _, wrong := range []Date{-1, dateMax + 1} {
		if _, err := keyText(day, wrong); err == nil {
			t.Errorf("day %d is a key", wrong)
		}
	}
}

func TestNumbersSortAsTexts(t *testing.T) {
	key, _ := keyTypeOf(reflect.TypeFor[int64]())
	var texts []string
	for _, number := range []int64{-1 << 63, -1 << 62, -10, -9, -1, 0, 1, 9, 10, 1<<63 - 1} {
		text, err := keyText(key, number)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	if !slices.IsSorted(texts) {
		t.Error(strings.Join(texts, "\n"))
	}
}

func TestTimesAreInstants(t *testing.T) {
	at, err := ParseTimestamp("2026-11-23T14:05:06.123456789Z")
	if err != nil || at.Time().Format("2006-01-02T15:04:05.999999999Z07:00") != at.String() {
		t.Errorf("%v is %v (%v)", at, at.Time(), err)
	}
	if at.Date().String() != "2026-11-23" || at.Add(-1).Sub(at) != -1 {
		t.Errorf("%v is on %v", at, at.Date())
	}
	year := 365 * 24 * 60 * 60 * time.Duration(1e9)
	far := at
	for range 10 {
		far = far.Add(100 * year)
	}
	if last := Timestamp(math.MaxUint64); far != last || at.Add(-250*year) != 0 {
		t.Errorf("a thousand years later is %v", far)
	}
	if far.Sub(0) != math.MaxInt64 || Timestamp(0).Sub(far) != -math.MaxInt64 {
		t.Errorf("%v is %v after the first instant", far, far.Sub(0))
	}
	for _, wrong := range []string{
		"", "2026-11-23", "2026-11-23T14:05:06", "2026-11-23T14:05:06.Z", "2026-11-23T14:05:06.1234567890Z",
		"1969-12-31T23:59:59Z", "2026-11-23T24:00:00Z", "2026-11-23T14:05:60Z", "2600-01-01T00:00:00Z",
		"2026-02-29T00:00:00Z", "2026-11-23T14:05:06+24:00", "2026-11-23T14:05:06Zx",
	} {
		if found, err := ParseTimestamp(wrong); err == nil {
			t.Errorf("%q is taken as %v", wrong, found)
		}
	}
}
