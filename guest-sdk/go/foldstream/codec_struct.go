package foldstream

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unsafe"
)

// structField is a field of a struct that JSON has.
type structField struct {
	name string
	// prefix is the name in JSON, with the colon.
	prefix   string
	offset   uintptr
	codec    *codec
	kind     reflect.Type
	required bool
	// omitted says which values are not written: none, zero ones, or empty ones.
	omitted string
}

func (c *codec) makeStruct() error {
	if c.kind.NumField() == 0 {
		c.makeNothing()
		return nil
	}
	fields, err := fieldsOf(c.kind, 0)
	if err != nil {
		return err
	}
	if len(fields) == 0 || len(fields) > 64 {
		return mismatch(c.kind.String(), " has no field that can be stored, or more than 64")
	}
	for _, field := range fields {
		c.shares = c.shares || field.codec.shares
	}
	c.decode = func(r *reader, value unsafe.Pointer) error { return decodeStruct(r, fields, value) }
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		return encodeStruct(to, fields, value)
	}
	return nil
}

// makeNothing is the codec of struct{}: null.
func (c *codec) makeNothing() {
	c.decode = func(r *reader, _ unsafe.Pointer) error {
		if !r.word("null") {
			return r.mismatch("null")
		}
		return nil
	}
	c.encode = func(to []byte, _ unsafe.Pointer) ([]byte, error) { return append(to, "null"...), nil }
}

func fieldsOf(kind reflect.Type, base uintptr) ([]structField, error) {
	var fields []structField
	for number := range kind.NumField() {
		declared := kind.Field(number)
		name, options, _ := strings.Cut(declared.Tag.Get("json"), ",")
		offset := base + declared.Offset
		if embeds(declared) && name == "" {
			inner, err := embeddedFields(declared, offset)
			if err != nil {
				return nil, within(kind.String()+"."+declared.Name, err)
			}
			for _, field := range inner {
				if err := distinct(kind, fields, field.name); err != nil {
					return nil, err
				}
				fields = append(fields, field)
			}
			continue
		}
		// With a comma behind it, as in encoding/json, it is a name.
		if !declared.IsExported() || declared.Tag.Get("json") == "-" {
			continue
		}
		if name == "" {
			name = declared.Name
		}
		if options != "" && options != "omitzero" && options != "omitempty" {
			return nil, mismatch(kind.String(), ".", declared.Name, ": unknown option ", options, " in its tag; there are omitzero and omitempty")
		}
		if err := distinct(kind, fields, name); err != nil {
			return nil, err
		}
		inner, err := codecOf(declared.Type)
		if err != nil {
			return nil, within(kind.String()+"."+declared.Name, err)
		}
		prefix, err := appendText(nil, name)
		if err != nil {
			return nil, err
		}
		required := declared.Type.Kind() != reflect.Pointer && options == ""
		fields = append(fields, structField{
			name, string(prefix) + ":", offset, inner, declared.Type, required, options,
		})
	}
	return fields, nil
}

// embeds says whether a field is a struct without a name of its own, or a pointer to one.
func embeds(field reflect.StructField) bool {
	kind := field.Type
	if kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	return field.Anonymous && kind.Kind() == reflect.Struct
}

// embeddedFields are the fields that an embedded struct adds. Where encoding/json would do what is not
// done here, they are refused: what is left out silently is lost.
func embeddedFields(embedded reflect.StructField, offset uintptr) ([]structField, error) {
	kind := embedded.Type
	if kind.Kind() == reflect.Pointer {
		return nil, mismatch("an embedded pointer cannot be stored; embed the struct, or give it a name in its tag")
	}
	fields, err := fieldsOf(kind, offset)
	if err == nil && len(fields) == 0 && kind.NumField() > 0 {
		err = mismatch(kind.String(), " has no field that can be stored")
	}
	return fields, err
}

func distinct(kind reflect.Type, fields []structField, name string) error {
	if slices.ContainsFunc(fields, func(other structField) bool { return other.name == name }) {
		return mismatch(kind.String(), ": two fields are named ", name)
	}
	return nil
}

