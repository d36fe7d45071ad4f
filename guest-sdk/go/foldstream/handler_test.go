package foldstream

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// call is what an event asks a handler to do.
type call func(event *Event, effects *Effects) error

// asked is a handler that does what its events ask for: each names calls by its type.
type asked struct {
	*Harness
	calls    map[string][]call
	manifest Manifest
}

func newAsked(t T) *asked {
	a := &asked{calls: map[string][]call{}}
	a.manifest = Manifest{
		Name: "asked", Subjects: []string{"in.*.*"}, Publishes: []string{"out.>"}, Replies: true, Timers: true,
	}
	a.Harness = NewHarness(t, a.define)
	return a
}

func (a *asked) define(h *Handler) {
	h.Manifest = a.manifest
	counts := NewTable[string, uint64](h, "count")
	h.Handle(func(event *Event, effects *Effects) error {
		*counts.Edit(event.Token(2))++
		for _, call := range a.calls[event.Kind] {
			if err := call(event, effects); err != nil {
				return err
			}
		}
		return nil
	})
	h.OnTimer(func(timer *Fired, effects *Effects) error {
		data := []any{timer.Name, timer.Part(2), timer.At, timer.Time, timer.Sequence, timer.Key}
		effects.Publish(Message{Subject: "out.fired", Data: data})
		if timer.Name == "again" {
			effects.SetTimer(Timer{Name: "again", At: timer.Time.Add(10 * time.Minute)})
		}
		if strings.HasPrefix(timer.Name, "bad") {
			return errors.New("a bad timer")
		}
		return nil
	})
	Query(h, "count", "How many events of a key", func(key string) (uint64, error) {
		count, _ := counts.Get(key)
		return count, nil
	})
}

// asking makes events of which each asks for some calls.
func (a *asked) asking(calls ...[]call) []Given {
	var events []Given
	for _, some := range calls {
		kind := fmt.Sprintf("ask-%d", len(a.calls))
		a.calls[kind] = some
		events = append(events, Given{Subject: "in.a." + kind})
	}
	return events
}

func publishes(message Message) []call {
	return []call{func(_ *Event, effects *Effects) error { effects.Publish(message); return nil }}
}

// sets sets a timer, some time after its event.
func sets(name string, span time.Duration, key string) []call {
	return []call{func(event *Event, effects *Effects) error {
		effects.SetTimer(Timer{name, event.Time.Add(span), key})
		return nil
	}}
}

func cancels(name string) []call {
	return []call{func(_ *Event, effects *Effects) error { effects.CancelTimer(name); return nil }}
}

func fails(err error) []call {
	return []call{func(*Event, *Effects) error { return err }}
}

func both(calls ...[]call) []call {
	var all []call
	for _, some := range calls {
		all = append(all, some...)
	}
	return all
}

func start(t *testing.T) Timestamp {
	t.Helper()
	start, err := ParseTimestamp("2026-01-01T00:00:00Z")
	if err != nil {
		t.Fatal(err)
	}
	return start
}

func names(timers []Timer) string {
	var names []string
	for _, timer := range timers {
		names = append(names, timer.Name)
	}
	return strings.Join(names, " ")
}

func same(t *testing.T, what string, got, wanted any) {
	t.Helper()
	if !reflect.DeepEqual(got, wanted) {
		t.Errorf("%s: %v instead of %v", what, got, wanted)
	}
}

func TestMessagesHaveWhatTheyAreGiven(t *testing.T) {
	asked := newAsked(t)
	const to = "out.a.done"
	data := map[string]any{"a": []any{nil, "ë"}}
	headers := map[string]string{"x-b": "2", "x-a": "1"}
	asked.Given(asked.asking(
		publishes(Message{Subject: to}),
		publishes(Message{Subject: to, Data: data, Kind: "other", Headers: headers, Key: "k"}),
		publishes(Message{
			Subject: to, Data: "plain", NotBefore: start(t), TimeToLive: 90 * time.Second, ExpectedLast: &ExpectedLast{},
		}),
		publishes(Message{Subject: to, Data: amount{5}, ExpectedLast: &ExpectedLast{"out.a.>", 7}}),
		publishes(Message{Subject: to, Data: []byte("\xff")}),
	)...)
	same(t, "published", asked.Published(), []Published{
		{Subject: to, Kind: "done"},
		{Subject: to, Kind: "other", Data: `{"a":[null,"ë"]}`, Headers: headers, Key: "k"},
		{
			Subject: to, Kind: "done", Data: "plain", NotBefore: start(t), TimeToLive: 90 * time.Second,
			ExpectedLast: &ExpectedLast{to, 0},
		},
		{Subject: to, Kind: "done", Data: `{"amount":5}`, ExpectedLast: &ExpectedLast{"out.a.>", 7}},
		{Subject: to, Kind: "done", Data: "\xff"},
	})
	shown := asked.Published()[2].String()
	expect(t, "shown", shown, `out.a.done, done, plain, not before 2026-01-01T00:00:00.000000000Z, `+
		`time to live 1m30s, expected last 0 of "out.a.done"`)
	expect(t, "the count", asked.Answer("count", "a"), "5")
	asked.SameForAnyBatching()
}

