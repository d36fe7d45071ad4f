package saga

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"foldstream"
)

// What a definition may say, and how instances of an older one continue.

func TestInstancesOfAnOlderDefinitionContinueOrSayWhatIsMissing(t *testing.T) {
	old := tripWith(1, times(1), "hotel", "flight", "car")
	o := runs(t, old)
	o.happens("trips.1.booked", "trips.2.booked", "did.2.hotel")
	o.happens("trips.3.booked", "did.3.hotel", "did.3.flight", "trips.4.booked", "did.4.hotel")

	// The flight is gone, there is a train before it, and insurance at the end.
	o.saga = tripWith(1, times(1), "hotel", "train", "car", "insurance")
	o.Restart()
	o.happens("did.1.hotel")
	o.is("1", "running train")
	o.happens("trips.2.cancelled")
	o.is("2", "stuck flight")
	same(t, "the reason", o.instance("2").Reason, "step flight or its compensation is not in this version of the saga")
	// The cancellation is not lost: what was done before is undone.
	o.happens("trips.2.skip")
	o.is("2", "compensating hotel")
	// What is behind the furthest step is done; a step that nobody can undo gets stuck.
	o.happens("did.3.car", "refused.3.insurance", "undid.3.car")
	o.is("3", "stuck flight")
	o.happens("trips.3.skip", "undid.3.hotel")
	o.is("3", "compensated")
	o.happens("undid.4.hotel")
	o.is("4", "stuck flight")

	// The older version again: what it knows continues.
	o.saga = old
	o.Restart()
	o.happens("did.1.train")
	same(t, "the status", o.instance("1").Status, Running)
	// A stuck instance decides nothing on its own: a failure may be older than the operator's work.
	late := o.counts().Ignored["late"]
	o.happens("refused.4.flight")
	o.is("4", "stuck flight")
	same(t, "late", o.counts().Ignored["late"], late+1)
}

func TestANewerFormatIsNotTouchedAndFieldsMayBeAddedToThisOne(t *testing.T) {
	old := runs(t, usual())
	old.happens("trips.7.booked")
	continued := func(words, others string) (*orders, error) {
		entries := old.Entries("")
		if !strings.Contains(entries["saga/trip/7"], words) {
			t.Fatalf("there is no %s", words)
		}
		entries["saga/trip/7"] = strings.Replace(entries["saga/trip/7"], words, others, 1)
		o := &orders{t: t, saga: usual()}
		kept := func(h *foldstream.Handler) {
			o.define(h)
			foldstream.Migrates(h, func(_ uint32, old *foldstream.OldEntry) error { old.Keep(); return nil })
		}
		var err error
		if o.Harness, err = foldstream.NewMigrated(t, kept, 1, entries); err != nil {
			t.Fatal(err)
		}
		return o, o.Try(events("did.7.hotel")...)
	}
	o, err := continued(`"format":1`, `"format":1,"added":1`)
	if err != nil {
		t.Error(err)
	}
	o.is("7", "running flight")
	const unknown = ", which this version of the module does not know; deploy the newer one again"
	for _, one := range []struct{ words, others, wanted string }{
		{`"format":1`, `"format":2`, "was written in format 2, and this version of the module knows 1; deploy the newer one again"},
		{`"status":"running"`, `"status":"other"`, `has the status "other"` + unknown},
		{`"wait":"answer"`, `"wait":"other"`, `has the wait "other"` + unknown},
		{`"fate":"waiting"`, `"fate":"other"`, `has the fate "other"` + unknown},
	} {
		if _, err := continued(one.words, one.others); err == nil || err.Error() != "saga trip of 7 "+one.wanted {
			t.Errorf("%s: %v", one.others, err)
		}
	}
	_, err = continued(`"status":"running"`, `"status":1`)
	wanted := "the value of saga/trip/7 does not match its type: status: expected a text"
	if err == nil || !strings.HasPrefix(err.Error(), wanted) {
		t.Error(err)
	}
}

