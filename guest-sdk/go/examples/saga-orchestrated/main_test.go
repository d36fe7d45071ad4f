package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"foldstream"
)

var (
	placed = foldstream.Given{
		Subject: "orders.1.placed", Data: order{Cents: 4_200, Item: "lamp", Card: "valid", Address: "1 Main Street"},
	}
	paid = foldstream.Given{Subject: "payment.1.charged", Data: charged{"p-1"}}
)

func orders(t *testing.T, events ...foldstream.Given) *foldstream.Harness {
	orders := foldstream.NewHarness(t, Fulfilment)
	orders.Given(events...)
	return orders
}

func answer(subject string) foldstream.Given { return foldstream.Given{Subject: subject} }

// published checks the messages from one on.
func published(t *testing.T, orders *foldstream.Harness, from int, wanted ...string) {
	t.Helper()
	var found []string
	for _, message := range orders.Published()[from:] {
		found = append(found, strings.Replace(message.Subject, ".1.", " ", 1))
	}
	if !slices.Equal(found, wanted) {
		t.Errorf("it published %v", found)
	}
	orders.SameForAnyBatching()
}

func TestAnOrderIsChargedReservedAndShipped(t *testing.T) {
	fulfilled := orders(t, placed, paid, answer("stock.1.reserved"), answer("shipping.1.sent"))
	published(t, fulfilled, 0, "payment charge", "stock reserve", "shipping send", "orders fulfilled")
	if got := fulfilled.Get("saga/order-fulfilment/1"); !strings.HasSuffix(got, `"payment":"p-1"}}`) {
		t.Errorf("it keeps %s", got)
	}
}

func TestAPaymentThatNeverAnswersIsTriedAgainAndThenRefundedInCase(t *testing.T) {
	silent := orders(t, placed)
	silent.After(8 * time.Second)
	silent.Given(answer("payment.1.refunded"))
	published(t, silent, 0, "payment charge", "payment charge", "payment refund", "orders rejected")
	if got := silent.Published()[3].Data; got != `{"reason":"payment: no answer within 3s"}` {
		t.Errorf("it was rejected with %s", got)
	}
}

func TestGoodsThatCannotBeShippedAreRestockedAndThenRefunded(t *testing.T) {
	refused := orders(t, placed, paid, answer("stock.1.reserved"), answer("shipping.1.refused"))
	refused.Given(answer("stock.1.released"), answer("payment.1.refunded"))
	published(t, refused, 3, "stock release", "payment refund", "orders rejected")
}