func TestAFailingEventPublishesAndSetsNothingAndThoseBeforeItDo(t *testing.T) {
	for message, failing := range map[string][]call{
		"no":                fails(errors.New("no")),
		"not yet":           fails(Retry(errors.New("not yet"))),
		"panic: a bug (han": {func(*Event, *Effects) error { panic("a bug") }},
		"has no token 9":    {func(event *Event, _ *Effects) error { event.Token(9); return nil }},
	} {
		asked := newAsked(t)
		before := both(publishes(Message{Subject: "out.before"}), sets("kept", time.Hour, ""))
		after := both(publishes(Message{Subject: "out.lost"}), sets("lost", 0, ""), cancels("kept"), failing)
		err := asked.Try(asked.asking(before, after)...)
		if err == nil || !strings.Contains(err.Error(), message) || IsRetry(err) != (message == "not yet") {
			t.Errorf("%s: %v", message, err)
		}
		same(t, "published", asked.Published(), []Published{{Subject: "out.before", Kind: "before"}})
		expect(t, "the timers", names(asked.Timers()), "kept")
		expect(t, "the count", asked.Answer("count", "a"), "1")
	}
}

func TestValuesThatNoMessageCanHaveRejectTheEventByName(t *testing.T) {
	for message, call := range map[string][]call{
		"a message to \xff: its subject: it is not UTF-8":                publishes(Message{Subject: "\xff"}),
		"a message to out.a: Kind: it is not UTF-8":                      publishes(Message{Subject: "out.a", Kind: "\xff"}),
		"a message to out.a: Key: it is not UTF-8":                       publishes(Message{Subject: "out.a", Key: "\xff"}),
		"a message to out.a: Headers: it is not UTF-8":                   publishes(Message{Subject: "out.a", Headers: map[string]string{"a": "\xff"}}),
		"a message to out.a: Data: it is not UTF-8; data of other":       publishes(Message{Subject: "out.a", Data: "\xff"}),
		"a message to out.a: Data: amount: a text is not UTF-8":          publishes(Message{Subject: "out.a", Data: map[string]string{"amount": "\xff"}}),
		"a message to out.a: Data: func() is no type":                    publishes(Message{Subject: "out.a", Data: func() {}}),
		"TimeToLive: expected 1 to 4294967295 s, found 999ms":            publishes(Message{Subject: "out.a", TimeToLive: 999 * time.Millisecond}),
		"TimeToLive: expected 1 to 4294967295 s, found -1s":              publishes(Message{Subject: "out.a", TimeToLive: -time.Second}),
		"TimeToLive: expected 1 to 4294967295 s, found 2000000h0m0s":     publishes(Message{Subject: "out.a", TimeToLive: 2_000_000 * time.Hour}),
		"a message to out.a: ExpectedLast: it is not UTF-8":              publishes(Message{Subject: "out.a", ExpectedLast: &ExpectedLast{Subject: "\xff"}}),
		"out.a expects the last sequence of out.b, which does not cover": publishes(Message{Subject: "out.a", ExpectedLast: &ExpectedLast{Subject: "out.b"}}),
		`timer "\xff": its name or key is not UTF-8`:                     sets("\xff", 0, ""),
		`timer "a": its name or key is not UTF-8`:                        sets("a", 0, "\xff"),
		`timer "\xff": its name is not UTF-8`:                            cancels("\xff"),
	} {
		asked := newAsked(t)
		err := asked.Try(asked.asking(call)...)
		if err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v", message, err)
		}
	}
}

func TestWhatTheManifestDoesNotDeclareIsRefused(t *testing.T) {
	for message, call := range map[string][]call{
		"it publishes to out.a, which its manifest does not declare; add it to Publishes": publishes(Message{Subject: "out.a"}),
		"it sets timers, which its manifest does not declare; add Timers: true":           sets("a", 0, ""),
	} {
		silent := newAsked(t)
		silent.manifest = Manifest{Name: "silent", Subjects: []string{"in.*.*"}}
		if err := silent.Try(silent.asking(call)...); err == nil || err.Error() != message {
			t.Errorf("%s: %v", message, err)
		}
	}
}

