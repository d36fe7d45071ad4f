package saga

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"foldstream"
)

// Whatever comes late, twice or not at all, each instance ends with everything done or everything
// undone.

type trip struct {
	Size    uint64  `json:"size"`
	Payment *string `json:"payment"`
}

// attempted is the data of commands.
type attempted struct {
	ID      string `json:"id"`
	Attempt uint32 `json:"attempt"`
}

// stepOfTrip has a command do.<key>.<name>, undone by undo.<key>.<name>.
func stepOfTrip(name string, retry, undo RetryPolicy) Step[trip] {
	command := func(verb string) Publish[trip] {
		return func(call *Call[trip]) (foldstream.Message, error) {
			subject := verb + "." + call.Key + "." + name
			return foldstream.Message{Subject: subject, Data: attempted{call.ID, call.Attempt}}, nil
		}
	}
	return Step[trip]{
		Name:       name,
		Command:    command("do"),
		SucceedsOn: On("did.*." + name),
		FailsOn:    On("refused.*." + name),
		RetriesOn:  On("busy.*." + name),
		Timeout:    time.Minute,
		Retry:      retry,
		Compensation: &Compensation[trip]{
			Command:    command("undo"),
			SucceedsOn: On("undid.*." + name),
			FailsOn:    On("stays.*." + name),
			Timeout:    time.Minute,
			Retry:      undo,
		},
	}
}

func times(attempts uint32) RetryPolicy { return RetryPolicy{Attempts: attempts} }

func tripOf(steps ...Step[trip]) Saga[trip] {
	ends := func(how string) Publish[trip] {
		return func(call *Call[trip]) (foldstream.Message, error) {
			return foldstream.Message{Subject: "trips." + call.Key + "." + how, Data: call.Reason}, nil
		}
	}
	return Saga[trip]{
		Name:          "trip",
		StartsOn:      On("trips.*.booked"),
		Steps:         steps,
		CancelsOn:     On("trips.*.cancelled"),
		ResumesOn:     On("trips.*.resume"),
		SkipsOn:       On("trips.*.skip"),
		OnCompleted:   ends("completed"),
		OnCompensated: ends("given-up"),
		OnStuck:       ends("stuck"),
	}
}

func tripWith(attempts uint32, undo RetryPolicy, names ...string) Saga[trip] {
	var steps []Step[trip]
	for _, name := range names {
		steps = append(steps, stepOfTrip(name, times(attempts), undo))
	}
	return tripOf(steps...)
}

func usual() Saga[trip] { return tripWith(2, times(2), "hotel", "flight", "car") }

var manifest = foldstream.Manifest{
	Name: "orders",
	// Newer versions have other steps.
	Subjects:  []string{"*.*.*"},
	Publishes: []string{"do.*.*", "undo.*.*", "trips.*.*"},
	Timers:    true,
	Key:       foldstream.SubjectTokenKey(2),
}

// orders is a handler that runs a saga, in a test.
type orders struct {
	*foldstream.Harness
	t *testing.T
	// saga may be replaced before a restart.
	saga Saga[trip]
}

func (o *orders) define(h *foldstream.Handler) {
	h.Manifest = manifest
	sagas := New(h, o.saga)
	h.Handle(func(event *foldstream.Event, effects *foldstream.Effects) error {
		_, err := sagas.Handle(event, effects)
		return err
	})
	h.OnTimer(func(timer *foldstream.Fired, effects *foldstream.Effects) error {
		_, err := sagas.OnTimer(timer, effects)
		return err
	})
	foldstream.Query(h, "statuses", "How far instances are", func(any) (map[string]Status, error) {
		found := map[string]Status{}
		for key := range sagas.Scan().All() {
			instance, _ := sagas.Get(key)
			found[key] = instance.Status
		}
		return found, nil
	})
}

func runs(t *testing.T, saga Saga[trip]) *orders {
	t.Helper()
	o := &orders{t: t, saga: saga}
	o.Harness = foldstream.NewHarness(t, o.define)
	return o
}

func events(subjects ...string) []foldstream.Given {
	var given []foldstream.Given
	for _, subject := range subjects {
		given = append(given, foldstream.Given{Subject: subject, Data: trip{Size: 1}})
	}
	return given
}

