// Package main has paid orders shipped, and reminds of those that are not paid: a small handler, to
// begin from.
package main

import (
	"time"

	"foldstream"
	"foldstream/handler"
)

// What is kept of an order.
type order struct {
	Paid      bool   `json:"paid"`
	Reminders uint64 `json:"reminders"`
}

// The data of what it publishes.
type task struct {
	Order string `json:"order"`
}

// Starter handles events under orders.<order>.
func Starter(h *foldstream.Handler) {
	h.Manifest = foldstream.Manifest{
		Name:        "starter",
		Description: "Has paid orders shipped, and reminds of those that are not paid",
		Subjects:    []string{"orders.*.*"},
		Publishes:   []string{"tasks.*.*"},
		Timers:      true,
		Key:         foldstream.SubjectTokenKey(2),
	}

	// Everything it keeps, in tables. Entries of this one have keys such as order/42.
	orders := foldstream.NewTable[string, order](h, "order")

	// Handles an event such as orders.42.placed.
	foldstream.Handle(h, "placed", func(event *foldstream.Event, _ any, effects *foldstream.Effects) error {
		id := event.Token(2)
		orders.Edit(id)
		effects.SetTimer(foldstream.Timer{Name: "payment/" + id, At: event.Time.Add(30 * time.Minute)})
		return nil
	})

	foldstream.Handle(h, "paid", func(event *foldstream.Event, _ any, effects *foldstream.Effects) error {
		id := event.Token(2)
		order := orders.Edit(id)
		if order.Paid {
			return nil
		}
		order.Paid = true
		effects.CancelTimer("payment/" + id)
		effects.Publish(foldstream.Message{Subject: "tasks." + id + ".ship", Data: task{id}})
		return nil
	})

	// Half an hour has passed, and the order is not paid.
	h.OnTimer(func(timer *foldstream.Fired, effects *foldstream.Effects) error {
		id := timer.Part(2)
		orders.Edit(id).Reminders++
		effects.Publish(foldstream.Message{Subject: "tasks." + id + ".remind", Data: task{id}})
		return nil
	})

	foldstream.Query(h, "order", `How far an order is, by its name: "42"`,
		func(id string) (order, error) {
			found, known := orders.Get(id)
			if !known {
				return order{}, foldstream.ErrNotFound
			}
			return found, nil
		})
}

func init() { handler.Export(Starter) }

// A host calls what the handler exports; nothing begins here.
func main() {}
