package foldstream

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

type total struct {
	Count uint64  `json:"count"`
	Last  []int64 `json:"last"`
}

type nameDay struct {
	Name string
	Day  Date
}

type amount struct {
	Amount int64 `json:"amount"`
}

// sums adds amounts.
func sums(p *Projection) {
	p.Manifest = Manifest{Name: "sums", Subjects: []string{"sums.>"}}
	totals := NewTable[string, total](p, "total")
	days := NewTable[nameDay, uint64](p, "day")
	all := NewValue[int64](p, "all")
	On(p, "added", func(event *Event, added amount) error {
		switch added.Amount {
		case 13:
			return errors.New("13 is no amount")
		case 14:
			return fmt.Errorf("not yet: %w", Retry(errors.New("away")))
		case 15:
			return fmt.Errorf("%d", []int{}[added.Amount])
		}
		name := event.Token(2)
		of := totals.Edit(name)
		of.Count++
		of.Last = append(of.Last, added.Amount)
		days.Set(nameDay{name, event.Time.Date()}, of.Count)
		*all.Edit() += added.Amount
		return nil
	})
	On(p, "removed", func(event *Event, _ any) error {
		totals.Delete(event.Token(2))
		return nil
	})
	On(p, "expired", func(event *Event, wanted int) error {
		scan := days.Scan().Under(event.Token(2)).Before(nameDay{event.Token(2), event.Time.Date() - 2})
		if count := scan.Delete(); count != wanted {
			return fmt.Errorf("%d days expired", count)
		}
		return nil
	})
	Query(p, "total", "The totals of a name", func(name string) (total, error) {
		found, known := totals.Get(name)
		if !known {
			return total{}, ErrNotFound
		}
		return found, nil
	})
	Query(p, "days", "Days of a name", func(how struct {
		Under, Starting   *string
		From, To, Through *Date
		After             *Date
		Backwards         bool `json:",omitzero"`
		Limit             *int
	}) ([]string, error) {
		scan, name := days.Scan(), ""
		if how.Under != nil {
			name = *how.Under
			scan.Under(name)
		}
		if how.Starting != nil {
			scan.StartingWith(*how.Starting)
		}
		if how.From != nil {
			scan.From(nameDay{name, *how.From})
		}
		if how.To != nil {
			scan.Before(nameDay{name, *how.To})
		}
		if how.Through != nil {
			scan.Through(nameDay{name, *how.Through})
		}
		if how.After != nil {
			scan.After(nameDay{name, *how.After})
		}
		if how.Backwards {
			scan.Backwards()
		}
		if how.Limit != nil {
			scan.Limit(*how.Limit)
		}
		var found []string
		for key := range scan.All() {
			found = append(found, key.Name+key.Day.String()[8:])
		}
		return found, nil
	})
	Query(p, "careless", "Writes", func(any) (bool, error) {
		all.Set(1)
		return true, nil
	})
}

func added(name string, of any) Given {
	return Given{Subject: "sums." + name + ".added", Data: map[string]any{"amount": of}}
}

func expect(t *testing.T, what, got, wanted string) {
	t.Helper()
	if got != wanted {
		t.Errorf("%s is %s instead of %s", what, got, wanted)
	}
}

func TestValuesAreChangedInPlaceAndStoredOnce(t *testing.T) {
	sums := NewHarness(t, sums)
	sums.Given(added("a", 1), added("a", 2), added("b", 5), Given{Subject: "sums.b.removed"},
		Given{Subject: "sums.b.other", Data: "no JSON"}, Given{Subject: "else.b.added", Data: "no JSON"})
	expect(t, "a", sums.Get("total/a"), `{"count":2,"last":[1,2]}`)
	expect(t, "b", sums.Get("total/b"), "")
	expect(t, "all", sums.Get("all"), "8")
	sums.SameForAnyBatching()
}