func (o *orders) happens(subjects ...string) {
	o.t.Helper()
	o.Given(events(subjects...)...)
}

func (o *orders) subjects() []string {
	var subjects []string
	for _, message := range o.Published() {
		subjects = append(subjects, message.Subject)
	}
	return subjects
}

func decoded[V any](t *testing.T, harness *foldstream.Harness, key string) V {
	t.Helper()
	type only struct {
		Of V `json:"of"`
	}
	text := harness.Get(key)
	if text == "" {
		t.Fatalf("there is no entry %s", key)
	}
	data, err := foldstream.Data[only](&foldstream.Event{Data: `{"of":` + text + "}"})
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return data.Of
}

func (o *orders) instance(key string) Instance[trip] {
	o.t.Helper()
	return decoded[Instance[trip]](o.t, o.Harness, "saga/trip/"+key)
}

func (o *orders) counts() counts {
	o.t.Helper()
	return decoded[counts](o.t, o.Harness, "saga-count/trip")
}

// is says that an instance is at a place.
func (o *orders) is(key, wanted string) {
	o.t.Helper()
	instance := o.instance(key)
	if found := strings.TrimSpace(string(instance.Status) + " " + instance.Step); found != wanted {
		o.t.Errorf("%s is %s instead of %s", key, found, wanted)
	}
}

func same(t *testing.T, what string, found, wanted any) {
	t.Helper()
	if !reflect.DeepEqual(found, wanted) {
		t.Errorf("%s: %v instead of %v", what, found, wanted)
	}
}

func (o *orders) published(from int, wanted ...string) {
	o.t.Helper()
	same(o.t, "published", o.subjects()[from:], wanted)
}

func (o *orders) ignored(wanted map[string]uint64) {
	o.t.Helper()
	same(o.t, "ignored", o.counts().Ignored, wanted)
}

func TestStepsFollowEachOtherAndTheSagaCompletes(t *testing.T) {
	o := runs(t, usual())
	o.happens("trips.7.booked")
	o.is("7", "running hotel")
	same(t, "how many timers", len(o.Timers()), 1)
	o.happens("did.7.hotel", "did.7.flight", "did.7.car")
	o.published(0, "do.7.hotel", "do.7.flight", "do.7.car", "trips.7.completed")
	o.is("7", "completed")
	o.SameForAnyBatching()
	same(t, "the query", o.Answer("statuses", nil), `{"7":"completed"}`)
	// It is kept for a day, so that late events are recognised, and then removed.
	o.happens("did.7.car", "trips.7.booked")
	o.ignored(map[string]uint64{"ended": 2})
	o.After(25 * time.Hour)
	same(t, "entries", o.Entries(""), map[string]string{
		"saga-count/trip": `{"format":1,"now":{},"ended":{"completed":1},"ignored":{"ended":2}}`,
	})
	same(t, "how many timers", len(o.Timers()), 0)
	same(t, "how many messages", len(o.Published()), 4)
}

func TestAnInstanceIsStoredAsTheDocumentationSays(t *testing.T) {
	o := runs(t, usual())
	o.happens("trips.7.booked")
	const time = "2026-01-01T00:00:00.000000000Z"
	same(t, "the instance", o.Get("saga/trip/7"), `{"format":1,"status":"running","step":"hotel","since":"`+time+
		`","started":"`+time+`","updated":"`+time+`","attempt":1,"wait":"answer","due":"2026-01-01T00:01:00.000000000Z",`+
		`"steps":[{"step":"hotel","fate":"waiting"}],"history":[{"at":"`+time+`","what":"started by booked"}],`+
		`"data":{"size":1,"payment":null}}`)
	same(t, "the index", o.Entries("saga-index/"), map[string]string{"saga-index/trip/running/hotel/" + time + "/7": "null"})
	due, _ := foldstream.ParseTimestamp("2026-01-01T00:01:00Z")
	same(t, "the timer", o.Timers(), []foldstream.Timer{{Name: "saga/trip/7", At: due, Key: "7"}})
	same(t, "the message", o.Published(), []foldstream.Published{{
		Subject: "do.7.hotel", Kind: "hotel", Data: `{"id":"trip/7/1767225600000000000/hotel","attempt":1}`, Key: "7",
	}})
}

