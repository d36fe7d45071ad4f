package foldstream

// Handler folds events into tables, as a [Projection] does, and publishes messages:
//
//	// Shipping asks to send each order that is paid.
//	func Shipping(h *foldstream.Handler) {
//		h.Manifest = foldstream.Manifest{
//			Name:      "shipping",
//			Subjects:  []string{"orders.*.*"},
//			Publishes: []string{"shipping.*.send"},
//		}
//		foldstream.Handle(h, "paid", func(event *foldstream.Event, _ any, effects *foldstream.Effects) error {
//			order := event.Token(2)
//			data := map[string]string{"order": order}
//			effects.Publish(foldstream.Message{Subject: "shipping." + order + ".send", Data: data})
//			return nil
//		})
//	}
//
//	func init() { handler.Export(Shipping) }
//
// What it writes and publishes may depend on the events only: not on batch boundaries, restarts, the
// clock or randomness. The host then sends each message once, whatever happens in between.
//
// An error rejects the event; [Retry] asks the host to try again. What the event wrote and published
// is dropped; the events before it are kept.
type Handler struct {
	// Manifest is what the handler is and needs.
	Manifest Manifest

	module module
}

func (h *Handler) definition() *module { return &h.module }

// Err is the first error that a method which returns none remembered, such as [Event.Token], while an
// event, a timer or a query is handled. It rejects what is handled, so continuing is of no use.
func (h *Handler) Err() error { return h.module.state.failure }

// Handle handles all events, but those of the types for which there is a function; see [Handle].
func (h *Handler) Handle(handle func(event *Event, effects *Effects) error) { h.module.other = handle }

// OnTimer handles timers that fire, set with [Effects.SetTimer].
//
// Firings have a place among the events, so the same rules apply: the result may depend on what was
// handled before, and on the timer, and on nothing else.
func (h *Handler) OnTimer(handle func(timer *Fired, effects *Effects) error) {
	h.module.onTimer = handle
}

// Handle handles events of one type, with their data as a type of Go. Data that does not match it
// rejects the event. Events of other types are ignored, unless [Handler.Handle] has a function for
// them.
func Handle[T any](h *Handler, kind string, handle func(event *Event, data T, effects *Effects) error) {
	on(&h.module, kind, handle)
}

// openHandler makes an instance.
func openHandler(define func(*Handler), backend backend, outbox outbox) *module {
	h := &Handler{}
	h.module = newModule(&h.Manifest, backend, outbox)
	define(h)
	h.module.check()
	return &h.module
}
