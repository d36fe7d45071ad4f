package foldstream

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
)

type placedV1 struct {
	Order      string `json:"order"`
	TotalCents int64  `json:"total_cents"`
}

type placedV2 struct {
	Order      string `json:"order"`
	TotalCents int64  `json:"total_cents"`
	Currency   string `json:"currency"`
}

type placedV3 struct {
	Order string `json:"order"`
	Total struct {
		Cents    int64  `json:"cents"`
		Currency string `json:"currency"`
	} `json:"total"`
	Lines []string `json:"lines"`
}

var placedVersions = NextVersion(
	NextVersion(FirstVersion[placedV1]("placed"), "placed.v2", func(old placedV1) (placedV2, error) {
		if old.TotalCents < 0 {
			return placedV2{}, errors.New("the total is below zero")
		}
		return placedV2{old.Order, old.TotalCents, "EUR"}, nil
	}),
	"placed.v3", func(old placedV2) (placedV3, error) {
		placed := placedV3{Order: old.Order}
		if old.Currency == "" {
			return placed, errors.New("the currency is missing")
		}
		placed.Total.Cents, placed.Total.Currency = old.TotalCents, old.Currency
		return placed, nil
	})

func versionedOrders(p *Projection) {
	p.Manifest = Manifest{Name: "orders", Subjects: []string{"orders.>"}}
	orders := NewTable[string, placedV3](p, "order")
	OnVersions(p, placedVersions, func(event *Event, placed placedV3) error {
		orders.Set(event.Token(2), placed)
		return nil
	})
}

type versionVectors struct {
	Events   []versionEvent
	Entries  map[string]string
	Rejected []struct {
		Event   versionEvent
		Message string
	}
}

type versionEvent struct{ Subject, Type, Data string }

func (e versionEvent) given() Given { return Given{Subject: e.Subject, Kind: e.Type, Data: e.Data} }

// readVersionVectors reads what old versions become in every SDK.
func readVersionVectors(t *testing.T) (vectors versionVectors) {
	text, err := os.ReadFile("../../conformance/upcasts.json")
	if err == nil {
		err = json.Unmarshal(text, &vectors)
	}
	if err != nil || len(vectors.Events) < 6 || len(vectors.Rejected) < 5 {
		t.Fatalf("cannot read the versions: %v", err)
	}
	return vectors
}

func TestAllVersionsOfAnEventGiveTheEntriesOfEveryLanguage(t *testing.T) {
	vectors := readVersionVectors(t)
	orders := NewHarness(t, versionedOrders)
	for _, event := range vectors.Events {
		orders.Given(event.given())
	}
	if got := orders.Entries(""); !maps.Equal(got, vectors.Entries) {
		t.Errorf("the entries are %q instead of %q", got, vectors.Entries)
	}
	orders.SameForAnyBatching()
}

func TestOldEventsAreRejectedAsInEveryLanguage(t *testing.T) {
	for _, rejected := range readVersionVectors(t).Rejected {
		orders := NewHarness(t, versionedOrders)
		err := orders.Try(rejected.Event.given())
		if err == nil || IsRetry(err) || !strings.HasPrefix(err.Error(), rejected.Message) {
			t.Errorf("%v is rejected with %v", rejected.Event, err)
		}
		if got := orders.Entries(""); len(got) > 0 {
			t.Errorf("%v leaves %v", rejected.Event, got)
		}
	}
}

func TestAConversionCannotAskForAnotherAttempt(t *testing.T) {
	versions := NextVersion(FirstVersion[string]("a"), "b", func(string) (string, error) {
		return "", Retry(errors.New("later"))
	})
	_, err := versions.Data(&Event{Sequence: 3, Subject: "x.a", Kind: "a", Data: `"1"`})
	if err == nil || IsRetry(err) {
		t.Fatalf("the error is %v", err)
	}
	expect(t, "the error", err.Error(), "event 3 (x.a) of type a does not become the current version: later")
}

func TestHandlersReadOldVersionsAndOtherTypesAreNone(t *testing.T) {
	shipping := NewHarness(t, func(h *Handler) {
		h.Manifest = Manifest{Name: "shipping", Subjects: []string{"orders.>"}}
		totals := NewTable[string, int64](h, "total")
		HandleVersions(h, placedVersions, func(event *Event, placed placedV3, _ *Effects) error {
			totals.Set(placed.Order, placed.Total.Cents)
			return nil
		})
	})
	shipping.Given(Given{Subject: "orders.7.placed", Data: placedV1{"7", 5}}, Given{Subject: "orders.7.paid"})
	expect(t, "the total", shipping.Get("total/7"), "5")

	paid := &Event{Sequence: 2, Subject: "orders.1.paid", Kind: "paid", Data: "{}"}
	_, err := placedVersions.Data(paid)
	if err == nil || placedVersions.Has(paid) {
		t.Fatal("paid is a version of placed")
	}
	expect(t, "the error", err.Error(), "event 2 (orders.1.paid) of type paid is no version of placed")
}

func TestTwoVersionsCannotHaveOneType(t *testing.T) {
	defer func() {
		if reason := recover(); reason != "foldstream: two versions have the type a" {
			t.Errorf("it panics with %v", reason)
		}
	}()
	same := func(old string) (string, error) { return old, nil }
	NextVersion(NextVersion(FirstVersion[string]("a"), "b", same), "a", same)
}

func TestVersionsWithoutAVersionAreAMistake(t *testing.T) {
	defer func() {
		if reason := recover(); reason != "foldstream: these Versions have none; begin with FirstVersion" {
			t.Errorf("it panics with %v", reason)
		}
	}()
	_, _ = Versions[string]{}.Data(&Event{Kind: "a"})
}
