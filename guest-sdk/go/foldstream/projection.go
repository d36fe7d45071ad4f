package foldstream

import (
	"errors"
	"reflect"
	"strings"
	"unsafe"
)

// Projection folds events into a read model. A function defines one: it sets the manifest, makes
// tables, and says what happens to events and how queries are answered.
//
// The result may depend on the events only: not on batch boundaries, restarts, the clock or
// randomness. So keep everything in tables and nothing in other variables; the host may replace an
// instance between any two batches.
type Projection struct {
	// Manifest is what the projection is and needs.
	Manifest Manifest

	state    *state
	handlers map[string]func(*Event) error
	apply    func(*Event) error
	queries  []query
}

// query is a query, as a host sees it.
type query struct {
	name, description string
	// answer takes arguments and returns JSON text.
	answer func(arguments string) (string, error)
}

// Apply handles all events, but those of the types for which there is a handler; see [On].
func (p *Projection) Apply(apply func(event *Event) error) { p.apply = apply }

// On handles events of one type, with their data as a type of Go. Data that does not match it
// rejects the event. Events of types without a handler are ignored, unless [Projection.Apply] has
// one for them.
func On[T any](p *Projection, kind string, handle func(event *Event, data T) error) {
	decoder, err := codecOf(reflect.TypeFor[T]())
	if err != nil {
		panic("foldstream: events of type " + kind + ": " + err.Error())
	}
	if _, known := p.handlers[kind]; known {
		panic("foldstream: two functions handle events of type " + kind)
	}
	p.handlers[kind] = func(event *Event) error {
		var data T
		if err := event.decode(decoder, unsafe.Pointer(&data)); err != nil {
			return err
		}
		return handle(event, data)
	}
}

// Query answers a query of a name: lower-case letters, digits and hyphens. The description is for
// people: what it returns, and which arguments it takes. The arguments are decoded as a type of Go;
// without arguments that is an object without fields. Return [ErrNotFound] if the state has nothing
// for them.
func Query[A, R any](p *Projection, name, description string, answer func(arguments A) (R, error)) {
	decoder, err := codecOf(reflect.TypeFor[A]())
	if err == nil {
		_, err = codecOf(reflect.TypeFor[R]())
	}
	if err != nil {
		panic("foldstream: query " + name + ": " + err.Error())
	}
	for _, other := range p.queries {
		if other.name == name {
			panic("foldstream: two queries are named " + name)
		}
	}
	p.queries = append(p.queries, query{name, description, func(text string) (string, error) {
		arguments, err := decodeArguments[A](decoder, text)
		if err != nil {
			return "", InvalidArguments(err.Error())
		}
		found, err := answer(arguments)
		if err == nil {
			// What it reads may have failed, whatever it returns.
			err = p.state.failure
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
	// index in the batch of the event that failed.
	index int
	err   error
}

// open makes an instance: a projection with its state.
func open(define func(*Projection), backend backend) *Projection {
	p := &Projection{
		state:    &state{backend: backend, event: noEvent, writable: true},
		handlers: map[string]func(*Event) error{},
	}
	define(p)
	if p.apply == nil && len(p.handlers) == 0 {
		panic("foldstream: the projection handles no events: add foldstream.On or Apply")
	}
	return p
}

// applyBatch applies events. After a failure the instance must not be used again.
func (p *Projection) applyBatch(events []Event) *failed {
	for first := 0; first < len(events); {
		applied, err := p.applyFrom(events, first)
		if err != nil {
			return p.failedAt(applied, err)
		}
		first = applied
	}
	// Once for all events: a value that many of them change is encoded once.
	if err := p.state.flush(); err != nil {
		var unwritable *unwritableError
		if errors.As(err, &unwritable) {
			return p.failedAt(unwritable.index, err)
		}
		return p.failedAt(len(events)-1, err)
	}
	return nil
}

// applyFrom applies events from an index on; it returns the index of the first that is not applied.
func (p *Projection) applyFrom(events []Event, first int) (index int, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = recovered(reason)
		}
	}()
	s := p.state
	for index = first; index < len(events); index++ {
		event := &events[index]
		event.state = s
		s.event = index
		if err := p.applyOne(event); err != nil {
			return index, err
		}
		if s.failure != nil {
			return index, s.failure
		}
		s.event = noEvent
		if err := s.makeRoom(); err != nil {
			return index, err
		}
	}
	return index, nil
}

func (p *Projection) applyOne(event *Event) error {
	if handle := p.handlers[event.Kind]; handle != nil {
		return handle(event)
	}
	if p.apply != nil {
		return p.apply(event)
	}
	return nil
}

func (p *Projection) failedAt(index int, err error) *failed {
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

// errUnknownQuery says that a projection has no such query.
var errUnknownQuery = errors.New("unknown query")

// answer answers a query with JSON text.
func (p *Projection) answer(name, arguments string) (text string, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			panicked := recovered(reason)
			Error(panicked.trace)
			err = panicked
		}
	}()
	p.state.writable = false
	for _, query := range p.queries {
		if query.name == name {
			return query.answer(arguments)
		}
	}
	return "", errUnknownQuery
}
