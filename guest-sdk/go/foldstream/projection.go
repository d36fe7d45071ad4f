package foldstream

// Projection folds events into a read model. A function defines one: it sets the manifest, makes
// tables, and says what happens to events and how queries are answered.
//
// The result may depend on the events only: not on batch boundaries, restarts, the clock or
// randomness. So keep everything in tables and nothing in other variables; the host may replace an
// instance between any two batches.
type Projection struct {
	// Manifest is what the projection is and needs.
	Manifest Manifest

	module module
}

func (p *Projection) definition() *module { return &p.module }

// Err is the first error that a method which returns none remembered, such as [Event.Token], while an
// event, a timer or a query is handled. It rejects what is handled, so continuing is of no use.
func (p *Projection) Err() error { return p.module.state.failure }

// Apply handles all events, but those of the types for which there is a function; see [On].
func (p *Projection) Apply(apply func(event *Event) error) {
	p.module.other = func(event *Event, _ *Effects) error { return apply(event) }
}

// On handles events of one type, with their data as a type of Go. Data that does not match it
// rejects the event. Events of other types are ignored, unless [Projection.Apply] has a function for
// them.
func On[T any](p *Projection, kind string, handle func(event *Event, data T) error) {
	on(&p.module, kind, func(event *Event, data T, _ *Effects) error { return handle(event, data) })
}

// openProjection makes an instance.
func openProjection(define func(*Projection), backend backend) *module {
	p := &Projection{}
	p.module = newModule(&p.Manifest, backend, nil)
	define(p)
	p.module.check()
	if p.Manifest.isOfHandler() {
		panic("foldstream: a projection publishes nothing and sets no timers: write a foldstream.Handler")
	}
	return &p.module
}
