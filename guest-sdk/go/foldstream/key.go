package foldstream

import (
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"
)

// keyBytesMax is the longest key that a host accepts, in bytes.
const keyBytesMax = 1_024

// A keyType says how keys of one type are written and read. The name of a table and the parts of
// its key are joined by slashes, as in day/42/2026-11-23. Every SDK of Foldstream writes the same
// text for the same key, and the texts sort like the keys:
//
//	uint8 uint16 uint32 uint64  3, 5, 10, 20 digits
//	int8 int16 int32 int64      p and the digits; below zero n and the distance from the smallest
//	bool                        0, 1
//	Date                        2026-11-23
//	Timestamp                   2026-11-23T14:05:06.123456789Z
//	string                      itself, with %, / and control characters as %25, %2F, %0A
//	a struct of 2 to 4 of them  the parts
type keyType struct{ parts []keyPart }

// A keyPart is one field of a key, or the whole key.
type keyPart struct {
	kind   reflect.Type
	offset uintptr
	// write appends the text of the value at a pointer.
	write func(to []byte, value unsafe.Pointer) ([]byte, error)
	// read sets the value at a pointer from the text.
	read func(text string, value unsafe.Pointer) error
}

var (
	dateType      = reflect.TypeFor[Date]()
	timestampType = reflect.TypeFor[Timestamp]()
)

// keyTypeOf is the key type of a Go type.
func keyTypeOf(kind reflect.Type) (keyType, error) {
	if kind.Kind() != reflect.Struct {
		part, err := keyPartOf(kind, 0)
		return keyType{[]keyPart{part}}, err
	}
	if kind.NumField() < 2 || kind.NumField() > 4 {
		return keyType{}, mismatch("a key of several parts is a struct of 2 to 4 fields, which ", kind.String(), " is not")
	}
	var found keyType
	for number := range kind.NumField() {
		field := kind.Field(number)
		part, err := keyPartOf(field.Type, field.Offset)
		if err != nil {
			return keyType{}, err
		}
		found.parts = append(found.parts, part)
	}
	return found, nil
}

func keyPartOf(kind reflect.Type, offset uintptr) (keyPart, error) {
	part := keyPart{kind: kind, offset: offset}
	switch {
	case kind == dateType:
		part.write = func(to []byte, value unsafe.Pointer) ([]byte, error) {
			day := *(*Date)(value)
			return day.appendText(to), day.check()
		}
		part.read = func(text string, value unsafe.Pointer) (err error) {
			*(*Date)(value), err = ParseDate(text)
			return err
		}
	case kind == timestampType:
		part.write = func(to []byte, value unsafe.Pointer) ([]byte, error) {
			return (*(*Timestamp)(value)).appendText(to), nil
		}
		part.read = readTimestampKey
	case kind.Kind() == reflect.String:
		part.write = func(to []byte, value unsafe.Pointer) ([]byte, error) {
			return appendKeyText(to, *(*string)(value))
		}
		part.read = readTextKey
	case kind.Kind() == reflect.Bool:
		part.write = func(to []byte, value unsafe.Pointer) ([]byte, error) {
			if *(*bool)(value) {
				return append(to, '1'), nil
			}
			return append(to, '0'), nil
		}
		part.read = readBoolKey
	case kind.Kind() >= reflect.Uint8 && kind.Kind() <= reflect.Uint64:
		unsignedKey(&part, kind.Bits())
	case kind.Kind() >= reflect.Int8 && kind.Kind() <= reflect.Int64:
		signedKey(&part, kind.Bits())
	case kind.Kind() == reflect.Int || kind.Kind() == reflect.Uint:
		return part, mismatch("a number in a key needs a width: use int64, uint64 or a smaller type")
	default:
		return part, mismatch(kind.String(), " cannot be a key; use a text, a number, bool, Date, Timestamp or a struct of them")
	}
	return part, nil
}

func readTimestampKey(text string, value unsafe.Pointer) error {
	time, err := ParseTimestamp(text)
	if err != nil || time.String() != text {
		return mismatch("expected a time with nine decimals in the key")
	}
	*(*Timestamp)(value) = time
	return nil
}

func readBoolKey(text string, value unsafe.Pointer) error {
	if text != "0" && text != "1" {
		return mismatch("expected 0 or 1 in the key")
	}
	*(*bool)(value) = text == "1"
	return nil
}

// digitsOf is how many digits the largest number of a width has.
func digitsOf(bits int, signed bool) int {
	switch bits {
	case 8:
		return 3
	case 16:
		return 5
	case 32:
		return 10
	}
	if signed {
		return 19
	}
	return 20
}

