// Package saga runs processes of several steps that others carry out, each of which can be undone.
//
// A [Saga] defines steps. Each has a command, the events that answer it, a time-out, a retry policy and a
// compensation. [Sagas] are its instances, one for each correlation key: they publish commands, take
// answers, and set timers. If a step fails, they undo the steps before it, the last one first.
//
//	type order struct {
//		Cents uint64 `json:"cents"`
//	}
//
//	var orders = saga.Saga[order]{
//		Name:     "orders",
//		StartsOn: saga.On("orders.*.placed"),
//		Steps: []saga.Step[order]{
//			{
//				Name:       "payment",
//				Command:    command("charge"),
//				SucceedsOn: saga.On("payment.*.charged"),
//				FailsOn:    saga.On("payment.*.declined"),
//				Timeout:    30 * time.Minute,
//				Retry:      saga.RetryPolicy{Attempts: 3},
//				Compensation: &saga.Compensation[order]{
//					Command:    command("refund"),
//					SucceedsOn: saga.On("payment.*.refunded"),
//				},
//			},
//		},
//	}
//
//	func command(what string) saga.Publish[order] {
//		return func(call *saga.Call[order]) (foldstream.Message, error) {
//			return foldstream.Message{Subject: "payment." + call.Key + "." + what, Data: call.Data}, nil
//		}
//	}
//
//	// Orders charges orders.
//	func Orders(h *foldstream.Handler) {
//		h.Manifest = foldstream.Manifest{
//			Name:      "orders",
//			Subjects:  orders.Subjects(),
//			Publishes: []string{"payment.*.charge", "payment.*.refund"},
//			Timers:    true,
//			Key:       foldstream.SubjectTokenKey(2),
//		}
//		sagas := saga.New(h, orders)
//		h.Handle(func(event *foldstream.Event, effects *foldstream.Effects) error {
//			_, err := sagas.Handle(event, effects)
//			return err
//		})
//		h.OnTimer(func(timer *foldstream.Fired, effects *foldstream.Effects) error {
//			_, err := sagas.OnTimer(timer, effects)
//			return err
//		})
//	}
package saga

import (
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"foldstream"
)

// keyBytesMax is the longest correlation key as it is stored: names of timers and keys of entries have it.
const keyBytesMax = 400

// Outcome is what an event or a timer meant to a saga.
type Outcome string

const (
	// Unrelated: it is not about this saga.
	Unrelated Outcome = "unrelated"
	// Changed: it changed its instance.
	Changed Outcome = "changed"
	// Removed: its instance had ended long enough ago, and is removed.
	Removed Outcome = "removed"

	// All others changed nothing but a count.

	// Duplicate: it was there before.
	Duplicate Outcome = "duplicate"
	// Late: it answers a step that was given up or undone.
	Late Outcome = "late"
	// Early: it answers a step that was not begun.
	Early Outcome = "early"
	// Unknown: there is no instance with its key. It never started, or was removed after its end.
	Unknown Outcome = "unknown"
	// Ended: its instance has ended.
	Ended Outcome = "ended"
	// StaleTimer: a timer that its instance does not wait for any more.
	StaleTimer Outcome = "stale-timer"
)

// Handled is what an event or a timer meant to a saga.
type Handled struct {
	Outcome Outcome
	// Status of the instance, if it was changed.
	Status Status
}

// Sagas are the instances of a saga, in the state of a handler.
type Sagas[D any] struct {
	handler *foldstream.Handler
	plan    *plan[D]
	// instances have keys saga/<saga>/<key>.
	instances *foldstream.Table[string, Instance[D]]
	listing   listing
}

