package main

import (
	"reflect"
	"testing"
	"time"

	"foldstream"
)

func TestAPaidOrderIsShippedOnce(t *testing.T) {
	starter := foldstream.NewHarness(t, Starter)
	starter.Given(
		foldstream.Given{Subject: "orders.42.placed"},
		foldstream.Given{Subject: "orders.42.paid"},
		foldstream.Given{Subject: "orders.42.paid"},
	)
	starter.After(time.Hour)

	wanted := []foldstream.Published{{Subject: "tasks.42.ship", Kind: "ship", Data: `{"order":"42"}`}}
	if got := starter.Published(); !reflect.DeepEqual(got, wanted) {
		t.Errorf("it published %v", got)
	}
	starter.SameForAnyBatching()
}

func TestAnOrderThatIsNotPaidIsRemindedOf(t *testing.T) {
	starter := foldstream.NewHarness(t, Starter)
	starter.Given(foldstream.Given{Subject: "orders.42.placed"})
	if got := starter.Published(); len(got) > 0 {
		t.Errorf("it published %v", got)
	}
	starter.After(30 * time.Minute)

	if got := starter.Published(); len(got) != 1 || got[0].Subject != "tasks.42.remind" {
		t.Errorf("it published %v", got)
	}
	if got := starter.Answer("order", "42"); got != `{"paid":false,"reminders":1}` {
		t.Errorf("the order is %s", got)
	}
	starter.SameForAnyBatching()
}