func TestWhatCameBeforeAFailingEventIsKept(t *testing.T) {
	for _, bad := range []struct {
		event   Given
		retry   bool
		message string
	}{
		{added("a", 13), false, "13 is no amount"},
		{added("a", 14), true, "not yet: away"},
		{added("a", 15), false, "panic: runtime error: index out of range [15] with length 0 (projection_test.go:"},
		{added("a", "x"), false, "event 2 (sums.a.added): amount: expected an integer from -9223372036854775808"},
		{Given{Subject: "sums.a.added", Data: []byte("\xff")}, false, "event 2 (sums.a.added): the data is not UTF-8"},
		{Given{Subject: "sums", Kind: "added", Data: amount{1}}, false, "subject sums has no token 2"},
		{added(strings.Repeat("ë", 512), 1), false, "table total: a key has 1030 bytes; at most 1024 are allowed"},
	} {
		define := sums
		if bad.event.Subject == "sums" {
			define = defineAll
		}
		sums := NewHarness(t, define)
		err := sums.Try(added("a", 1), bad.event, added("a", 3))
		if err == nil || !strings.Contains(err.Error(), bad.message) || IsRetry(err) != bad.retry {
			t.Errorf("%s: %v", bad.message, err)
		}
		expect(t, "a", sums.Get("total/a"), `{"count":1,"last":[1]}`)
	}
}

// defineAll is sums, which reads any subject.
func defineAll(p *Projection) {
	sums(p)
	p.Manifest.Subjects = []string{">"}
}

func TestAValueThatCannotBeStoredBlamesTheEventThatTouchedIt(t *testing.T) {
	p := openProjection(func(p *Projection) {
		rates := NewTable[string, float64](p, "rate")
		On(p, "good", func(event *Event, _ any) error { *rates.Edit(event.Token(2)) += 1; return nil })
		On(p, "bad", func(event *Event, _ any) error {
			zero := 0.0
			*rates.Edit(event.Token(2)) /= zero
			return nil
		})
	}, newMemory())
	var events []Event
	for number, kind := range []string{"good", "bad", "good"} {
		events = append(events, Event{Subject: fmt.Sprintf("a.%d", number), Kind: kind, Data: "{}"})
	}
	failed := p.applyBatch(events)
	if failed == nil || failed.index != 1 || !strings.Contains(failed.err.Error(), "the value of rate/1 cannot be stored: expected a finite number") {
		t.Errorf("%+v", failed)
	}
}

func TestWhatGetReturnsIsACopy(t *testing.T) {
	copies := NewHarness(t, func(p *Projection) {
		totals := NewTable[string, total](p, "total")
		p.Apply(func(*Event) error {
			mine := total{Last: []int64{1}}
			totals.Set("a", mine)
			totals.Set("b", mine)
			mine.Last[0] = 9
			got, _ := totals.Get("a")
			got.Last[0] = 9
			if !totals.Has("a") || totals.Has("c") {
				return errors.New("wrong entries")
			}
			return nil
		})
		p.Manifest.Subjects = []string{"a"}
	})
	copies.Given(Given{Subject: "a"})
	expect(t, "a", copies.Get("total/a"), `{"count":0,"last":[1]}`)
	expect(t, "b", copies.Get("total/b"), `{"count":0,"last":[1]}`)
}

func TestAValueHeldOverAScanIsStoredAsItIsAtTheEnd(t *testing.T) {
	scans := NewHarness(t, func(p *Projection) {
		p.Manifest.Subjects = []string{"a"}
		totals := NewTable[string, total](p, "total")
		p.Apply(func(*Event) error {
			mine := totals.Edit("a")
			mine.Count++
			for _, seen := range totals.Scan().All() {
				if seen.Count != mine.Count {
					return errors.New("a scan does not see the change")
				}
			}
			mine.Count++
			return nil
		})
	})
	scans.Given(Given{Subject: "a"}, Given{Subject: "a"})
	expect(t, "a", scans.Get("total/a"), `{"count":4,"last":[]}`)
	scans.SameForAnyBatching()
}