// New makes the instances of a saga for a handler, while it is being defined and after it has its
// manifest. It panics if the definition has a mistake, or the manifest does not declare timers.
func New[D any](h *foldstream.Handler, saga Saga[D]) *Sagas[D] {
	plan := planned(saga)
	if plan.setsTimers() && !h.Manifest.Timers {
		panic("foldstream: saga " + saga.Name + " sets timers, which the manifest does not declare; set h.Manifest " +
			"before, with Timers: true")
	}
	return &Sagas[D]{
		handler:   h,
		plan:      plan,
		instances: foldstream.NewPart[string, Instance[D]](h, "saga", saga.Name),
		listing:   newListing(h, saga.Name),
	}
}

// Handle starts an instance or lets one continue, if the event is about this saga.
//
// Events that come twice, late or early change nothing but a count. An error means that the event has no
// sound correlation key, or that a function of the saga failed.
func (s *Sagas[D]) Handle(event *foldstream.Event, effects *foldstream.Effects) (Handled, error) {
	if !matchesAny(s.plan.concerns, event) {
		return Handled{Outcome: Unrelated}, nil
	}
	key, err := s.plan.keyOf(event)
	if err = s.first(err); err != nil {
		return Handled{}, err
	}
	timer, err := s.timerName(key)
	if err != nil {
		return Handled{}, err
	}
	instance, err := s.read(key)
	if err != nil {
		return Handled{}, err
	}
	if instance != nil {
		return s.meet(event, s.transition(key, timer, event.Time, instance, effects))
	}
	if !matchesAny(s.plan.StartsOn, event) {
		return s.ignore(Unknown)
	}
	data, err := s.plan.start(event)
	if err = s.first(err); err != nil {
		return Handled{}, err
	}
	started := s.transition(key, timer, event.Time, begun(data, event.Time), effects)
	if err := started.begin(event); err != nil {
		return Handled{}, err
	}
	return s.write(nil, started)
}

// OnTimer lets an instance continue, if the timer is one of this saga.
func (s *Sagas[D]) OnTimer(timer *foldstream.Fired, effects *foldstream.Effects) (Handled, error) {
	key, found := keyOfTimer(s.plan.Name, timer.Name)
	if !found {
		return Handled{Outcome: Unrelated}, nil
	}
	instance, err := s.read(key)
	if err != nil {
		return Handled{}, err
	}
	if instance == nil || !isDue(instance.Due, timer.At) {
		return s.ignore(StaleTimer)
	}
	before := placeOf(instance, key)
	if instance.Status.HasEnded() {
		s.listing.moved(&before, nil)
		s.instances.Delete(key)
		return Handled{Outcome: Removed}, s.handler.Err()
	}
	fired := s.transition(key, timer.Name, timer.Time, instance, effects)
	if err := fired.fire(); err != nil {
		return Handled{}, err
	}
	return s.write(&before, fired)
}

// Get is the instance of a correlation key, and whether there is one.
func (s *Sagas[D]) Get(key string) (Instance[D], bool) { return s.instances.Get(key) }

// Scan begins a scan over the instances, in the order of their keys.
func (s *Sagas[D]) Scan() *foldstream.Scan[string, Instance[D]] { return s.instances.Scan() }

// first is what went wrong first: what a method of the SDK remembered, or an error.
func (s *Sagas[D]) first(err error) error {
	if remembered := s.handler.Err(); remembered != nil {
		return remembered
	}
	return err
}

// read is the instance of a key; nil if there is none.
func (s *Sagas[D]) read(key string) (*Instance[D], error) {
	instance, found := s.instances.Get(key)
	if err := s.handler.Err(); err != nil || !found {
		return nil, err
	}
	refused := func(why string) (*Instance[D], error) {
		return nil, errors.New("saga " + s.plan.Name + " of " + key + " " + why + "; deploy the newer one again")
	}
	if instance.Format > format {
		written := strconv.FormatUint(uint64(instance.Format), 10)
		return refused("was written in format " + written + ", and this version of the module knows " +
			strconv.Itoa(format))
	}
	if word := instance.unknownWord(); word != "" {
		return refused("has the " + word + ", which this version of the module does not know")
	}
	return &instance, nil
}