func TestARefusalUndoesWhatWasDoneTheLastStepFirst(t *testing.T) {
	o := runs(t, usual())
	o.happens("trips.7.booked", "did.7.hotel", "did.7.flight", "refused.7.car")
	o.is("7", "compensating flight")
	same(t, "the reason", o.instance("7").Reason, "car: car")
	o.happens("undid.7.flight", "undid.7.hotel")
	o.published(3, "undo.7.flight", "undo.7.hotel", "trips.7.given-up")
	o.SameForAnyBatching()
}

func TestAStepThatTimesOutIsInDoubtAndIsUndoneToo(t *testing.T) {
	o := runs(t, usual())
	o.happens("trips.7.booked")
	o.After(5 * time.Minute)
	same(t, "published", o.subjects()[:3], []string{"do.7.hotel", "do.7.hotel", "undo.7.hotel"})
	// Its answer comes after all, before and after the confirmation.
	o.happens("did.7.hotel", "undid.7.hotel", "did.7.hotel")
	o.is("7", "compensated")
	same(t, "the reason", o.instance("7").Reason, "hotel: no answer within 60s")
	o.published(len(o.Published())-1, "trips.7.given-up")
	o.SameForAnyBatching()
}

func TestAnAnswerThatComesWhileTheNextAttemptWaitsCounts(t *testing.T) {
	o := runs(t, usual())
	o.happens("trips.7.booked", "busy.7.hotel", "busy.7.hotel")
	same(t, "it waits for", o.instance("7").Wait, WaitRetry)
	o.ignored(map[string]uint64{"duplicate": 1})
	o.happens("did.7.hotel")
	o.After(30 * time.Second)
	o.published(0, "do.7.hotel", "do.7.flight")
	o.SameForAnyBatching()
}

func TestAnswersThatComeTwiceEarlyOrForNobodyAreNamedAndChangeNothing(t *testing.T) {
	o := runs(t, usual())
	o.happens("trips.7.booked", "trips.7.booked", "did.7.hotel", "did.7.hotel")
	o.happens("did.7.car", "undid.7.hotel", "refused.7.hotel", "did.8.hotel")
	o.ignored(map[string]uint64{"duplicate": 2, "early": 2, "late": 1, "unknown": 1})
	o.published(0, "do.7.hotel", "do.7.flight")
}

func TestACompensationThatFailsIsTriedAgainAndThenWaitsForAnOperator(t *testing.T) {
	o := runs(t, usual())
	o.happens("trips.7.booked", "did.7.hotel", "refused.7.flight", "stays.7.hotel")
	o.is("7", "compensating hotel")
	o.After(5 * time.Second)
	o.happens("stays.7.hotel")
	o.is("7", "stuck hotel")
	same(t, "how many timers", len(o.Timers()), 0)
	same(t, "the reason", o.instance("7").Reason, "hotel could not be undone: hotel")
	o.happens("trips.7.resume", "undid.7.hotel")
	o.is("7", "compensated")
	same(t, "the reason", o.instance("7").Reason, "flight: flight")
	o.published(2, "undo.7.hotel", "undo.7.hotel", "trips.7.stuck", "undo.7.hotel", "trips.7.given-up")
	o.SameForAnyBatching()
}

func TestAnOperatorMaySkipAndALateConfirmationFreesAStuckInstance(t *testing.T) {
	for _, freedBy := range []string{"trips.7.skip", "undid.7.hotel"} {
		o := runs(t, tripWith(1, times(1), "hotel", "flight"))
		o.happens("trips.7.booked", "did.7.hotel", "refused.7.flight", "stays.7.hotel")
		o.is("7", "stuck hotel")
		o.happens(freedBy)
		o.is("7", "compensated")
	}
}

func TestCancellingUndoesTheCurrentStepAsWell(t *testing.T) {
	o := runs(t, usual())
	o.happens("trips.7.booked", "did.7.hotel", "trips.7.cancelled")
	o.happens("undid.7.flight", "undid.7.hotel", "trips.7.cancelled")
	same(t, "published", o.subjects()[2:4], []string{"undo.7.flight", "undo.7.hotel"})
	same(t, "the reason", o.instance("7").Reason, "cancelled: cancelled")
	o.ignored(map[string]uint64{"ended": 1})
}