func TestRepliesGoToTheInboxThatTheEventNamesAndNowhereElse(t *testing.T) {
	asked := newAsked(t)
	request := func(inbox string) Given {
		given := asked.asking([]call{func(event *Event, effects *Effects) error {
			effects.Reply(event, map[string]bool{"ok": true})
			return nil
		}})[0]
		given.Headers = map[string]string{"foldstream-reply-to": inbox}
		return given
	}
	nobody := request("")
	nobody.Headers = nil
	asked.Given(request("_INBOX.abc.1"), nobody)
	same(t, "published", asked.Published(), []Published{{Subject: "_INBOX.abc.1", Kind: "reply", Data: `{"ok":true}`}})
	for _, strange := range []string{
		"", "_INBOX", "_INBOX.", "_INBOX.a..b", "_INBOX.*", "_INBOX.>", "_INBOX.a b", "_INBOX.ä", "out.1",
		"_INBOX." + strings.Repeat("a", 300), "_INBOX.a\n",
	} {
		asked.Given(request(strange))
	}
	same(t, "how many", len(asked.Published()), 1)
	asked.Given(request("_INBOX.+,-/=?~!()"))
	same(t, "how many", len(asked.Published()), 2)
}

func TestTimersAreSetReplacedAndCancelledAndFireInTheOrderOfTheirTimes(t *testing.T) {
	asked := newAsked(t)
	asked.Given(asked.asking(
		sets("a/1", 10*time.Minute, ""),
		sets("b/2", time.Hour, "k"),
		sets("c/3", 10*time.Minute, ""),
		sets("a/1", 2*time.Hour, ""),
		cancels("c/3"),
		cancels("nothing"),
	)...)
	second := start(t).Add(time.Second)
	third := second.Add(2 * time.Second)
	same(t, "pending", asked.Timers(), []Timer{
		{"b/2", second.Add(time.Hour), "k"}, {"a/1", third.Add(2 * time.Hour), ""},
	})
	asked.After(30 * time.Minute)
	same(t, "how many", len(asked.Published()), 0)
	asked.After(3 * time.Hour)
	same(t, "published", asked.Published(), []Published{
		{Subject: "out.fired", Kind: "fired", Data: `["b/2","2","2026-01-01T01:00:01.000000000Z","2026-01-01T01:00:01.000000000Z",7,"k"]`},
		{Subject: "out.fired", Kind: "fired", Data: `["a/1","1","2026-01-01T02:00:03.000000000Z","2026-01-01T02:00:03.000000000Z",8,""]`},
	})
	expect(t, "the timers", names(asked.Timers()), "")
	asked.SameForAnyBatching()
}

func TestTimersOfOneTimeFireInTheOrderOfTheirNamesAndNoneBeforeItsTime(t *testing.T) {
	asked := newAsked(t)
	asked.Given(asked.asking(both(
		sets("c", time.Minute, ""), sets("a", time.Hour, ""), sets("b", time.Minute, ""),
	))...)
	expect(t, "the timers", names(asked.Timers()), "b c a")
	// The next event would come one second after the first.
	asked.After(time.Minute - time.Second - 1)
	expect(t, "the timers", names(asked.Timers()), "b c a")
	asked.After(1)
	expect(t, "the timers", names(asked.Timers()), "a")
	asked.SameForAnyBatching()
}

func TestATimerOfThePastFiresAtOnceAndTimeDoesNotGoBack(t *testing.T) {
	asked := newAsked(t)
	asked.Given(asked.asking(sets("past", -time.Hour, ""))...)
	asked.After(0)
	wanted := `["past","","2025-12-31T23:00:00.000000000Z","2026-01-01T00:00:01.000000000Z",2,""]`
	expect(t, "the message", asked.Published()[0].Data, wanted)
}

func TestATimerMayBeSetAgainWhenItFires(t *testing.T) {
	asked := newAsked(t)
	asked.Given(asked.asking(sets("again", 10*time.Minute, ""))...)
	asked.After(35 * time.Minute)
	same(t, "how many", len(asked.Published()), 3)
	same(t, "pending", asked.Timers(), []Timer{{"again", start(t).Add(40 * time.Minute), ""}})
	asked.Given(asked.asking(cancels("again"))...)
	asked.After(time.Hour)
	same(t, "how many", len(asked.Published()), 3)
	asked.SameForAnyBatching()
}

func TestATimerThatFailsStaysPendingAndDoesNothing(t *testing.T) {
	asked := newAsked(t)
	asked.Given(asked.asking(sets("bad", 10*time.Minute, ""), sets("good", 5*time.Second, ""))...)
	if err := asked.TryAfter(time.Hour); err == nil || err.Error() != "a bad timer" {
		t.Error(err)
	}
	expect(t, "the timers", names(asked.Timers()), "bad")
	same(t, "how many", len(asked.Published()), 1)
}