func TestMistakesInADefinitionAreNamedWhenTheHandlerIsMade(t *testing.T) {
	once := times(1)
	with := func(change func(*Saga[trip])) func(*foldstream.Handler) {
		definition := tripOf(stepOfTrip("a", once, once))
		change(&definition)
		return (&orders{saga: definition}).define
	}
	many := []Step[trip]{}
	for number := range 33 {
		many = append(many, stepOfTrip("s"+strconv.Itoa(number), once, once))
	}
	plain := &orders{saga: usual()}
	for wanted, define := range map[string]func(*foldstream.Handler){
		`name "Trip" of a saga or step`:     with(func(s *Saga[trip]) { s.Name = "Trip" }),
		`name "" of a saga or step`:         with(func(s *Saga[trip]) { s.Name = "" }),
		`name "1" of a saga or step`:        with(func(s *Saga[trip]) { s.Steps[0].Name = "1" }),
		`use 1 to 32 lower-case letters`:    with(func(s *Saga[trip]) { s.Name = strings.Repeat("t", 33) }),
		`two steps are named a; rename`:     with(func(s *Saga[trip]) { s.Steps = append(s.Steps, s.Steps[0]) }),
		`it has more than 32 steps`:         with(func(s *Saga[trip]) { s.Steps = many }),
		`step a or its compensation has a`:  with(func(s *Saga[trip]) { s.Steps[0].SucceedsOn = nil }),
		`it is done; add SucceedsOn`:        with(func(s *Saga[trip]) { s.Steps = []Step[trip]{{Name: "a"}} }),
		`or its compensation has a time-o`:  with(func(s *Saga[trip]) { s.Steps[0].Compensation.SucceedsOn = nil }),
		`compensation of step a has no Com`: with(func(s *Saga[trip]) { s.Steps[0].Compensation.Command = nil }),
		`has a negative time`:               with(func(s *Saga[trip]) { s.Steps[0].Timeout = -1 }),
		`KeepEnded is negative`:             with(func(s *Saga[trip]) { s.KeepEnded = -1 }),
		`without Subject and Kind`:          with(func(s *Saga[trip]) { s.SkipsOn = []Pattern{{}} }),
		`sets timers, which the manifest`:   func(h *foldstream.Handler) { New(h, usual()) },
		`two tables are named saga/trip`:    func(h *foldstream.Handler) { plain.define(h); New(h, usual()) },
		`two tables are named saga`: func(h *foldstream.Handler) {
			plain.define(h)
			foldstream.NewTable[string, uint64](h, "saga")
		},
	} {
		func() {
			defer func() {
				if reason := fmt.Sprint(recover()); !strings.Contains(reason, wanted) {
					t.Errorf("%s: %s", wanted, reason)
				}
			}()
			foldstream.NewHarness(t, define)
		}()
	}
	// No step waits, and all instances are kept: it needs no timers.
	foldstream.NewHarness(t, func(h *foldstream.Handler) {
		h.Handle(func(*foldstream.Event, *foldstream.Effects) error { return nil })
		New(h, Saga[trip]{Name: "quiet", StartsOn: On("a.*"), KeepEnded: Forever})
	})
}