func TestASagaIsNotCancelledAfterItsPivot(t *testing.T) {
	ship := stepOfTrip("ship", times(Endless), times(1))
	ship.Pivot = true
	o := runs(t, tripOf(stepOfTrip("hotel", times(1), times(1)), ship))
	o.happens("trips.7.booked", "did.7.hotel", "trips.7.cancelled")
	o.ignored(map[string]uint64{"late": 1})
	o.After(time.Hour)
	o.is("7", "running ship")
	o.happens("refused.7.ship", "undid.7.ship", "undid.7.hotel")
	o.is("7", "compensated")
	o.SameForAnyBatching()
}

func TestAStepThatRefusedAndWasDoneAfterAllIsUndoneOrShownToAnOperator(t *testing.T) {
	o := runs(t, usual())
	o.happens("trips.7.booked", "did.7.hotel", "refused.7.flight", "did.7.flight")
	o.happens("undid.7.hotel", "undid.7.flight")
	o.is("7", "compensated")
	if !strings.Contains(strings.Join(o.subjects(), " "), "undo.7.flight") {
		t.Errorf("it published %v", o.subjects())
	}
	o.happens("trips.8.booked", "refused.8.hotel", "did.8.hotel")
	o.is("8", "stuck hotel")
	// It has not ended after all.
	same(t, "ended", o.counts().Ended, map[string]uint64{"compensated": 1})
	o.happens("trips.8.resume", "undid.8.hotel")
	o.is("8", "compensated")
	o.SameForAnyBatching()
}

func TestAStepWithoutACommandWaitsForAnEventThatMayComeBeforeItsTurn(t *testing.T) {
	paidStep := Step[trip]{
		Name:       "paid",
		SucceedsOn: []Pattern{{Subject: "trips.*.x", Kind: "com.example.paid"}},
		OnSuccess: func(data *trip, event *foldstream.Event) error {
			payment, err := foldstream.Data[[1]string](event)
			data.Payment = &payment[0]
			return err
		},
		Compensation: &Compensation[trip]{Command: func(call *Call[trip]) (foldstream.Message, error) {
			return foldstream.Message{Subject: "undo." + call.Key + ".paid", Data: *call.Data.Payment}, nil
		}},
	}
	definition := tripOf(stepOfTrip("hotel", times(1), times(1)), paidStep)
	definition.OnCompleted, definition.OnCompensated, definition.OnStuck = nil, nil, nil
	o := runs(t, definition)
	paid := func(key string) {
		o.Given(foldstream.Given{Subject: "trips." + key + ".x", Data: []string{"p1"}, Kind: "com.example.paid"})
	}
	// In its turn, before its turn, and twice.
	o.happens("trips.6.booked", "did.6.hotel")
	paid("6")
	o.happens("trips.7.booked")
	paid("7")
	paid("7")
	o.happens("did.7.hotel")
	for _, key := range []string{"6", "7"} {
		o.is(key, "completed")
		same(t, "the payment", *o.instance(key).Data.Payment, "p1")
	}
	o.ignored(map[string]uint64{"duplicate": 1})
	// Another type under its subject is not meant.
	o.happens("trips.6.x")
	o.ignored(map[string]uint64{"duplicate": 1})

	// What came before its turn is undone as well, and so is what comes after the end.
	o.happens("trips.8.booked")
	paid("8")
	o.happens("refused.8.hotel")
	o.is("8", "compensated")
	o.happens("trips.9.booked", "refused.9.hotel")
	paid("9")
	o.is("9", "stuck paid")
	o.happens("trips.9.resume")
	o.is("9", "compensated")
	var undone []string
	for _, message := range o.Published() {
		if strings.HasPrefix(message.Subject, "undo.") {
			undone = append(undone, message.Subject+" "+message.Data)
		}
	}
	same(t, "undone", undone, []string{"undo.8.paid p1", "undo.9.paid p1"})
	same(t, "ended", o.counts().Ended, map[string]uint64{"compensated": 2, "completed": 2})
	o.SameForAnyBatching()
}

