package foldstream

import (
	"reflect"
	"strconv"
	"strings"
	"unsafe"
)

// A codec says how values of one type are read and written: checked when they are read, in one form
// when they are written, so that every SDK stores the same bytes.
//
// Supported types: bool, string, numbers, Date, Timestamp, pointers (null is nil), slices, arrays,
// maps with texts as keys (written in the order of the keys), structs of these, struct{} (null), and
// any for JSON as it is. Fields of structs are named as with encoding/json. Reading ignores fields
// that a struct does not have, and refuses a field that occurs twice. A field is required unless it is
// a pointer, or has the option omitzero or omitempty.
type codec struct {
	kind reflect.Type
	// decode sets the value at a pointer, which is zero.
	decode func(r *reader, value unsafe.Pointer) error
	// encode appends the JSON of the value at a pointer.
	encode func(to []byte, value unsafe.Pointer) ([]byte, error)
	// shares says whether a plain copy shares something changeable with the first.
	shares bool
}

// Codecs by type. A module has one thread.
var codecs = map[reflect.Type]*codec{}

// codecOf is the codec of a type.
func codecOf(kind reflect.Type) (*codec, error) {
	if known := codecs[kind]; known != nil {
		return known, nil
	}
	// Known before it is complete: a type may contain itself.
	made := &codec{kind: kind}
	codecs[kind] = made
	if err := made.make(); err != nil {
		delete(codecs, kind)
		return nil, err
	}
	return made, nil
}

func (c *codec) make() error {
	switch kind := c.kind.Kind(); {
	case c.kind == dateType:
		c.makeDate()
	case c.kind == timestampType:
		c.makeTimestamp()
	case kind == reflect.Bool:
		c.makeBool()
	case kind == reflect.String:
		c.decode = func(r *reader, value unsafe.Pointer) error {
			text, err := r.string()
			// What is read does not live on because of a small part of it.
			*(*string)(value) = strings.Clone(text)
			return err
		}
		c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
			return appendText(to, *(*string)(value))
		}
	case kind >= reflect.Int && kind <= reflect.Int64:
		c.makeSigned()
	case kind >= reflect.Uint && kind <= reflect.Uint64:
		c.makeUnsigned()
	case kind == reflect.Float64 || kind == reflect.Float32:
		c.makeFloat()
	case kind == reflect.Pointer:
		return c.makePointer()
	case kind == reflect.Slice:
		return c.makeSlice()
	case kind == reflect.Array:
		return c.makeArray()
	case kind == reflect.Map && c.kind.Key().Kind() == reflect.String:
		return c.makeMap()
	case kind == reflect.Struct:
		return c.makeStruct()
	case kind == reflect.Interface && c.kind.NumMethod() == 0:
		c.shares = true
		c.decode = func(r *reader, value unsafe.Pointer) (err error) {
			*(*any)(value), err = decodeAny(r)
			return err
		}
		c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
			return appendAny(to, *(*any)(value))
		}
	default:
		return mismatch(c.kind.String(), " is no type that can be stored")
	}
	return nil
}

func (c *codec) makeDate() {
	c.decode = func(r *reader, value unsafe.Pointer) error {
		text, err := r.string()
		if err == nil {
			*(*Date)(value), err = ParseDate(text)
		}
		return err
	}
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		day := *(*Date)(value)
		return append(day.appendText(append(to, '"')), '"'), day.check()
	}
}

func (c *codec) makeTimestamp() {
	c.decode = func(r *reader, value unsafe.Pointer) error {
		text, err := r.string()
		if err == nil {
			*(*Timestamp)(value), err = ParseTimestamp(text)
		}
		return err
	}
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		return append((*(*Timestamp)(value)).appendText(append(to, '"')), '"'), nil
	}
}

func (c *codec) makeBool() {
	c.decode = func(r *reader, value unsafe.Pointer) error {
		if r.word("true") {
			*(*bool)(value) = true
		} else if !r.word("false") {
			return r.mismatch("true or false")
		}
		return nil
	}
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		return strconv.AppendBool(to, *(*bool)(value)), nil
	}
}

// takeNumber takes a number, or says what was expected.
func takeNumber(r *reader, expected string) (text string, integer bool, err error) {
	if r.found() != "a number" {
		return "", false, r.mismatch(expected)
	}
	return r.number()
}

func (c *codec) makeSigned() {
	bits := c.kind.Bits()
	expected := "an integer from -" + strconv.FormatUint(1<<(bits-1), 10) + " to " + strconv.FormatUint(1<<(bits-1)-1, 10)
	c.decode = func(r *reader, value unsafe.Pointer) error {
		text, integer, err := takeNumber(r, expected)
		if err != nil {
			return err
		}
		number, err := strconv.ParseInt(text, 10, bits)
		if err != nil || !integer {
			return mismatch("expected ", expected, ", found ", text)
		}
		storeUint(value, bits, uint64(number))
		return nil
	}
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		return strconv.AppendInt(to, loadInt(value, bits), 10), nil
	}
}