func unsignedKey(part *keyPart, bits int) {
	digits := digitsOf(bits, false)
	part.write = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		return appendDigits(to, loadUint(value, bits), digits), nil
	}
	part.read = func(text string, value unsafe.Pointer) error {
		number, err := strconv.ParseUint(text, 10, bits)
		if err != nil || len(text) != digits {
			return mismatch("expected the ", strconv.Itoa(digits), " digits of a number in the key")
		}
		storeUint(value, bits, number)
		return nil
	}
}

func signedKey(part *keyPart, bits int) {
	digits := digitsOf(bits, true)
	lowest := uint64(1) << (bits - 1)
	part.write = func(to []byte, value unsafe.Pointer) ([]byte, error) {
		number := loadInt(value, bits)
		if number >= 0 {
			return appendDigits(append(to, 'p'), uint64(number), digits), nil
		}
		// The distance from the smallest: it rises with the number, as texts must.
		return appendDigits(append(to, 'n'), uint64(number)+lowest, digits), nil
	}
	part.read = func(text string, value unsafe.Pointer) error {
		if len(text) == digits+1 && (text[0] == 'p' || text[0] == 'n') {
			number, err := strconv.ParseUint(text[1:], 10, bits)
			if err == nil && number < lowest {
				if text[0] == 'n' {
					number -= lowest
				}
				storeUint(value, bits, number)
				return nil
			}
		}
		return mismatch("expected p or n with ", strconv.Itoa(digits), " digits in the key")
	}
}

// loadUint reads an unsigned number of a width, in bits.
func loadUint(at unsafe.Pointer, bits int) uint64 {
	switch bits {
	case 8:
		return uint64(*(*uint8)(at))
	case 16:
		return uint64(*(*uint16)(at))
	case 32:
		return uint64(*(*uint32)(at))
	}
	return *(*uint64)(at)
}

// loadInt reads a signed number of a width, in bits.
func loadInt(at unsafe.Pointer, bits int) int64 {
	shift := 64 - bits
	return int64(loadUint(at, bits)<<shift) >> shift
}

// storeUint writes the low bits of a number.
func storeUint(at unsafe.Pointer, bits int, number uint64) {
	switch bits {
	case 8:
		*(*uint8)(at) = uint8(number)
	case 16:
		*(*uint16)(at) = uint16(number)
	case 32:
		*(*uint32)(at) = uint32(number)
	default:
		*(*uint64)(at) = number
	}
}

func mustEscape(char byte) bool { return char < 0x20 || char == '/' || char == '%' || char == 0x7f }

// appendKeyText appends a text in the form that it has in keys.
func appendKeyText(to []byte, text string) ([]byte, error) {
	const hex = "0123456789ABCDEF"
	ascii := true
	for place := range len(text) {
		char := text[place]
		ascii = ascii && char < utf8.RuneSelf
		if mustEscape(char) {
			to = append(to, '%', hex[char>>4], hex[char&15])
		} else {
			to = append(to, char)
		}
	}
	if !ascii && !utf8.ValidString(text) {
		return to, mismatch("a key is not UTF-8")
	}
	return to, nil
}

func readTextKey(part string, value unsafe.Pointer) error {
	text := part
	if strings.IndexByte(part, '%') >= 0 {
		var read strings.Builder
		for place := 0; place < len(part); place++ {
			char := part[place]
			if char == '%' {
				if place+2 >= len(part) {
					return mismatch("expected two hexadecimal digits after each % in the key")
				}
				number, err := strconv.ParseUint(part[place+1:place+3], 16, 7)
				if err != nil {
					return mismatch("expected two hexadecimal digits after each % in the key")
				}
				char = byte(number)
				place += 2
			}
			read.WriteByte(char)
		}
		text = read.String()
	}
	*(*string)(value) = text
	return nil
}

// write appends the parts of a key, each after a slash.
func (k keyType) write(to []byte, key unsafe.Pointer) ([]byte, error) {
	for number := range k.parts {
		part := &k.parts[number]
		var err error
		to, err = part.write(append(to, '/'), unsafe.Add(key, part.offset))
		if err != nil {
			return to, err
		}
	}
	return to, nil
}

// read sets a key from the text behind the table's name.
func (k keyType) read(text string, key unsafe.Pointer) error {
	for number := range k.parts {
		if text == "" || text[0] != '/' {
			return mismatch("expected ", strconv.Itoa(len(k.parts)), " parts in the key")
		}
		end := strings.IndexByte(text[1:], '/') + 1
		if end == 0 {
			end = len(text)
		}
		part := &k.parts[number]
		if err := part.read(text[1:end], unsafe.Add(key, part.offset)); err != nil {
			return err
		}
		text = text[end:]
	}
	if text != "" {
		return mismatch("expected ", strconv.Itoa(len(k.parts)), " parts in the key")
	}
	return nil
}