func TestAStepWithoutACommandThatFailsBeforeItsTurnFailsAtItsTurn(t *testing.T) {
	weather := Step[trip]{Name: "weather", SucceedsOn: On("did.*.weather"), FailsOn: On("refused.*.weather")}
	o := runs(t, tripOf(stepOfTrip("hotel", times(1), times(1)), weather))
	o.happens("trips.6.booked", "refused.6.weather", "refused.6.weather")
	o.is("6", "running hotel")
	same(t, "early failures", o.instance("6").EarlyFailures, []EarlyFailure{{"weather", "weather"}})
	o.happens("did.6.hotel", "undid.6.hotel")
	o.is("6", "compensated")
	same(t, "the reason", o.instance("6").Reason, "weather: weather")
	same(t, "early failures", len(o.instance("6").EarlyFailures), 0)
	// A success counts, before the failure and after it.
	for key, answers := range map[string][2]string{"7": {"did", "refused"}, "8": {"refused", "did"}} {
		o.happens("trips."+key+".booked", answers[0]+"."+key+".weather", answers[1]+"."+key+".weather")
		o.happens("did." + key + ".hotel")
		o.is(key, "completed")
	}
	// Another step may fail first.
	o.happens("trips.9.booked", "refused.9.weather", "refused.9.hotel", "refused.9.weather")
	same(t, "the reason", o.instance("9").Reason, "hotel: hotel")
	o.ignored(map[string]uint64{"duplicate": 1, "late": 1, "ended": 1})
	o.SameForAnyBatching()
}

func TestHostileKeysAreKeptApartAndImpossibleOnesAreRejected(t *testing.T) {
	o := runs(t, usual())
	odd := []string{"a/b", "%2F", "saga", "\u0085", "ключ", "-", "🦀", "\uFFFD"}
	for _, key := range odd {
		o.happens("trips." + key + ".booked")
	}
	same(t, "how many instances", len(o.Entries("saga/trip/")), len(odd))
	o.After(10 * time.Minute)
	for _, key := range odd {
		o.happens("undid." + key + ".hotel")
	}
	same(t, "ended", o.counts().Ended, map[string]uint64{"compensated": uint64(len(odd))})
	for key, wanted := range map[string]string{
		strings.Repeat("k", 1_000): "a correlation key of saga trip has 1000 bytes; use 1 to about 400: \"kkk",
		strings.Repeat("k", 9_000): "a correlation key of saga trip has 9000 bytes",
		"":                         "a correlation key of saga trip has 0 bytes",
		strings.Repeat("/", 200):   "a correlation key of saga trip has 200 bytes",
		"\xff":                     "a correlation key of saga trip is not UTF-8",
	} {
		err := o.Try(events("trips." + key + ".booked")...)
		if err == nil || !strings.HasPrefix(err.Error(), wanted) {
			t.Errorf("%.20q: %v", key, err)
		}
	}
	o.SameForAnyBatching()
}

func TestAnyKeyReturnsFromTheNameOfItsTimer(t *testing.T) {
	for _, key := range []string{"7", "a/b", "50%", "%2F", "\u0085\n\t", "ключ", " ", "..", "saga/x/", "🦀", "\uFFFD"} {
		name := timerName("orders", key)
		if strings.ContainsFunc(name, unicode.IsControl) {
			t.Errorf("%q has a control character", name)
		}
		if found, ours := keyOfTimer("orders", name); found != key || !ours {
			t.Errorf("%q of %q", found, key)
		}
		if _, ours := keyOfTimer("order", name); ours {
			t.Errorf("%q is of another saga", name)
		}
	}
	same(t, "the name", timerName("orders", "\u0085\n%ë"), "saga/orders/%C2%85%0A%25ë")
	for _, name := range []string{"saga/orders/%F", "saga/orders/%GG", "saga/orders/%FF"} {
		if _, ours := keyOfTimer("orders", name); ours {
			t.Errorf("%q is no name of ours", name)
		}
	}
}

