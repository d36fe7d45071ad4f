package foldstream

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// depthMax is how deeply JSON may be nested.
const depthMax = 128

// reader reads JSON by the letter: it takes no NaN, no half characters and nothing behind the end.
type reader struct {
	text  string
	at    int
	depth int
}

func (r *reader) failed(expected string) error {
	if r.at >= len(r.text) {
		return mismatch("expected ", expected, ", found the end")
	}
	return mismatch("expected ", expected, " at byte ", strconv.Itoa(r.at))
}

// peek is the next byte behind spaces; 0 at the end.
func (r *reader) peek() byte {
	for r.at < len(r.text) {
		char := r.text[r.at]
		if char != ' ' && char != '\n' && char != '\t' && char != '\r' {
			return char
		}
		r.at++
	}
	return 0
}

// eat takes the next byte if it is this one.
func (r *reader) eat(char byte) bool {
	if r.peek() != char {
		return false
	}
	r.at++
	return true
}

// found names the next value, for messages.
func (r *reader) found() string {
	switch char := r.peek(); {
	case char == '{':
		return "an object"
	case char == '[':
		return "a list"
	case char == '"':
		return "a text"
	case char == 't' || char == 'f':
		return "true or false"
	case char == 'n':
		return "null"
	case char == '-' || (char >= '0' && char <= '9'):
		return "a number"
	case r.at >= len(r.text):
		return "the end"
	}
	return "no JSON"
}

func (r *reader) mismatch(expected string) error {
	return mismatch("expected ", expected, ", found ", r.found())
}

func (r *reader) enter() error {
	r.depth++
	if r.depth > depthMax {
		return mismatch("JSON is nested more than ", strconv.Itoa(depthMax), " deep")
	}
	return nil
}

// word takes a word such as null, if it is next.
func (r *reader) word(word string) bool {
	r.peek()
	if !strings.HasPrefix(r.text[r.at:], word) {
		return false
	}
	r.at += len(word)
	return true
}

// number takes a number, and says whether it is written without fraction and exponent.
func (r *reader) number() (text string, integer bool, err error) {
	r.peek()
	start := r.at
	digits := func() bool {
		from := r.at
		for r.at < len(r.text) && r.text[r.at] >= '0' && r.text[r.at] <= '9' {
			r.at++
		}
		return r.at > from
	}
	next := func(chars string) bool {
		found := r.at < len(r.text) && strings.IndexByte(chars, r.text[r.at]) >= 0
		if found {
			r.at++
		}
		return found
	}
	next("-")
	if !next("0") && !digits() {
		return "", false, r.failed("a digit")
	}
	integer = true
	if next(".") {
		integer = false
		if !digits() {
			return "", false, r.failed("a digit")
		}
	}
	if next("eE") {
		integer = false
		next("+-")
		if !digits() {
			return "", false, r.failed("a digit")
		}
	}
	return r.text[start:r.at], integer, nil
}

// string takes a text. The result may be part of what is read.
func (r *reader) string() (string, error) {
	if r.peek() != '"' {
		return "", r.mismatch("a text")
	}
	start := r.at + 1
	for at := start; at < len(r.text); at++ {
		switch char := r.text[at]; {
		case char == '"':
			r.at = at + 1
			return r.text[start:at], nil
		case char == '\\':
			r.at = at
			return r.escaped([]byte(r.text[start:at]))
		case char < 0x20:
			r.at = at
			return "", r.failed("no control character in a text")
		}
	}
	r.at = len(r.text)
	return "", r.failed("the end of a text")
}

// escaped takes the rest of a text, from its first backslash.
func (r *reader) escaped(read []byte) (string, error) {
	for r.at < len(r.text) {
		char := r.text[r.at]
		r.at++
		switch {
		case char == '"':
			return string(read), nil
		case char < 0x20:
			r.at--
			return "", r.failed("no control character in a text")
		case char != '\\':
			read = append(read, char)
			continue
		case r.at >= len(r.text):
			return "", r.failed("an escape")
		}
		char = r.text[r.at]
		r.at++
		if char == 'u' {
			rune, err := r.unicode()
			if err != nil {
				return "", err
			}
			read = utf8.AppendRune(read, rune)
			continue
		}
		place := strings.IndexByte(`"\/bfnrt`, char)
		if place < 0 {
			r.at--
			return "", r.failed("an escape")
		}
		read = append(read, "\"\\/\b\f\n\r\t"[place])
	}
	return "", r.failed("the end of a text")
}