func TestInstancesAreFoundByTheKeyThatTheSagaNames(t *testing.T) {
	started := func(change func(*Saga[trip]), data any, headers map[string]string) (string, error) {
		definition := tripOf(stepOfTrip("hotel", times(1), times(1)))
		definition.Start = func(*foldstream.Event) (trip, error) { return trip{Size: 1}, nil }
		change(&definition)
		o := &orders{t: t, saga: definition}
		o.Harness = foldstream.NewHarness(t, func(h *foldstream.Handler) {
			o.define(h)
			h.Manifest.Headers, h.Manifest.Publishes = true, []string{">"}
		})
		err := o.Try(foldstream.Given{Subject: "trips.7.booked", Data: data, Headers: headers})
		for key := range o.Entries("saga/") {
			return key, err
		}
		return "", err
	}
	by := func(rule foldstream.KeyRule) func(*Saga[trip]) {
		return func(s *Saga[trip]) { s.CorrelateBy = rule }
	}
	with := func(correlate func(*foldstream.Event) (string, error)) func(*Saga[trip]) {
		return func(s *Saga[trip]) { s.CorrelateWith = correlate }
	}
	for _, one := range []struct {
		change  func(*Saga[trip])
		data    any
		headers map[string]string
		wanted  string
	}{
		{by(foldstream.SubjectKey()), nil, nil, "saga/trip/trips.7.booked"},
		{by(foldstream.SubjectTokenKey(1)), nil, nil, "saga/trip/trips"},
		{by(foldstream.HeaderKey("trip")), nil, map[string]string{"trip": "a"}, "saga/trip/a"},
		{by(foldstream.DataPointerKey("/a~1b/1/~0")), `{"a/b": [0, {"~": "x"}]}`, nil, "saga/trip/x"},
		{by(foldstream.DataPointerKey("/id")), `{"id": 18446744073709551615}`, nil, "saga/trip/18446744073709551615"},
		{by(foldstream.DataPointerKey("/id")), `{"id": -42}`, nil, "saga/trip/-42"},
		{by(foldstream.DataPointerKey("")), `"all"`, nil, "saga/trip/all"},
		{with(func(e *foldstream.Event) (string, error) { return fmt.Sprint("k", e.Sequence), nil }), nil, nil, "saga/trip/k1"},
	} {
		if key, err := started(one.change, one.data, one.headers); err != nil || key != one.wanted {
			t.Errorf("%s instead of %s: %v", key, one.wanted, err)
		}
	}
	pointed := func(pointer string) func(*Saga[trip]) { return by(foldstream.DataPointerKey(pointer)) }
	for _, one := range []struct {
		change func(*Saga[trip])
		data   string
		wanted string
	}{
		{by(foldstream.HeaderKey("trip")), "{}", "event 1 (trips.7.booked) has no header trip"},
		{by(foldstream.SubjectTokenKey(9)), "{}", "event 1 (trips.7.booked) has no token 9"},
		{pointed("/id"), "{}", "has no text or whole number at /id"},
		{pointed("/id"), `{"id": 1.5}`, "has no text or whole number at /id"},
		{pointed("/0"), `"a"`, "has no text or whole number at /0"},
		{pointed("id"), `{"id": 1}`, "has no text or whole number at id"},
		{pointed("/01"), "[0, 1]", "has no text or whole number at /01"},
		{pointed("/2"), "[0, 1]", "has no text or whole number at /2"},
		{pointed("/id"), `{"id": 18446744073709551616}`, "expected a number that is exact"},
		{pointed("/id"), "no JSON", "event 1 (trips.7.booked): expected a value"},
		{with(func(e *foldstream.Event) (string, error) { return e.Token(9), nil }), "{}", "has no token 9"},
		{with(func(*foldstream.Event) (string, error) { return "", errors.New("no key") }), "{}", "no key"},
	} {
		if key, err := started(one.change, one.data, nil); err == nil || !strings.Contains(err.Error(), one.wanted) {
			t.Errorf("%s: %s: %v", one.wanted, key, err)
		}
	}
}

func TestAFunctionThatFailsRejectsItsEventAndChangesNothing(t *testing.T) {
	fails := errors.New("it failed")
	command := func(*Call[trip]) (foldstream.Message, error) { return foldstream.Message{}, fails }
	unwritable := func(*Call[trip]) (foldstream.Message, error) {
		return foldstream.Message{Subject: "do.7.hotel", Data: "\xff"}, nil
	}
	for _, change := range []struct {
		change   func(*Saga[trip])
		subjects []string
	}{
		{func(s *Saga[trip]) { s.Start = func(*foldstream.Event) (trip, error) { return trip{}, fails } }, []string{"trips.7.booked"}},
		{func(s *Saga[trip]) { s.Steps[0].Command = command }, []string{"trips.7.booked"}},
		{func(s *Saga[trip]) { s.Steps[0].Command = unwritable }, []string{"trips.7.booked"}},
		{func(s *Saga[trip]) { s.Steps[1].Command = command }, []string{"trips.7.booked", "did.7.hotel"}},
		{func(s *Saga[trip]) {
			s.Steps[0].OnSuccess = func(data *trip, _ *foldstream.Event) error { data.Size = 9; return fails }
		}, []string{"trips.7.booked", "did.7.hotel"}},
		{func(s *Saga[trip]) { s.Steps[0].Compensation.Command = command }, []string{"trips.7.booked", "did.7.hotel", "refused.7.flight"}},
		{func(s *Saga[trip]) { s.OnStuck = command }, []string{"trips.7.booked", "did.7.hotel", "refused.7.flight", "stays.7.hotel"}},
	} {
		definition := tripWith(1, times(1), "hotel", "flight")
		change.change(&definition)
		o := runs(t, definition)
		o.happens(change.subjects[:len(change.subjects)-1]...)
		before, messages, timers := o.Entries(""), o.Published(), o.Timers()
		err := o.Try(events(change.subjects[len(change.subjects)-1])...)
		if err == nil || !strings.Contains(err.Error(), "it failed") && !strings.Contains(err.Error(), "is not UTF-8") {
			t.Errorf("%v: %v", change.subjects, err)
		}
		same(t, "entries", o.Entries(""), before)
		same(t, "messages", o.Published(), messages)
		same(t, "timers", o.Timers(), timers)
	}
}