func TestScansCoverWhatTheySay(t *testing.T) {
	days := NewHarness(t, sums)
	for _, name := range []string{"x", "y", "y/z", "z"} {
		for day := 1; day <= 5; day++ {
			days.Given(Given{
				Subject: "sums." + name + ".added", Data: amount{1},
				Time: fmt.Sprintf("2026-11-0%dT12:00:00Z", day),
			})
		}
	}
	for how, wanted := range map[string]string{
		`{"Under":"y"}`: "y01 y02 y03 y04 y05",
		`{"Under":"y","From":"2026-11-02","To":"2026-11-04"}`:      "y02 y03",
		`{"Under":"y","From":"2026-11-02","Through":"2026-11-04"}`: "y02 y03 y04",
		`{"Under":"y","Backwards":true,"Limit":2}`:                 "y05 y04",
		`{"Under":"y","Backwards":true,"After":"2026-11-03"}`:      "y02 y01",
		`{"Under":"y","After":"2026-11-03"}`:                       "y04 y05",
		`{"Under":"y","Starting":"2026-11-03"}`:                    "y03",
		`{"Under":"y","From":"2026-11-04","To":"2026-11-02"}`:      "",
		`{"Under":"y/z","Limit":1}`:                                "y/z01",
		`{"Starting":"y","Limit":6,"Backwards":true}`:              "y05 y04 y03 y02 y01 y/z05",
		`{"Limit":0}`: "",
	} {
		answer := days.Answer("days", decoded(t, how))
		found := strings.NewReplacer(`["`, "", `"]`, "", `","`, " ", "[]", "").Replace(answer)
		expect(t, how, found, wanted)
	}
	days.Given(Given{Subject: "sums.y.expired", Data: "2", Time: "2026-11-05T00:00:00Z"})
	if left := days.Entries("day/y/"); len(left) != 3 {
		t.Errorf("%v are left", left)
	}
}