func (c *codec) makeUnsigned() {
	bits := c.kind.Bits()
	expected := "an integer from 0 to " + strconv.FormatUint(1<<bits-1, 10)
	c.decode = func(r *reader, value unsafe.Pointer) error {
		text, integer, err := takeNumber(r, expected)
		if err != nil {
			return err
		}
		if text == "-0" {
			text = "0"
		}
		number, err := strconv.ParseUint(text, 10, bits)
		if err != nil || !integer {
			return mismatch("expected ", expected, ", found ", text)
		}
		storeUint(value, bits, number)
		return nil
	}
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		return strconv.AppendUint(to, loadUint(value, bits), 10), nil
	}
}

func (c *codec) makeFloat() {
	double := c.kind.Kind() == reflect.Float64
	c.decode = func(r *reader, value unsafe.Pointer) error {
		text, _, err := takeNumber(r, "a number")
		if err != nil {
			return err
		}
		number, err := strconv.ParseFloat(text, c.kind.Bits())
		if err != nil {
			return mismatch("expected a finite number, found ", text)
		}
		if double {
			*(*float64)(value) = number
		} else {
			*(*float32)(value) = float32(number)
		}
		return nil
	}
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		if double {
			return appendFloat(to, *(*float64)(value))
		}
		return appendFloat(to, float64(*(*float32)(value)))
	}
}

func (c *codec) makePointer() error {
	inner, err := codecOf(c.kind.Elem())
	if err != nil {
		return err
	}
	c.shares = true
	c.decode = func(r *reader, value unsafe.Pointer) error {
		if r.word("null") {
			return nil
		}
		made := reflect.New(inner.kind).UnsafePointer()
		*(*unsafe.Pointer)(value) = made
		return inner.decode(r, made)
	}
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		target := *(*unsafe.Pointer)(value)
		if target == nil {
			return append(to, "null"...), nil
		}
		return inner.encode(to, target)
	}
	return nil
}

func at(place int, err error) error {
	if err == nil {
		return nil
	}
	return within("["+strconv.Itoa(place)+"]", err)
}

func (c *codec) makeSlice() error {
	inner, err := codecOf(c.kind.Elem())
	if err != nil {
		return err
	}
	c.shares = true
	c.decode = func(r *reader, value unsafe.Pointer) error {
		slice := reflect.NewAt(c.kind, value).Elem()
		// Not nil: an empty list is written as one.
		slice.Set(reflect.MakeSlice(c.kind, 0, 0))
		return r.elements(func(place int) error {
			slice.Set(reflect.Append(slice, reflect.Zero(inner.kind)))
			return at(place, inner.decode(r, slice.Index(place).Addr().UnsafePointer()))
		})
	}
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		slice := reflect.NewAt(c.kind, value).Elem()
		return encodeElements(to, inner, slice.UnsafePointer(), slice.Len())
	}
	return nil
}

func (c *codec) makeArray() error {
	inner, err := codecOf(c.kind.Elem())
	if err != nil {
		return err
	}
	length, size := c.kind.Len(), inner.kind.Size()
	wrong := func() error { return mismatch("expected a list of ", strconv.Itoa(length)) }
	c.shares = inner.shares
	c.decode = func(r *reader, value unsafe.Pointer) error {
		count := 0
		err := r.elements(func(place int) error {
			if count++; count > length {
				return wrong()
			}
			return at(place, inner.decode(r, unsafe.Add(value, uintptr(place)*size)))
		})
		if err == nil && count < length {
			return wrong()
		}
		return err
	}
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		return encodeElements(to, inner, value, length)
	}
	return nil
}

func encodeElements(to []byte, inner *codec, first unsafe.Pointer, count int) ([]byte, error) {
	to = append(to, '[')
	for place := range count {
		if place > 0 {
			to = append(to, ',')
		}
		var err error
		to, err = inner.encode(to, unsafe.Add(first, uintptr(place)*inner.kind.Size()))
		if err != nil {
			return to, at(place, err)
		}
	}
	return append(to, ']'), nil
}

func (c *codec) makeMap() error {
	inner, err := codecOf(c.kind.Elem())
	if err != nil {
		return err
	}
	c.shares = true
	c.decode = func(r *reader, value unsafe.Pointer) error {
		entries := reflect.MakeMap(c.kind)
		reflect.NewAt(c.kind, value).Elem().Set(entries)
		return r.fields(func(name string) error {
			key := reflect.ValueOf(strings.Clone(name)).Convert(c.kind.Key())
			if entries.MapIndex(key).IsValid() {
				return twice(name)
			}
			element := reflect.New(inner.kind)
			if err := inner.decode(r, element.UnsafePointer()); err != nil {
				return within(name, err)
			}
			entries.SetMapIndex(key, element.Elem())
			return nil
		})
	}
	c.encode = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		return appendMap(to, reflect.NewAt(c.kind, value).Elem(), inner)
	}
	return nil
}

// decode reads a whole text.
func (c *codec) decodeText(text string, value unsafe.Pointer) error {
	r := reader{text: text}
	if err := c.decode(&r, value); err != nil {
		return err
	}
	return r.end()
}