func (s *Sagas[D]) transition(
	key, timer string, time foldstream.Timestamp, instance *Instance[D], effects *foldstream.Effects,
) *transition[D] {
	instance.Updated = max(instance.Updated, time)
	return &transition[D]{s.plan, key, timer, instance.Updated, instance, effects}
}

func (s *Sagas[D]) meet(event *foldstream.Event, meeting *transition[D]) (Handled, error) {
	before := placeOf(meeting.instance, meeting.key)
	isLost := meeting.instance.Status != Stuck && !meeting.isKnown()
	if isLost {
		if err := meeting.lostStep(); err != nil {
			return Handled{}, err
		}
	}
	// Met as by any other stuck instance: a cancellation, or an answer to another step, must not be lost
	// because it came first.
	outcome, err := meeting.meet(event)
	if err != nil {
		return Handled{}, err
	}
	if outcome != Changed && !isLost {
		return s.ignore(outcome)
	}
	return s.write(&before, meeting)
}

func (s *Sagas[D]) write(before *place, changed *transition[D]) (Handled, error) {
	after := placeOf(changed.instance, changed.key)
	s.listing.moved(before, &after)
	s.instances.Set(changed.key, *changed.instance)
	return Handled{Changed, changed.instance.Status}, s.handler.Err()
}

func (s *Sagas[D]) ignore(why Outcome) (Handled, error) {
	s.listing.ignored(why)
	return Handled{Outcome: why}, s.handler.Err()
}

// isDue says whether an instance waits for a timer. To the microsecond: JavaScript sets and meets timers
// no more exactly.
func isDue(due, at foldstream.Timestamp) bool {
	apart := due.Sub(at)
	return due != 0 && apart <= time.Microsecond && apart >= -time.Microsecond
}

// timerName is the name of the timer of an instance: saga/<saga>/<key>.
func (s *Sagas[D]) timerName(key string) (string, error) {
	if !utf8.ValidString(key) {
		return "", errors.New("a correlation key of saga " + s.plan.Name + " is not UTF-8: " + strconv.Quote(key))
	}
	name := timerName(s.plan.Name, key)
	// What is longer than a key of a table may be needs no other message.
	if key != "" && len(name) <= keyBytesMax {
		prefix := len("saga/") + len(s.plan.Name) + len("/")
		if len(s.instances.KeyText(key))-prefix <= keyBytesMax {
			return name, s.handler.Err()
		}
	}
	begin := key
	if len(begin) > 64 {
		begin = strings.ToValidUTF8(begin[:64], "") + "…"
	}
	return "", errors.New("a correlation key of saga " + s.plan.Name + " has " + strconv.Itoa(len(key)) +
		" bytes; use 1 to about " + strconv.Itoa(keyBytesMax) + ": " + strconv.Quote(begin))
}

func timerName(saga, key string) string {
	const hex = "0123456789ABCDEF"
	name := []byte("saga/" + saga + "/")
	for _, char := range key {
		// Names of timers have no control characters, and these are more than keys escape.
		if char != '%' && !unicode.IsControl(char) {
			name = utf8.AppendRune(name, char)
			continue
		}
		for _, octet := range []byte(string(char)) {
			name = append(name, '%', hex[octet>>4], hex[octet&15])
		}
	}
	return string(name)
}

// keyOfTimer is the correlation key in the name of a timer, if the timer is one of this saga.
func keyOfTimer(saga, name string) (string, bool) {
	rest, found := strings.CutPrefix(name, "saga/"+saga+"/")
	if !found {
		return "", false
	}
	parts := strings.Split(rest, "%")
	key := []byte(parts[0])
	for _, part := range parts[1:] {
		if len(part) < 2 {
			return "", false
		}
		octet, err := strconv.ParseUint(part[:2], 16, 8)
		if err != nil {
			return "", false
		}
		key = append(append(key, byte(octet)), part[2:]...)
	}
	return string(key), utf8.Valid(key)
}