func decodeStruct(r *reader, fields []structField, value unsafe.Pointer) error {
	var seen uint64
	// Fields mostly come in the order of the struct.
	next := 0
	err := r.fields(func(name string) error {
		number := next
		if number >= len(fields) || fields[number].name != name {
			number = slices.IndexFunc(fields, func(field structField) bool { return field.name == name })
		}
		if number < 0 {
			return r.skip()
		}
		next = number + 1
		if seen&(1<<number) != 0 {
			return twice(name)
		}
		seen |= 1 << number
		field := &fields[number]
		if err := field.codec.decode(r, unsafe.Add(value, field.offset)); err != nil {
			return within(name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for number := range fields {
		if fields[number].required && seen&(1<<number) == 0 {
			return mismatch("missing field `", fields[number].name, "`")
		}
	}
	return nil
}

// twice is why an object is refused: other readers would take the first of the fields, or the last.
func twice(name string) error { return mismatch("two fields `", name, "`") }

func encodeStruct(to []byte, fields []structField, value unsafe.Pointer) ([]byte, error) {
	separator := byte('{')
	for number := range fields {
		field := &fields[number]
		place := unsafe.Add(value, field.offset)
		if field.omitted != "" && field.omits(reflect.NewAt(field.kind, place).Elem()) {
			continue
		}
		to = append(append(to, separator), field.prefix...)
		separator = ','
		var err error
		to, err = field.codec.encode(to, place)
		if err != nil {
			return to, within(field.name, err)
		}
	}
	if separator == '{' {
		to = append(to, '{')
	}
	return append(to, '}'), nil
}

// omits says whether a value is not written, as encoding/json does: omitzero keeps lists and maps that
// are empty and not nil.
func (f *structField) omits(value reflect.Value) bool {
	if f.omitted == "omitempty" && (value.Kind() == reflect.Slice || value.Kind() == reflect.Map) {
		return value.Len() == 0
	}
	return value.IsZero()
}

// appendMap appends a map with texts as keys, in their order: that of Go differs from run to run.
func appendMap(to []byte, entries reflect.Value, inner *codec) ([]byte, error) {
	names := entries.MapKeys()
	slices.SortFunc(names, func(one, other reflect.Value) int {
		return strings.Compare(one.String(), other.String())
	})
	to = append(to, '{')
	for place, name := range names {
		if place > 0 {
			to = append(to, ',')
		}
		var err error
		if to, err = appendText(to, name.String()); err != nil {
			return to, err
		}
		// Elements of a map have no address.
		element := reflect.New(inner.kind)
		element.Elem().Set(entries.MapIndex(name))
		if to, err = inner.encode(append(to, ':'), element.UnsafePointer()); err != nil {
			return to, within(name.String(), err)
		}
	}
	return append(to, '}'), nil
}

// appendAny appends a value by its own type.
func appendAny(to []byte, value any) ([]byte, error) {
	if value == nil {
		return append(to, "null"...), nil
	}
	held := reflect.ValueOf(value)
	inner, err := codecOf(held.Type())
	if err != nil {
		return to, err
	}
	// What an interface holds has no address.
	copied := reflect.New(held.Type())
	copied.Elem().Set(held)
	return inner.encode(to, copied.UnsafePointer())
}

// decodeAny takes any value: nil, bool, string, int64, uint64 above that, float64, []any or
// map[string]any.
func decodeAny(r *reader) (any, error) {
	switch r.found() {
	case "an object":
		entries := map[string]any{}
		return entries, r.fields(func(name string) (err error) {
			if _, found := entries[name]; found {
				return twice(name)
			}
			entries[strings.Clone(name)], err = decodeAny(r)
			return err
		})
	case "a list":
		elements := []any{}
		err := r.elements(func(int) error {
			element, err := decodeAny(r)
			elements = append(elements, element)
			return err
		})
		return elements, err
	case "a text":
		text, err := r.string()
		return strings.Clone(text), err
	case "a number":
		return decodeNumber(r)
	}
	switch {
	case r.word("null"):
		return nil, nil
	case r.word("true"):
		return true, nil
	case r.word("false"):
		return false, nil
	}
	return nil, r.failed("a value")
}

func decodeNumber(r *reader) (any, error) {
	text, integer, err := r.number()
	if err != nil {
		return nil, err
	}
	if integer && text != "-0" {
		if number, err := strconv.ParseInt(text, 10, 64); err == nil {
			return number, nil
		}
		if number, err := strconv.ParseUint(text, 10, 64); err == nil {
			return number, nil
		}
		return nil, mismatch("expected a number that is exact, found ", text)
	}
	number, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil, mismatch("expected a finite number, found ", text)
	}
	return number, nil
}