func decoded(t *testing.T, text string) any {
	t.Helper()
	value, err := decode[any](text)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestTextsAreFoundByHowTheyBegin(t *testing.T) {
	if found := behindAll("t/r\U0010ffff"); found != "t/s" {
		t.Errorf("%q", found)
	}
	if found := behindAll("t/\ud7ff"); found != "t/\ue000" {
		t.Errorf("%q", found)
	}
}

func TestTablesThatGrowTooLargeStartEmpty(t *testing.T) {
	memory := newMemory()
	p := openProjection(func(p *Projection) {
		counts := NewTable[uint64, uint64](p, "count")
		p.Apply(func(event *Event) error {
			*counts.Edit(event.Sequence % 40_000)++
			return nil
		})
	}, memory)
	for round := range uint64(4) {
		var batch []Event
		for number := range uint64(20_000) {
			batch = append(batch, Event{Sequence: round*20_000 + number})
		}
		if failed := p.applyBatch(batch); failed != nil {
			t.Fatal(failed.err)
		}
		if p.state.entries > entriesMax {
			t.Errorf("%d entries are kept", p.state.entries)
		}
	}
	for key, value := range memory.entries {
		if value != "2" {
			t.Fatalf("%s is %s", key, value)
		}
	}
	if len(memory.entries) != 40_000 {
		t.Errorf("%d entries", len(memory.entries))
	}
}

func TestQueriesSayWhatIsWrong(t *testing.T) {
	sums := NewHarness(t, sums)
	sums.Given(added("a", 1))
	expect(t, "a", sums.Answer("total", "a"), `{"count":1,"last":[1]}`)
	var invalid argumentsError
	if _, err := sums.Query("total", "nobody"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	for _, wrong := range []any{5, nil} {
		if _, err := sums.Query("total", wrong); !errors.As(err, &invalid) {
			t.Error(err)
		}
	}
	if _, err := sums.Query("careless", nil); err == nil || !strings.Contains(err.Error(), "a query cannot change table all") {
		t.Error(err)
	}
	if _, err := openProjection(nothing(t), sums.memory).answer("nothing", ""); err != errUnknownQuery {
		t.Error(err)
	}
	expect(t, "all", sums.Get("all"), "1")
}

func nothing(*testing.T) func(*Projection) {
	return func(p *Projection) { p.Apply(func(*Event) error { return nil }) }
}

func TestMistakesInDefinitionsAreNamed(t *testing.T) {
	for message, define := range map[string]func(*Projection){
		"handles no events":             func(*Projection) {},
		"two tables are named":          func(p *Projection) { NewValue[int](p, "t"); NewTable[string, int](p, "t") },
		"lower-case letters":            func(p *Projection) { NewValue[int](p, "T") },
		"cannot be a key":               func(p *Projection) { NewTable[float64, int](p, "t") },
		"is no type that can be stored": func(p *Projection) { NewTable[string, chan int](p, "t") },
		"two queries are named":         func(p *Projection) { careless(p); careless(p) },
		"two functions handle":          func(p *Projection) { On(p, "a", handler); On(p, "a", handler) },
	} {
		func() {
			defer func() {
				if reason, _ := recover().(string); !strings.Contains(reason, message) {
					t.Errorf("%s: %v", message, reason)
				}
			}()
			openProjection(define, newMemory())
		}()
	}
}

func careless(p *Projection) {
	Query(p, "q", "", func(any) (any, error) { return nil, nil })
}

func handler(*Event, any) error { return nil }

// fatal is a test that remembers how it failed.
type fatal struct{ message string }

func (*fatal) Helper() {}
func (f *fatal) Fatalf(format string, arguments ...any) {
	f.message = fmt.Sprintf(format, arguments...)
	panic(f)
}

func TestDependenceOnBatchesIsFound(t *testing.T) {
	failed := &fatal{}
	hidden := NewHarness(failed, func(p *Projection) {
		p.Manifest.Subjects = []string{"a"}
		counts, seen := NewTable[string, int](p, "count"), 0
		p.Apply(func(*Event) error {
			seen++
			counts.Set("a", seen)
			return nil
		})
	})
	hidden.Given(Given{Subject: "a"}, Given{Subject: "a"})
	defer func() {
		recover()
		wanted := "the result depends on the batches: count/a is 2 as given, and 1 in batches of 1, restarted"
		if !strings.HasPrefix(failed.message, wanted) {
			t.Error(failed.message)
		}
	}()
	hidden.SameForAnyBatching()
}

func TestSubjectsMatchPatterns(t *testing.T) {
	for pattern, subjects := range map[string][2]string{
		"a.b":   {"a.b", "a a.c a.b.c b.b"},
		"a.*":   {"a.b a.c", "a b.a a.b.c"},
		"a.>":   {"a.b a.b.c", "a b.c"},
		">":     {"a a.b", ""},
		"*.b.>": {"a.b.c x.b.c.d", "a.b a.c.d"},
	} {
		for place, wanted := range []bool{true, false} {
			for _, subject := range strings.Fields(subjects[place]) {
				if subjectMatches(pattern, subject) != wanted {
					t.Errorf("%s and %s", pattern, subject)
				}
			}
		}
	}
}

func TestEventsAreReadFromLines(t *testing.T) {
	events, err := EventsFromNDJSON(`{"subject":"sums.a.b","type":"added","time":"2026-11-23T00:00:00Z","data":{"amount":2}}` + "\n\n")
	if err != nil {
		t.Fatal(err)
	}
	sums := NewHarness(t, sums)
	sums.Given(events...)
	expect(t, "the day", sums.Get("day/a/2026-11-23"), "1")
	if _, err := EventsFromNDJSON("{\"subject\":\"a\"}\n{}"); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Error(err)
	}
}

func TestMessagesForPeopleAreUTF8(t *testing.T) {
	for given, wanted := range map[string]string{"a🦀"[:3]: "a\uFFFD", "\xffë": "\uFFFDë", "whole ë": "whole ë"} {
		if got := inUTF8(given); got != wanted {
			t.Errorf("%q is %q", given, got)
		}
	}
}