func TestATimerThatAnotherLanguageSetIsMetToTheMicrosecond(t *testing.T) {
	due, err := foldstream.ParseTimestamp("2026-11-27T19:53:18.123456789Z")
	if err != nil {
		t.Fatal(err)
	}
	for _, apart := range []time.Duration{0, time.Microsecond, -time.Microsecond, 128} {
		if !isDue(due, due.Add(apart)) {
			t.Errorf("%v apart", apart)
		}
	}
	for _, at := range []foldstream.Timestamp{due.Add(1_001), due.Add(-1_001), 0} {
		if isDue(due, at) {
			t.Errorf("at %v", at)
		}
	}
	if isDue(0, 0) {
		t.Error("it waits for no timer")
	}
}

func TestATimerThatItsInstanceDoesNotWaitForChangesNothing(t *testing.T) {
	o := &orders{t: t, saga: usual()}
	o.Harness = foldstream.NewHarness(t, func(h *foldstream.Handler) {
		o.define(h)
		foldstream.Handle(h, "x", func(event *foldstream.Event, _ any, effects *foldstream.Effects) error {
			// It takes the place of the one that the instance has set.
			effects.SetTimer(foldstream.Timer{Name: "saga/trip/" + event.Token(2), At: event.Time})
			effects.SetTimer(foldstream.Timer{Name: "saga/other/" + event.Token(2), At: event.Time})
			return nil
		})
	})
	o.happens("trips.7.booked", "x.7.x", "x.8.x")
	o.After(time.Hour)
	o.is("7", "running hotel")
	o.ignored(map[string]uint64{"stale-timer": 2})
	o.published(0, "do.7.hotel")
}

func TestPausesDoubleUpToTheLongestAndTimesAreShownForPeople(t *testing.T) {
	policy := RetryPolicy{First: 300 * time.Millisecond, Longest: 2 * time.Second}
	for attempt, wanted := range []string{"300ms", "300ms", "600ms", "1.2s", "2s", "2s"} {
		same(t, "the pause", shown(policy.pauseAfter(uint32(attempt))), wanted)
	}
	same(t, "the pause", RetryPolicy{First: 1, Longest: time.Hour}.pauseAfter(Endless), time.Duration(1<<31))
	same(t, "the pause", RetryPolicy{First: time.Hour, Longest: Forever}.pauseAfter(Endless), Forever)
	same(t, "the pause", RetryPolicy{First: time.Hour, Longest: time.Minute}.pauseAfter(1), time.Minute)
	for span, wanted := range map[time.Duration]string{
		0: "0ns", 1: "1ns", 1_500: "1.5µs", 1_000_001: "1.000001ms", time.Minute: "60s", time.Hour + 1: "3600.000000001s",
	} {
		same(t, "shown", shown(span), wanted)
	}
}

func TestIndexAndCountsAgreeWithTheInstances(t *testing.T) {
	o := runs(t, usual())
	for key := range 9 {
		o.happens(fmt.Sprintf("trips.%d.booked", key+1))
	}
	o.happens("did.2.hotel", "did.3.hotel", "refused.4.hotel", "trips.5.cancelled")
	same(t, "now", o.counts().Now, map[string]uint64{
		"compensated/-": 1, "compensating/hotel": 1, "running/flight": 2, "running/hotel": 5,
	})
	waiting := o.Entries("saga-index/trip/running/hotel/")
	same(t, "how many", len(waiting), 5)
	// The longest waits come first.
	same(t, "the first", waiting["saga-index/trip/running/hotel/2026-01-01T00:00:00.000000000Z/1"], "null")
	same(t, "the last", waiting["saga-index/trip/running/hotel/2026-01-01T00:00:08.000000000Z/9"], "null")
}

func TestTheHistoryIsLimitedAndKeepsItsBeginning(t *testing.T) {
	definition := tripOf(stepOfTrip("hotel", RetryPolicy{Attempts: Endless, Longest: time.Second}, times(1)))
	o := runs(t, definition)
	o.happens("trips.7.booked")
	o.After(time.Hour)
	instance := o.instance("7")
	same(t, "how many notes", len(instance.History), notesMax)
	same(t, "the first", instance.History[0].What, "started by booked")
	same(t, "all", uint64(len(instance.History))+instance.HistoryDropped, uint64(instance.Attempt))
	if long := shortened(strings.Repeat("ë", 300)); long != strings.Repeat("ë", 200) {
		t.Errorf("%d bytes", len(long))
	}
	o.SameForAnyBatching()
}
