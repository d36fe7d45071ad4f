package foldstream

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"unsafe"
)

func encode[V any](t *testing.T, value V) string {
	t.Helper()
	text, err := appendAny(nil, value)
	if err != nil {
		t.Fatalf("%v: %v", value, err)
	}
	return string(text)
}

func decode[V any](text string) (V, error) {
	var value V
	decoder, err := codecOf(reflect.TypeFor[V]())
	if err == nil {
		err = decoder.decodeText(text, unsafe.Pointer(&value))
	}
	return value, err
}

// cycle checks that a text is read and written again as it is.
func cycle[V any](t *testing.T, text string) {
	t.Helper()
	value, err := decode[V](text)
	if err != nil {
		t.Errorf("%s: %v", text, err)
	} else if written := encode(t, value); written != text {
		t.Errorf("%s is written as %s", text, written)
	}
}

func refused[V any](t *testing.T, text, message string) {
	t.Helper()
	value, err := decode[V](text)
	if err == nil || !strings.Contains(err.Error(), message) {
		t.Errorf("%s is read as %v, %v instead of %s", text, value, err, message)
	}
}

type inner struct {
	Day  Date      `json:"day"`
	At   Timestamp `json:"at"`
	None struct{}  `json:"none"`
}

type outer struct {
	inner
	Name    string            `json:"name"`
	Flags   []bool            `json:"flags"`
	Pair    [2]int8           `json:"pair"`
	More    map[string]uint16 `json:"more"`
	Parent  *outer            `json:"parent"`
	Skipped string            `json:"-"`
	Any     any               `json:"any"`
	Note    string            `json:"note,omitempty"`
	hidden  int
}

const whole = `{"day":"2026-11-23","at":"2026-11-23T14:05:06.123456789Z","none":null,"name":"Zoë \"1\"\n\u0001\u007f",` +
	`"flags":[true,false],"pair":[-128,127],"more":{"a":1,"b":65535},"parent":null,"any":{"x":[1,2.5,null,"t"]}}`

func TestValuesAreWrittenInOneForm(t *testing.T) {
	text := strings.ReplaceAll(whole, `\u007f`, "\x7f")
	cycle[outer](t, text)
	cycle[[]outer](t, "["+text+"]")
	cycle[map[string]any](t, `{"a":18446744073709551615,"b":-9223372036854775808,"c":"🦀"}`)
	value, err := decode[outer](" " + strings.ReplaceAll(text, `"name"`, "\t\"\\u006eame\"\r\n"))
	if err != nil || encode(t, value) != text {
		t.Errorf("%v %v", value, err)
	}
	if !strings.Contains(encode(t, outer{Flags: nil}), `"flags":[],"pair":[0,0],"more":{}`) {
		t.Error(encode(t, outer{}))
	}
}

func TestNumbersAreWrittenAsInEveryLanguage(t *testing.T) {
	for _, text := range []string{
		"0.0", "1.0", "-1.5", "0.1", "123456789.125", "1000000000000000.0", "1e16", "1.5e300", "5e-324",
		"0.00001", "0.000012", "1e-6", "1.25e-7",
	} {
		cycle[float64](t, text)
	}
	cycle[uint64](t, "18446744073709551615")
	cycle[int64](t, "-9223372036854775808")
	for _, wrong := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		if text, err := appendAny(nil, wrong); err == nil {
			t.Errorf("%v is written as %s", wrong, text)
		}
	}
	if text, err := appendAny(nil, "\xff"); err == nil {
		t.Errorf("bytes are written as %s", text)
	}
}