func TestEventsAreHandledByTheirTypes(t *testing.T) {
	typed := NewHarness(t, func(h *Handler) {
		h.Manifest = Manifest{Name: "typed", Subjects: []string{"a.*"}, Publishes: []string{"b"}}
		Handle(h, "added", func(_ *Event, added amount, effects *Effects) error {
			effects.Publish(Message{Subject: "b", Data: added})
			return nil
		})
	})
	typed.Given(Given{Subject: "a.added", Data: amount{5}}, Given{Subject: "a.other", Data: "no JSON"})
	same(t, "published", typed.Published(), []Published{{Subject: "b", Kind: "b", Data: `{"amount":5}`}})
	err := typed.Try(Given{Subject: "a.added"})
	if err == nil || !strings.Contains(err.Error(), "event 3 (a.added): missing field `amount`") {
		t.Error(err)
	}
}

func TestMistakesInHandlersAreNamed(t *testing.T) {
	for message, define := range map[string]func(){
		"handles no events":      func() { NewHarness(t, func(*Handler) {}) },
		"two functions handle":   func() { NewHarness(t, func(h *Handler) { Handle(h, "a", ignored); Handle(h, "a", ignored) }) },
		"no timers: write a fol": func() { NewHarness(t, func(p *Projection) { p.Manifest.Timers = true; On(p, "a", handler) }) },
		"publishes nothing":      func() { NewHarness(t, func(p *Projection) { p.Manifest.Replies = true; On(p, "a", handler) }) },
	} {
		func() {
			defer func() {
				if reason, _ := recover().(string); !strings.Contains(reason, message) {
					t.Errorf("%s: %v", message, reason)
				}
			}()
			define()
		}()
	}
	silent := NewHarness(t, func(h *Handler) {
		h.Manifest = Manifest{Name: "silent", Subjects: []string{"a"}, Timers: true}
		h.Handle(func(event *Event, effects *Effects) error {
			effects.SetTimer(Timer{Name: "a", At: event.Time})
			return nil
		})
	})
	silent.Given(Given{Subject: "a"})
	if err := silent.TryAfter(0); err == nil || err.Error() != "timer a fired, and this handler has no OnTimer" {
		t.Error(err)
	}
}

func ignored(*Event, any, *Effects) error { return nil }

func TestDependenceOfMessagesOnBatchesIsFound(t *testing.T) {
	for wanted, react := range map[string]func(seen int, effects *Effects){
		"the result depends on the batches: message 1 is b, b, 2 as given, and b, b, 1 in batches of 1, restarted": func(seen int, effects *Effects) {
			effects.Publish(Message{Subject: "b", Data: seen})
		},
		"the result depends on the batches: timer 2 is 1970-01-01T00:00:00.000000000Z as given, and nothing in batches of 1": func(seen int, effects *Effects) {
			effects.SetTimer(Timer{Name: fmt.Sprint(seen)})
		},
	} {
		failed := &fatal{}
		hidden := NewHarness(failed, func(h *Handler) {
			h.Manifest = Manifest{Subjects: []string{"a"}, Publishes: []string{"b"}, Timers: true}
			seen := 0
			h.Handle(func(_ *Event, effects *Effects) error {
				seen++
				react(seen, effects)
				return nil
			})
		})
		hidden.Given(Given{Subject: "a"}, Given{Subject: "a"})
		func() {
			defer func() { recover() }()
			hidden.SameForAnyBatching()
		}()
		if !strings.HasPrefix(failed.message, wanted) {
			t.Errorf("%s: %s", wanted, failed.message)
		}
	}
}

// recorder is an outbox that remembers how it was called.
type recorder struct{ calls []string }

func (r *recorder) publish(cause int, messages []message) error {
	r.calls = append(r.calls, fmt.Sprintf("%d: %d messages", cause, len(messages)))
	return nil
}

func (r *recorder) changeTimers(cause int, changes []timerChange) error {
	r.calls = append(r.calls, fmt.Sprintf("%d: %d timers", cause, len(changes)))
	return nil
}

func TestEffectsReachTheOutboxWithTheIndexOfTheirCauseAfterTheirEvent(t *testing.T) {
	recorder := &recorder{}
	m := openHandler(func(h *Handler) {
		h.Handle(func(event *Event, effects *Effects) error {
			if event.Kind != "none" {
				effects.Publish(Message{Subject: "a"})
				effects.CancelTimer("a")
				effects.Publish(Message{Subject: "b"})
			}
			if event.Kind == "bad" {
				return Retry(errors.New("not yet"))
			}
			return nil
		})
	}, newMemory(), recorder)
	failed := m.applyBatch([]Event{{Kind: "none"}, {Kind: "good"}, {Kind: "bad"}})
	if failed == nil || failed.index != 2 || !isRetry(failed.err) {
		t.Errorf("%+v", failed)
	}
	same(t, "the calls", recorder.calls, []string{"1: 2 messages", "1: 1 timers"})
}
