// Package main fulfils orders by orchestration: one saga asks payment, stock and shipping, one after the
// other, and undoes what was done if one of them can't do its part. The module examples/saga-orchestrated
// in Go: it publishes, sets and stores the same.
//
// Its time-outs are short so that a demonstration shows them; real ones are minutes or days.
package main

import (
	"time"

	"foldstream"
	"foldstream/handler"
	"foldstream/saga"
)

// How long each attempt waits for its answer.
const timeout = 3 * time.Second

// An order, and what its saga keeps of it.
type order struct {
	Cents   uint64 `json:"cents"`
	Item    string `json:"item"`
	Card    string `json:"card"`
	Address string `json:"address"`
	// The number of the payment, once there is one.
	Payment *string `json:"payment"`
}

// An answer of payment.
type charged struct {
	Payment string `json:"payment"`
}

// A command to a participant.
type command struct {
	// The same for each attempt, and for the command that undoes it.
	ID string `json:"id"`
	order
}

// The end of an order.
type ended struct {
	Reason string `json:"reason,omitempty"`
}

// asks makes commands to a participant.
func asks(to, what string) saga.Publish[order] {
	return func(call *saga.Call[order]) (foldstream.Message, error) {
		subject := to + "." + call.Key + "." + what
		return foldstream.Message{Subject: subject, Data: command{call.ID, call.Data}}, nil
	}
}

// ends makes messages about the end of an order.
func ends(how string) saga.Publish[order] {
	return func(call *saga.Call[order]) (foldstream.Message, error) {
		return foldstream.Message{Subject: "orders." + call.Key + "." + how, Data: ended{call.Reason}}, nil
	}
}

var (
	twice = saga.RetryPolicy{Attempts: 2, First: 500 * time.Millisecond, Longest: timeout}
	undo  = saga.RetryPolicy{Attempts: 3, First: 200 * time.Millisecond, Longest: timeout}
)

// What happens to an order, and what undoes it.
var fulfilment = saga.Saga[order]{
	Name:     "order-fulfilment",
	StartsOn: saga.On("orders.*.placed"),
	Steps: []saga.Step[order]{
		{
			Name:       "payment",
			Command:    asks("payment", "charge"),
			SucceedsOn: saga.On("payment.*.charged"),
			FailsOn:    saga.On("payment.*.declined"),
			RetriesOn:  saga.On("payment.*.unavailable"),
			OnSuccess: func(order *order, event *foldstream.Event) error {
				answer, err := foldstream.Data[charged](event)
				order.Payment = &answer.Payment
				return err
			},
			Timeout: timeout,
			Retry:   twice,
			Compensation: &saga.Compensation[order]{
				Command:    asks("payment", "refund"),
				SucceedsOn: saga.On("payment.*.refunded"),
				FailsOn:    saga.On("payment.*.refund-failed"),
				Timeout:    timeout,
				Retry:      undo,
			},
		},
		{
			Name:       "stock",
			Command:    asks("stock", "reserve"),
			SucceedsOn: saga.On("stock.*.reserved"),
			FailsOn:    saga.On("stock.*.out-of-stock"),
			Timeout:    timeout,
			Retry:      twice,
			Compensation: &saga.Compensation[order]{
				Command:    asks("stock", "release"),
				SucceedsOn: saga.On("stock.*.released"),
				Timeout:    timeout,
				Retry:      undo,
			},
		},
		{
			// Nothing brings goods back. So nobody gives up on an answer, and a customer can't cancel any more.
			Name:       "shipping",
			Pivot:      true,
			Command:    asks("shipping", "send"),
			SucceedsOn: saga.On("shipping.*.sent"),
			FailsOn:    saga.On("shipping.*.refused"),
			Timeout:    timeout,
			Retry:      saga.RetryPolicy{Attempts: saga.Endless, First: 500 * time.Millisecond, Longest: timeout},
		},
	},
	CancelsOn:     saga.On("orders.*.cancelled"),
	ResumesOn:     saga.On("orders.*.resume"),
	SkipsOn:       saga.On("orders.*.skip"),
	OnCompleted:   ends("fulfilled"),
	OnCompensated: ends("rejected"),
	OnStuck:       ends("stuck"),
}

// Fulfilment is the coordinator.
func Fulfilment(h *foldstream.Handler) {
	h.Manifest = foldstream.Manifest{
		Name:        "order-fulfilment",
		Description: "Asks payment, stock and shipping, and undoes what was done if one can't",
		Subjects:    fulfilment.Subjects(),
		Publishes: []string{
			"payment.*.charge", "payment.*.refund", "stock.*.reserve", "stock.*.release", "shipping.*.send",
			"orders.*.fulfilled", "orders.*.rejected", "orders.*.stuck",
		},
		Timers: true,
		Key:    foldstream.SubjectTokenKey(2),
	}
	sagas := saga.New(h, fulfilment)
	h.Handle(func(event *foldstream.Event, effects *foldstream.Effects) error {
		_, err := sagas.Handle(event, effects)
		return err
	})
	h.OnTimer(func(timer *foldstream.Fired, effects *foldstream.Effects) error {
		_, err := sagas.OnTimer(timer, effects)
		return err
	})
}

func init() { handler.Export(Fulfilment) }

func main() {}