func TestWhatDoesNotMatchItsTypeIsRefused(t *testing.T) {
	type placed struct {
		Order string `json:"order"`
		Cents uint64 `json:"cents"`
	}
	for _, bad := range [][2]string{
		{``, "found the end"}, {`[]`, "expected an object, found a list"}, {`{}`, "missing field `order`"},
		{`{"order":1,"cents":1}`, "order: expected a text, found a number"},
		{`{"order":null,"cents":1}`, "order: expected a text, found null"},
		{`{"order":"1","cents":-1}`, "cents: expected an integer from 0 to 18446744073709551615, found -1"},
		{`{"order":"1","cents":1.5}`, "found 1.5"}, {`{"order":"1","cents":1e2}`, "found 1e2"},
		{`{"order":"1","cents":18446744073709551616}`, "found 18446744073709551616"},
		{`{"order":"1","cents":true}`, "found true or false"}, {`{"order":"1","cents":NaN}`, "found no JSON"},
		{`{"order":"1","cents":01}`, "a comma"}, {`{"order":"1","cents":1,}`, "expected a text"},
		{`{"order":"1","cents":1} x`, "expected the end"}, {`{"order":"1","cents":1`, "found the end"},
		{`{"Order":"1","cents":1}`, "missing field `order`"},
		{`{"order":"1","order":"1","cents":1}`, "two fields `order`"},
		{`{"order":"\ud800","cents":1}`, "half of a pair"}, {`{"order":"\ud800\u0041","cents":1}`, "half"},
		{`{"order":"\x","cents":1}`, "an escape"}, {"{\"order\":\"\n\",\"cents\":1}", "control character"},
		{`{"order":"1`, "end of a text"}, {`{"order":"1\`, "an escape"}, {`{"x":"\u00`, "hexadecimal"},
	} {
		refused[placed](t, bad[0], bad[1])
	}
	refused[int8](t, "128", "an integer from -128 to 127, found 128")
	refused[float64](t, "1e999", "finite")
	refused[[2]bool](t, "[true]", "a list of 2")
	refused[[2]bool](t, "[true,true,true]", "a list of 2")
	refused[[]inner](t, `[{"day":"2026-02-30"}]`, "[0]: day: expected a date")
	refused[map[string]bool](t, `{"a":1}`, "a: expected true or false")
	refused[any](t, strings.Repeat("[", 200), "more than 128 deep")
	refused[placed](t, `{"x":`+strings.Repeat("[", 100_000), "more than 128 deep")
	refused[any](t, "18446744073709551616", "exact")
	if value, err := decode[placed](`{"x":[{"y":[null,true,-0.5e-1]}],"cents":1,"order":"\ud83e\udd80"}`); err != nil || value.Order != "🦀" {
		t.Errorf("%v %v", value, err)
	}
}

func TestTypesThatCannotBeStoredAreRefused(t *testing.T) {
	for _, kind := range []reflect.Type{
		reflect.TypeFor[chan int](), reflect.TypeFor[func()](), reflect.TypeFor[complex128](),
		reflect.TypeFor[map[int]int](), reflect.TypeFor[[]error](), reflect.TypeFor[struct{ hidden int }](),
		reflect.TypeFor[struct {
			A int `json:"a,string"`
		}](),
		reflect.TypeFor[struct {
			A int `json:"a"`
			B int `json:"a"`
		}](),
	} {
		if _, err := codecOf(kind); err == nil {
			t.Errorf("%v can be stored", kind)
		}
	}
}

func TestEmptyListsAreWrittenUnlessTheTagSaysOtherwise(t *testing.T) {
	type lists struct {
		Zero  []int          `json:"zero,omitzero"`
		Map   map[string]int `json:"map,omitzero"`
		Empty []int          `json:"empty,omitempty"`
		Any   any            `json:"any,omitzero"`
		One   *int           `json:"one,omitzero"`
	}
	for _, text := range []string{`{"zero":[],"map":{}}`, `{}`, `{"zero":[1],"empty":[1],"any":1,"one":0}`} {
		value, err := decode[lists](text)
		if err != nil {
			t.Fatal(err)
		}
		if written := encode(t, value); written != text {
			t.Errorf("%s instead of %s", written, text)
		}
	}
}
