// Command order-totals keeps what each customer ordered, in all and per day, and who ordered most.
//
// Events come under orders.<customer>.<type>. An order is placed with its total; it may be paid and
// shipped; it may be cancelled, or returned in part. The same module in Rust is in
// examples/order-totals; both store the same bytes.
package main

import (
	"foldstream"
	"foldstream/projection"
)

type placed struct {
	Order      string `json:"order"`
	TotalCents uint64 `json:"total_cents"`
}

// Of most events only the order matters here; what else they carry is ignored.
type ofOrder struct {
	Order string `json:"order"`
}

type returned struct {
	Order       string `json:"order"`
	RefundCents uint64 `json:"refund_cents"`
}

// What is kept of a customer, and of each day of a customer.
type totals struct {
	// Orders placed and not cancelled.
	Orders uint64 `json:"orders"`
	// Their worth, less what was returned.
	TotalCents uint64 `json:"total_cents"`
	// What was paid, whatever came later.
	PaidCents uint64 `json:"paid_cents"`
	// Orders shipped.
	Shipped uint64 `json:"shipped"`
}

// What is kept of an order, as later events do not repeat it.
type order struct {
	Day        foldstream.Date `json:"day"`
	TotalCents uint64          `json:"total_cents"`
}

type orderKey struct{ Customer, Order string }

type dayKey struct {
	Customer string
	Day      foldstream.Date
}

type rankKey struct {
	TotalCents uint64
	Customer   string
}

type orderTotals struct {
	// order/<customer>/<order>
	orders *foldstream.Table[orderKey, order]
	// customer/<customer>
	customers *foldstream.Table[string, totals]
	// day/<customer>/<day>, by the day on which the order was placed
	days *foldstream.Table[dayKey, totals]
	// rank/<total>/<customer>: the keys are the ranking, from the smallest total up
	ranking *foldstream.Table[rankKey, struct{}]
}

// OrderTotals folds events under orders.<customer>.<type>.
func OrderTotals(p *foldstream.Projection) {
	p.Manifest = foldstream.Manifest{
		Name:        "order-totals",
		Description: "What each customer ordered, in all and per day, and who ordered most",
		Subjects:    []string{"orders.>"},
		Key:         foldstream.SubjectTokenKey(2),
	}
	o := &orderTotals{
		orders:    foldstream.NewTable[orderKey, order](p, "order"),
		customers: foldstream.NewTable[string, totals](p, "customer"),
		days:      foldstream.NewTable[dayKey, totals](p, "day"),
		ranking:   foldstream.NewTable[rankKey, struct{}](p, "rank"),
	}

	foldstream.On(p, "placed", o.placed)
	foldstream.On(p, "paid", func(event *foldstream.Event, paid ofOrder) error {
		o.changeOf(event, paid.Order, func(t *totals, of order) { t.PaidCents += of.TotalCents })
		return nil
	})
	foldstream.On(p, "shipped", func(event *foldstream.Event, shipped ofOrder) error {
		o.changeOf(event, shipped.Order, func(t *totals, _ order) { t.Shipped++ })
		return nil
	})
	foldstream.On(p, "cancelled", o.cancelled)
	foldstream.On(p, "returned", func(event *foldstream.Event, returned returned) error {
		o.changeOf(event, returned.Order, func(t *totals, _ order) {
			t.TotalCents -= min(t.TotalCents, returned.RefundCents)
		})
		return nil
	})

	foldstream.Query(p, "customer", `The totals of a customer: {"customer": "ada"}`, o.customer)
	foldstream.Query(p, "days",
		`A customer's totals per day: {"customer": "ada", "from": "2026-10-01", "to": "2026-10-30"}`, o.daysOf)
	foldstream.Query(p, "top-customers", `Who ordered most: {"limit": 3}`, o.topCustomers)
}

func (o *orderTotals) placed(event *foldstream.Event, placed placed) error {
	customer := event.Token(2)
	kept := order{event.Time.Date(), placed.TotalCents}
	o.orders.Set(orderKey{customer, placed.Order}, kept)
	o.change(customer, kept, func(t *totals) {
		t.Orders++
		t.TotalCents += placed.TotalCents
	})
	return nil
}

func (o *orderTotals) cancelled(event *foldstream.Event, cancelled ofOrder) error {
	o.changeOf(event, cancelled.Order, func(t *totals, of order) {
		t.Orders -= min(t.Orders, 1)
		t.TotalCents -= min(t.TotalCents, of.TotalCents)
	})
	// Whatever comes later of this order is not counted.
	o.orders.Delete(orderKey{event.Token(2), cancelled.Order})
	return nil
}

// changeOf changes the totals for an order that was placed before.
func (o *orderTotals) changeOf(event *foldstream.Event, name string, change func(*totals, order)) {
	customer := event.Token(2)
	of, found := o.orders.Get(orderKey{customer, name})
	if !found {
		// Cancelled before, or the stream was cut behind it: there is nothing to count.
		foldstream.Warn("customer " + customer + " has no order " + name)
		return
	}
	o.change(customer, of, func(t *totals) { change(t, of) })
}

// change changes the totals of a customer and of the order's day, and moves the customer in the
// ranking.
func (o *orderTotals) change(customer string, of order, change func(*totals)) {
	change(o.days.Edit(dayKey{customer, of.Day}))
	all := o.customers.Edit(customer)
	before := all.TotalCents
	change(all)
	if all.TotalCents != before {
		o.ranking.Delete(rankKey{before, customer})
		o.ranking.Set(rankKey{all.TotalCents, customer}, struct{}{})
	}
}

type customerArguments struct {
	Customer string `json:"customer"`
}

func (o *orderTotals) customer(arguments customerArguments) (totals, error) {
	found, known := o.customers.Get(arguments.Customer)
	if !known {
		return totals{}, foldstream.ErrNotFound
	}
	return found, nil
}

type daysArguments struct {
	Customer string          `json:"customer"`
	From     foldstream.Date `json:"from"`
	To       foldstream.Date `json:"to"`
}

func (o *orderTotals) daysOf(arguments daysArguments) ([][2]any, error) {
	customer := arguments.Customer
	scan := o.days.Scan().From(dayKey{customer, arguments.From}).Through(dayKey{customer, arguments.To})
	days := [][2]any{}
	for key, totals := range scan.All() {
		days = append(days, [2]any{key.Day, totals})
	}
	return days, nil
}

type topArguments struct {
	Limit *uint64 `json:"limit"`
}

type ranked struct {
	Customer   string `json:"customer"`
	TotalCents uint64 `json:"total_cents"`
}

func (o *orderTotals) topCustomers(arguments topArguments) ([]ranked, error) {
	limit := uint64(10)
	if arguments.Limit != nil {
		limit = min(*arguments.Limit, 100)
	}
	last := []ranked{}
	for key := range o.ranking.Scan().Backwards().Limit(int(limit)).All() {
		last = append(last, ranked{key.Customer, key.TotalCents})
	}
	return last, nil
}

func init() { projection.Export(OrderTotals) }

func main() {}
