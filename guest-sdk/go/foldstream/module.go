package foldstream

import (
	"errors"
	"reflect"
	"strings"
	"unsafe"
)

// Module is a [Projection] or a [Handler], while it is being defined.
type Module interface{ definition() *module }

// module is what projections and handlers share: how an instance reacts, and its state.
type module struct {
	manifest *Manifest
	state    *state
	// outbox is nil in projections.
	outbox    outbox
	reactions map[string]reaction
	// other handles events of types without a reaction.
	other   reaction
	onTimer func(*Fired, *Effects) error
	queries []query
	// migrate converts an old entry; nil in modules that do not migrate.
	migrate func(fromVersion uint32, old *OldEntry) error
}

// reaction handles an event. Projections have no effects.
type reaction func(event *Event, effects *Effects) error

// query is a query, as a host sees it.
type query struct {
	name, description string
	// answer takes arguments and returns JSON text.
	answer func(arguments string) (string, error)
}

func newModule(manifest *Manifest, backend backend, outbox outbox) module {
	return module{
		manifest:  manifest,
		state:     &state{backend: backend, event: noEvent, writable: true},
		outbox:    outbox,
		reactions: map[string]reaction{},
	}
}

// on adds a reaction to events of one type, with their data as a type of Go.
func on[T any](m *module, kind string, react func(*Event, T, *Effects) error) {
	decoder, err := codecOf(reflect.TypeFor[T]())
	if err != nil {
		panic("foldstream: events of type " + kind + ": " + err.Error())
	}
	m.add(kind, func(event *Event, effects *Effects) error {
		var data T
		if err := event.decode(decoder, unsafe.Pointer(&data)); err != nil {
			return err
		}
		return react(event, data, effects)
	})
}

// add adds a reaction to events of one type.
func (m *module) add(kind string, react reaction) {
	if _, known := m.reactions[kind]; known {
		panic("foldstream: two functions handle events of type " + kind)
	}
	m.reactions[kind] = react
}

// Query answers a query of a name: lower-case letters, digits and hyphens. The description is for
// people: what it returns, and which arguments it takes. The arguments are decoded as a type of Go;
// without arguments that is an object without fields. Return [ErrNotFound] if the state has nothing
// for them.
func Query[A, R any](m Module, name, description string, answer func(arguments A) (R, error)) {
	decoder, err := codecOf(reflect.TypeFor[A]())
	if err == nil {
		_, err = codecOf(reflect.TypeFor[R]())
	}
	if err != nil {
		panic("foldstream: query " + name + ": " + err.Error())
	}
	d := m.definition()
	for _, other := range d.queries {
		if other.name == name {
			panic("foldstream: two queries are named " + name)
		}
	}
	d.queries = append(d.queries, query{name, description, func(text string) (string, error) {
		arguments, err := decodeArguments[A](decoder, text)
		if err != nil {
			return "", InvalidArguments(err.Error())
		}
		found, err := answer(arguments)
		if d.state.failure != nil {
			// What it reads may have failed, whatever it returns.
			err = d.state.failure
		}
		if err != nil {
			return "", err
		}
		written, err := appendAny(nil, found)
		return string(written), err
	}})
}

func decodeArguments[A any](decoder *codec, text string) (arguments A, err error) {
	if strings.TrimSpace(text) != "" {
		return arguments, decoder.decodeText(text, unsafe.Pointer(&arguments))
	}
	// None were given: null for what may be absent, an object without fields for other types.
	if decoder.decodeText("null", unsafe.Pointer(&arguments)) == nil {
		return arguments, nil
	}
	return arguments, decoder.decodeText("{}", unsafe.Pointer(&arguments))
}

// failed says why a batch could not be applied completely.
type failed struct {
	// index in the batch of the event or timer that failed.
	index int
	err   error
}

// check panics if the module handles nothing.
func (m *module) check() {
	if m.other == nil && len(m.reactions) == 0 {
		panic("foldstream: the module handles no events: add foldstream.On or Apply, in a handler foldstream.Handle")
	}
}

// applyBatch handles events. After a failure the instance must not be used again.
func (m *module) applyBatch(events []Event) *failed {
	return m.each(len(events), func(index int, effects *Effects) error {
		event := &events[index]
		event.state = m.state
		if react := m.reactions[event.Kind]; react != nil {
			return react(event, effects)
		}
		if m.other != nil {
			return m.other(event, effects)
		}
		return nil
	})
}

// fire handles timers. After a failure the instance must not be used again.
func (m *module) fire(timers []Fired) *failed {
	return m.each(len(timers), func(index int, effects *Effects) error {
		timer := &timers[index]
		if m.onTimer == nil {
			return errors.New("timer " + timer.Name + " fired, and this handler has no OnTimer")
		}
		return m.onTimer(timer, effects)
	})
}

// each reacts to the events or timers of a batch, and stores what has changed.
func (m *module) each(count int, react func(index int, effects *Effects) error) *failed {
	if index, err := m.reactToAll(count, react); err != nil {
		return failedAt(index, err)
	}
	// Once for all events: a value that many of them change is encoded once.
	if err := m.state.flush(); err != nil {
		return failedAt(count-1, err)
	}
	return nil
}

// reactToAll returns the index of the first event or timer that failed.
func (m *module) reactToAll(count int, react func(index int, effects *Effects) error) (index int, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = recovered(reason)
		}
	}()
	running := goroutines()
	for index = range count {
		m.state.event = index
		if err := m.reactToOne(index, react, running); err != nil {
			return index, err
		}
		m.state.event = noEvent
		if err := m.state.makeRoom(); err != nil {
			return index, err
		}
	}
	return count, nil
}

// reactToOne reacts to an event or timer; running is how many goroutines there are.
func (m *module) reactToOne(index int, react func(index int, effects *Effects) error, running int) error {
	var effects *Effects
	if m.outbox != nil {
		effects = &Effects{state: m.state}
	}
	err := react(index, effects)
	if err == nil {
		// Before anything is passed on: what they still do belongs to this event.
		err = refuseRunning(running)
	}
	if m.state.failure != nil {
		// It came first, and the other may follow from it.
		return m.state.failure
	}
	if err != nil {
		return err
	}
	if effects == nil {
		return nil
	}
	// After success only: what fails has no effects. The host finds the cause by its index.
	effects.closed = true
	return effects.passOn(index, m.outbox)
}

func failedAt(index int, err error) *failed {
	var unwritable *unwritableError
	if errors.As(err, &unwritable) {
		index = unwritable.index
	}
	var panicked *panicError
	if errors.As(err, &panicked) {
		Error(panicked.trace)
	}
	return &failed{index, err}
}

// errUnknownQuery says that a module has no such query.
var errUnknownQuery = errors.New("unknown query")

// answer answers a query with JSON text.
func (m *module) answer(name, arguments string) (text string, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			panicked := recovered(reason)
			Error(panicked.trace)
			err = panicked
		}
	}()
	m.state.writable = false
	running := goroutines()
	for _, query := range m.queries {
		if query.name == name {
			text, err := query.answer(arguments)
			if err == nil {
				err = refuseRunning(running)
			}
			return text, err
		}
	}
	return "", errUnknownQuery
}
