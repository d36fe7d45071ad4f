package main

import (
	"os"
	"strings"
	"testing"

	"foldstream"
)

func place(customer, name string, cents uint64, time string) foldstream.Given {
	data := placed{name, cents}
	return foldstream.Given{Subject: "orders." + customer + ".placed", Data: data, Time: time}
}

func same(t *testing.T, what, got, wanted string) {
	t.Helper()
	if got != wanted {
		t.Errorf("%s is %s instead of %s", what, got, wanted)
	}
}

func TestOrdersAddUpPerCustomerAndDay(t *testing.T) {
	orders := foldstream.NewHarness(t, OrderTotals)
	orders.Given(
		place("ada", "1", 1_000, "2026-10-01T23:59:59Z"),
		place("ada", "2", 500, "2026-10-02T00:00:00Z"),
		place("grace", "3", 700, ""),
		foldstream.Given{Subject: "orders.ada.paid", Data: `{"order":"1","method":"card"}`},
		foldstream.Given{Subject: "orders.ada.shipped", Data: `{"order":"1","carrier":"post"}`},
	)

	ada := orders.Answer("customer", customerArguments{"ada"})
	same(t, "ada", ada, `{"orders":2,"total_cents":1500,"paid_cents":1000,"shipped":1}`)
	days := orders.Answer("days", map[string]string{"customer": "ada", "from": "2026-10-02", "to": "2026-10-30"})
	same(t, "the days", days, `[["2026-10-02",{"orders":1,"total_cents":500,"paid_cents":0,"shipped":0}]]`)
	orders.SameForAnyBatching()
}

func TestCancelledAndReturnedOrdersCountOnTheDayTheyWerePlaced(t *testing.T) {
	orders := foldstream.NewHarness(t, OrderTotals)
	orders.Given(
		place("ada", "1", 1_000, "2026-10-01T10:00:00Z"),
		place("ada", "2", 500, "2026-10-01T11:00:00Z"),
		foldstream.Given{Subject: "orders.ada.cancelled", Data: ofOrder{"1"}, Time: "2026-10-03T00:00:00Z"},
		foldstream.Given{Subject: "orders.ada.returned", Data: returned{"2", 200}},
	)

	// A second cancellation finds no order.
	orders.Given(foldstream.Given{Subject: "orders.ada.cancelled", Data: ofOrder{"1"}})
	day := orders.Get("day/ada/2026-10-01")
	same(t, "the day", day, `{"orders":1,"total_cents":300,"paid_cents":0,"shipped":0}`)
}

func TestRankingHasEachCustomerOnceAndTheLargestTotalFirst(t *testing.T) {
	orders := foldstream.NewHarness(t, OrderTotals)
	orders.Given(place("ada", "1", 100, ""), place("grace", "2", 900, ""), place("ada", "3", 5_000, ""))
	orders.Given(foldstream.Given{Subject: "orders.ada.cancelled", Data: ofOrder{"3"}})

	first := orders.Answer("top-customers", map[string]int{"limit": 1})
	same(t, "the first", first, `[{"customer":"grace","total_cents":900}]`)
	all := orders.Answer("top-customers", nil)
	same(t, "the ranking", all, `[{"customer":"grace","total_cents":900},{"customer":"ada","total_cents":100}]`)
}

func TestAnOrderThatWasNeverPlacedChangesNothing(t *testing.T) {
	orders := foldstream.NewHarness(t, OrderTotals)
	orders.Given(
		foldstream.Given{Subject: "orders.ada.paid", Data: ofOrder{"1"}},
		foldstream.Given{Subject: "orders.ada.praised"},
	)
	if stored := orders.Entries(""); len(stored) != 0 {
		t.Errorf("stored %v", stored)
	}
}

func TestAnEventWithoutItsFieldsIsRejected(t *testing.T) {
	orders := foldstream.NewHarness(t, OrderTotals)
	err := orders.Try(place("ada", "1", 1, ""), foldstream.Given{Subject: "orders.ada.placed"})
	if err == nil || err.Error() != "event 2 (orders.ada.placed): missing field `order`" {
		t.Errorf("failed with %v", err)
	}
	// What came before is kept.
	if orders.Get("customer/ada") == "" {
		t.Error("the first event is lost")
	}
}

func TestSampleEventsGiveTheSameForAnyBatching(t *testing.T) {
	samples, err := os.ReadFile("../../../../examples/order-totals/events.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	events, err := foldstream.EventsFromNDJSON(string(samples))
	if err != nil {
		t.Fatal(err)
	}
	orders := foldstream.NewHarness(t, OrderTotals)
	orders.Given(events...)
	if !strings.Contains(orders.Answer("top-customers", nil), "customer") {
		t.Error("nobody ordered")
	}
	orders.SameForAnyBatching()
}
