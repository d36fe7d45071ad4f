package foldstream

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// placedData is the record of guest-sdk/conformance/data.json.
type placedData struct {
	Order string       `json:"order"`
	Cents uint64       `json:"cents"`
	Delta int64        `json:"delta,omitzero"`
	Rate  *float64     `json:"rate"`
	By    *placedOwner `json:"by"`
}

type placedOwner struct {
	Name string `json:"name"`
}

type mappedData struct {
	Counts map[string]uint64 `json:"counts"`
	Note   any               `json:"note"`
}

// storedData is placedData with all of its fields.
type storedData struct {
	Order string       `json:"order"`
	Cents uint64       `json:"cents"`
	Delta int64        `json:"delta"`
	Rate  float64      `json:"rate"`
	By    *placedOwner `json:"by"`
}

type dataVectors struct {
	Accepted []struct {
		Data   string
		Stored any
	}
	Rejected []string
	Maps     *dataVectors
}

func dataOrders(p *Projection) {
	p.Manifest = Manifest{Name: "orders", Subjects: []string{"orders.>"}}
	placed, mapped := NewValue[storedData](p, "placed"), NewValue[mappedData](p, "mapped")
	On(p, "placed", func(_ *Event, data placedData) error {
		rate := 0.5
		if data.Rate != nil {
			rate = *data.Rate
		}
		placed.Set(storedData{data.Order, data.Cents, data.Delta, rate, data.By})
		return nil
	})
	On(p, "mapped", func(_ *Event, data mappedData) error {
		mapped.Set(data)
		return nil
	})
}

func readDataVectors(t *testing.T) map[string]dataVectors {
	var vectors dataVectors
	text, err := os.ReadFile("../../conformance/data.json")
	if err == nil {
		err = json.Unmarshal(text, &vectors)
	}
	if err != nil || len(vectors.Accepted) < 10 || len(vectors.Rejected) < 20 {
		t.Fatalf("cannot read the data: %v", err)
	}
	return map[string]dataVectors{"placed": vectors, "mapped": *vectors.Maps}
}

func TestDataIsTakenAsInEveryLanguage(t *testing.T) {
	for kind, vectors := range readDataVectors(t) {
		for _, accepted := range vectors.Accepted {
			orders := NewHarness(t, dataOrders)
			if err := orders.Try(Given{Subject: "orders.1." + kind, Data: accepted.Data}); err != nil {
				t.Errorf("%s is rejected with %v", accepted.Data, err)
				continue
			}
			var stored any
			if err := json.Unmarshal([]byte(orders.Entries("")[kind]), &stored); err != nil || !reflect.DeepEqual(stored, accepted.Stored) {
				t.Errorf("%s is stored as %v: %v", accepted.Data, stored, err)
			}
		}
	}
}

func TestDataIsRejectedAsInEveryLanguage(t *testing.T) {
	for kind, vectors := range readDataVectors(t) {
		for _, data := range vectors.Rejected {
			orders := NewHarness(t, dataOrders)
			err := orders.Try(Given{Subject: "orders.1." + kind, Data: data})
			if stored := orders.Entries(""); err == nil || IsRetry(err) || len(stored) > 0 {
				t.Errorf("%s leaves %v and %v", data, stored, err)
			}
		}
	}
}

type base struct {
	By string `json:"by"`
}

func TestAnEmbeddedStructIsStoredAsWithEncodingJsonOrRefused(t *testing.T) {
	value := struct {
		base
		Cents uint64 `json:"cents"`
		Minus int    `json:"-,"`
		Left  int    `json:"-"`
	}{base{"ada"}, 5, 1, 2}
	known, err := codecOf(reflect.TypeOf(value))
	if err != nil {
		t.Fatal(err)
	}
	text, err := known.encode(nil, reflect.ValueOf(&value).UnsafePointer())
	if wanted, _ := json.Marshal(value); err != nil || string(text) != string(wanted) {
		t.Errorf("%s instead of %s: %v", text, wanted, err)
	}
	for _, refused := range []any{
		struct {
			*base
			Cents uint64
		}{},
		struct {
			time.Time
			Cents uint64
		}{},
		struct {
			base
			By string `json:"by"`
		}{},
		struct {
			By string `json:"by"`
			base
		}{},
	} {
		_, err := codecOf(reflect.TypeOf(refused))
		if err == nil || !strings.Contains(err.Error(), "stored") && !strings.Contains(err.Error(), "two fields") {
			t.Errorf("%T: %v", refused, err)
		}
	}
}