// unicode takes four hexadecimal digits, or two surrogates that make a pair.
func (r *reader) unicode() (rune, error) {
	half := func() (rune, bool) {
		if len(r.text)-r.at < 4 {
			return 0, false
		}
		number, err := strconv.ParseUint(r.text[r.at:r.at+4], 16, 16)
		r.at += 4
		return rune(number), err == nil
	}
	first, sound := half()
	if !sound {
		return 0, r.failed("four hexadecimal digits")
	}
	if !utf16.IsSurrogate(first) {
		return first, nil
	}
	if strings.HasPrefix(r.text[r.at:], `\u`) {
		r.at += 2
		if second, sound := half(); sound {
			if whole := utf16.DecodeRune(first, second); whole != utf8.RuneError {
				return whole, nil
			}
		}
	}
	return 0, mismatch("half of a pair of surrogates is no text")
}

// skip takes any value.
func (r *reader) skip() error {
	switch r.peek() {
	case '"':
		_, err := r.string()
		return err
	case '{':
		return r.fields(func(string) error { return r.skip() })
	case '[':
		return r.elements(func(int) error { return r.skip() })
	}
	if r.word("null") || r.word("true") || r.word("false") {
		return nil
	}
	if char := r.peek(); char != '-' && (char < '0' || char > '9') {
		return r.failed("a value")
	}
	_, _, err := r.number()
	return err
}

// fields takes an object; it calls `field` at the value of each.
func (r *reader) fields(field func(name string) error) error {
	if !r.eat('{') {
		return r.mismatch("an object")
	}
	if err := r.enter(); err != nil {
		return err
	}
	for first := true; !r.eat('}'); first = false {
		if !first && !r.eat(',') {
			return r.failed("a comma or the end of an object")
		}
		name, err := r.string()
		if err != nil {
			return err
		}
		if !r.eat(':') {
			return r.failed("a colon")
		}
		if err := field(name); err != nil {
			return err
		}
	}
	r.depth--
	return nil
}

// elements takes a list; it calls `element` at each of its values.
func (r *reader) elements(element func(place int) error) error {
	if !r.eat('[') {
		return r.mismatch("a list")
	}
	if err := r.enter(); err != nil {
		return err
	}
	for place := 0; !r.eat(']'); place++ {
		if place > 0 && !r.eat(',') {
			return r.failed("a comma or the end of a list")
		}
		if err := element(place); err != nil {
			return err
		}
	}
	r.depth--
	return nil
}

// end checks that nothing follows.
func (r *reader) end() error {
	if r.peek() != 0 || r.at < len(r.text) {
		return r.failed("the end")
	}
	return nil
}

// appendText appends a text as JSON.
func appendText(to []byte, text string) ([]byte, error) {
	const hex = "0123456789abcdef"
	to = append(to, '"')
	ascii := true
	for place := range len(text) {
		char := text[place]
		switch {
		case char >= utf8.RuneSelf:
			ascii = false
			to = append(to, char)
		case char == '"' || char == '\\':
			to = append(to, '\\', char)
		case char >= 0x20:
			to = append(to, char)
		default:
			if short := strings.IndexByte("\b\f\n\r\t", char); short >= 0 {
				to = append(to, '\\', "bfnrt"[short])
			} else {
				to = append(to, '\\', 'u', '0', '0', hex[char>>4], hex[char&15])
			}
		}
	}
	if !ascii && !utf8.ValidString(text) {
		return to, mismatch("a text is not UTF-8")
	}
	return append(to, '"'), nil
}

// appendFloat appends a number as all SDKs write it: 1.0, 0.00001, 1e-7 and 1e16.
func appendFloat(to []byte, number float64) ([]byte, error) {
	if math.IsNaN(number) || math.IsInf(number, 0) {
		return to, mismatch("expected a finite number, found ", strconv.FormatFloat(number, 'g', -1, 64))
	}
	text := strconv.FormatFloat(number, 'e', -1, 64)
	mantissa, exponent, _ := strings.Cut(text, "e")
	power, _ := strconv.Atoi(exponent)
	if power >= 16 || power < -5 {
		to = append(append(to, mantissa...), 'e')
		return strconv.AppendInt(to, int64(power), 10), nil
	}
	start := len(to)
	to = strconv.AppendFloat(to, number, 'f', -1, 64)
	if strings.IndexByte(string(to[start:]), '.') < 0 {
		to = append(to, ".0"...)
	}
	return to, nil
}
