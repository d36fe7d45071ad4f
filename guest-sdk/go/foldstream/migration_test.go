package foldstream

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// addedAmount is the data of an event add.x.
type addedAmount struct {
	Name   string `json:"name"`
	Day    uint32 `json:"day"`
	Amount uint64 `json:"amount"`
}

type nameThenDay struct {
	Name string
	Day  uint32
}

type dayThenName struct {
	Day  uint32
	Name string
}

// first is version 1: all in one table, amounts as text.
func first(p *Projection) {
	p.Manifest = Manifest{Name: "amounts", Subjects: []string{"add.*"}}
	rows := NewTable[nameThenDay, string](p, "row")
	total := NewValue[uint64](p, "total")
	On(p, "x", func(_ *Event, added addedAmount) error {
		*total.Edit() += added.Amount
		row := rows.Edit(nameThenDay{added.Name, added.Day})
		before, _ := strconv.ParseUint(*row, 10, 64)
		*row = strconv.FormatUint(before+added.Amount, 10)
		return nil
	})
}

// second is version 2: by day and name, amounts as numbers; the total has another name.
func second(p *Projection) {
	p.Manifest = Manifest{Name: "amounts", Subjects: []string{"add.*"}, StateVersion: 2}
	days := NewTable[dayThenName, uint64](p, "day")
	sum := NewValue[uint64](p, "sum")
	On(p, "x", func(_ *Event, added addedAmount) error {
		*sum.Edit() += added.Amount
		*days.Edit(dayThenName{added.Day, added.Name}) += added.Amount
		return nil
	})
	Migrates(p, func(fromVersion uint32, old *OldEntry) error {
		if fromVersion != 1 {
			return UnknownVersion(fromVersion)
		}
		if key, text, found := FromTable[nameThenDay, string](old, "row"); found {
			amount, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				return err
			}
			days.Set(dayThenName{key.Day, key.Name}, amount)
		}
		if total, found := FromValue[uint64](old, "total"); found {
			sum.Set(total)
		}
		return nil
	})
}

func TestMigratingGivesWhatFoldingGivesAndContinuesFromThere(t *testing.T) {
	old, folded := NewHarness(t, first), NewHarness(t, second)
	// Names that are escaped in keys, and an entry that a later version has in another order.
	for _, name := range []string{"b", "a/b", "a", "100 %", "b"} {
		event := Given{Subject: "add.x", Data: addedAmount{name, uint32(7 - len(name)), 5}}
		old.Given(event)
		folded.Given(event)
	}
	migrated, err := NewMigrated(t, second, 1, old.Entries(""))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the entries", migrated.Entries(""), folded.Entries(""))
	expect(t, "b", migrated.Get("day/0000000006/b"), "10")
	migrated.Given(Given{Subject: "add.x", Data: addedAmount{"b", 6, 1}})
	expect(t, "b", migrated.Get("day/0000000006/b"), "11")
	expect(t, "the sum", migrated.Get("sum"), "26")
	migrated.SameForAnyBatching()
}

func TestRefusalsOfMigrationsSayWhy(t *testing.T) {
	for _, one := range []struct {
		version             uint32
		key, value, message string
	}{
		{7, "total", "1", "state version 7 is unknown to this version of the module"},
		{1, "row/a/1", `"5"`, "the key row/a/1 does not match its old type: expected the 10 digits of a number in the key"},
		{1, "row/a", `"5"`, "the key row/a does not match its old type: expected 2 parts in the key"},
		{1, "row/a/0000000001", "5", "the value of row/a/0000000001 does not match its old type: expected a text, found a number"},
		{1, "row/a/0000000001", "\xff", "the value of row/a/0000000001 does not match its old type: it is not UTF-8"},
		{1, "total", "-1", "the value of total does not match its old type: expected an integer from 0 to 18446744073709551615, found -1"},
		{1, "row/a/0000000001", `"five"`, `strconv.ParseUint: parsing "five": invalid syntax`},
	} {
		_, err := NewMigrated(t, second, one.version, map[string]string{one.key: one.value})
		if err == nil || err.Error() != one.message {
			t.Errorf("%s: %v", one.message, err)
		}
	}
}

// anything does with an entry what its value says.
func anything(p *Projection) {
	p.Manifest = Manifest{Name: "anything", Subjects: []string{">"}}
	where := NewTable[string, []bool](p, "where")
	long := NewTable[string, any](p, "long")
	same := NewValue[string](p, "same")
	p.Apply(func(*Event) error { return nil })
	Migrates(p, func(_ uint32, old *OldEntry) error {
		switch what, _ := FromValue[string](old, old.Key); what {
		case "keep":
			old.Keep()
		case "where":
			where.Set(old.Key, []bool{old.IsIn("t"), old.IsIn("t-x")})
		case "same":
			same.Set(old.Key)
		case "both":
			same.Set("first")
			old.Keep()
		case "long":
			long.Set(strings.Repeat("x", 1_020), nil)
		case "unwritable":
			long.Set("a", func() {})
		case "get":
			where.Get("a")
		case "has":
			where.Has("a")
		case "edit":
			where.Edit("a")
		case "delete":
			where.Delete("a")
		case "scan":
			for range where.Scan().All() {
			}
		case "clear":
			where.Scan().Delete()
		case "fail":
			where.Get("a")
			return errors.New("it continues")
		case "panic":
			panic("a bug")
		}
		return nil
	})
}

func migrated(t *testing.T, old map[string]string) map[string]string {
	t.Helper()
	quoted := map[string]string{}
	for key, value := range old {
		quoted[key] = strconv.Quote(value)
	}
	harness, err := NewMigrated(t, anything, 1, quoted)
	if err != nil {
		t.Fatal(err)
	}
	return harness.Entries("")
}

func TestOldEntriesAreKeptAsTheyAreOrLeftOut(t *testing.T) {
	found := migrated(t, map[string]string{"a/1": "keep", "a/2": "drop", "b": "keep"})
	same(t, "the entries", found, map[string]string{"a/1": `"keep"`, "b": `"keep"`})
	// What is no text stays what it is.
	page := []OldEntry{{Key: "a", Value: "\xff", isBytes: true}}
	memory := newMemory()
	kept, err := openProjection(func(p *Projection) {
		anything(p)
		p.module.migrate = func(_ uint32, old *OldEntry) error { old.Keep(); return nil }
	}, memory).migrateAll(1, page)
	if err != nil || len(kept) != 1 || kept[0] != (write{key: "a", value: "\xff", isBytes: true}) {
		t.Errorf("%v: %v", kept, err)
	}
}

func TestATableHasWhatFollowsItsNameAndASlash(t *testing.T) {
	found := migrated(t, map[string]string{"t": "where", "t-x/1": "where", "t/1": "where", "tt/1": "where"})
	same(t, "the entries", found, map[string]string{
		"where/t": "[true,false]", "where/t%2F1": "[true,false]",
		"where/t-x%2F1": "[false,true]", "where/tt%2F1": "[false,false]",
	})
}

func TestLaterEntriesOfOneKeyWinInTheOrderOfTheOldKeys(t *testing.T) {
	same(t, "the entries", migrated(t, map[string]string{"b": "same", "a": "same"}), map[string]string{"same": `"b"`})
	same(t, "the entries", migrated(t, map[string]string{"same": "both"}), map[string]string{"same": `"both"`})
}

func TestAMigrationOnlySetsEntriesThatATableCouldHave(t *testing.T) {
	reads := "a migration cannot read or remove entries of table where; it only sets them"
	for what, message := range map[string]string{
		"long":       "table long: a key has 1025 bytes; at most 1024 are allowed",
		"unwritable": "the value of long/a cannot be stored: func() is no type that can be stored",
		"get":        reads, "has": reads, "edit": reads, "delete": reads, "scan": reads, "clear": reads, "fail": reads,
		"panic": "panic: a bug (migration_test.go:",
	} {
		_, err := NewMigrated(t, anything, 1, map[string]string{"a": strconv.Quote(what)})
		if err == nil || !strings.HasPrefix(err.Error(), message) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestMistakesInMigrationsAreNamed(t *testing.T) {
	_, err := NewMigrated(t, first, 1, nil)
	if err == nil || err.Error() != "the module has no migration: call migration.Define where it makes its tables" {
		t.Error(err)
	}
	defer func() {
		if reason := fmt.Sprint(recover()); reason != "foldstream: two functions migrate" {
			t.Error(reason)
		}
	}()
	NewHarness(t, func(p *Projection) { second(p); Migrates(p, nil) })
}

// counted counts goroutines, as a component does.
func counted(t *testing.T) {
	watchesGoroutines = true
	// A component has one thread: on several, a goroutine that has sent its last message may still run.
	threads := runtime.GOMAXPROCS(1)
	t.Cleanup(func() {
		watchesGoroutines = false
		runtime.GOMAXPROCS(threads)
	})
	// Those of tests before end now: one that ended during a call would hide one that it leaves behind.
	for range turnsMax {
		runtime.Gosched()
	}
}

func TestAGoroutineThatNothingWaitsForIsRefused(t *testing.T) {
	counted(t)
	stop := make(chan bool)
	defer close(stop)
	leave := func() { go func() { <-stop }() }
	// One that ends, although it has not yet when its last message is there.
	finish := func() {
		numbers := make(chan int)
		go func() { numbers <- 1; runtime.Gosched() }()
		<-numbers
	}
	const refused = "a goroutine is still running, and nothing here waits for it"
	expectRefusal := func(what string, err error) {
		t.Helper()
		if err == nil || err.Error() != refused {
			t.Errorf("%s: %v", what, err)
		}
	}
	asked := newAsked(t)
	does := func(what func()) []call {
		return []call{func(*Event, *Effects) error { what(); return nil }}
	}
	asked.Given(asked.asking(does(finish))...)
	expectRefusal("an event", asked.Try(asked.asking(does(finish), does(leave))...))
	expect(t, "the count", asked.Answer("count", "a"), "2")
	// Those of before are no fault of what comes now.
	asked.Given(asked.asking(does(finish))...)

	waiting := func(p *Projection) {
		anything(p)
		Query(p, "leave", "Leaves a goroutine", func(any) (bool, error) { leave(); return true, nil })
		Query(p, "finish", "Leaves none", func(any) (bool, error) { finish(); return true, nil })
		p.module.migrate = func(_ uint32, old *OldEntry) error {
			old.Keep()
			if old.Value == `"leave"` {
				leave()
			} else {
				finish()
			}
			return nil
		}
	}
	harness, err := NewMigrated(t, waiting, 1, map[string]string{"a": `"finish"`})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the answer", harness.Answer("finish", nil), "true")
	_, err = harness.Query("leave", nil)
	expectRefusal("a query", err)
	_, err = NewMigrated(t, waiting, 1, map[string]string{"a": `"leave"`})
	expectRefusal("a migration", err)
}

func TestWhatAGoroutineDoesBeforeItEndsBelongsToItsEvent(t *testing.T) {
	counted(t)
	asked := newAsked(t)
	later := func(do func(effects *Effects)) []call {
		return []call{func(_ *Event, effects *Effects) error {
			go func() { runtime.Gosched(); do(effects) }()
			return nil
		}}
	}
	publishing := later(func(effects *Effects) { effects.Publish(Message{Subject: "out.late"}) })
	asked.Given(asked.asking(publishing)...)
	same(t, "published", asked.Published(), []Published{{Subject: "out.late", Kind: "late"}})
	// A mistake of the goroutine rejects its own event, and not the next one.
	mistaken := later(func(effects *Effects) { effects.Publish(Message{Subject: "out.a", Key: "\xff"}) })
	err := asked.Try(asked.asking(mistaken, fails(errors.New("the next one")))...)
	if err == nil || !strings.Contains(err.Error(), "out.a") {
		t.Error(err)
	}
}

func TestEffectsOfAnEarlierEventRejectTheOneThatUsesThem(t *testing.T) {
	for name, use := range map[string]func(*Effects){
		"a message":     func(effects *Effects) { effects.Publish(Message{Subject: "out.a"}) },
		"a timer":       func(effects *Effects) { effects.SetTimer(Timer{Name: "a"}) },
		"no more timer": func(effects *Effects) { effects.CancelTimer("a") },
	} {
		asked := newAsked(t)
		var kept *Effects
		keeps := []call{func(_ *Event, effects *Effects) error { kept = effects; return nil }}
		uses := []call{func(*Event, *Effects) error { use(kept); return nil }}
		err := asked.Try(asked.asking(keeps, uses)...)
		if err == nil || !strings.Contains(err.Error(), "an earlier event") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatAMethodRememberedCountsBeforeWhatIsReturned(t *testing.T) {
	asked := newAsked(t)
	var found error
	asked.calls["x"] = []call{func(event *Event, _ *Effects) error {
		event.Token(9)
		return Retry(errors.New("it continues"))
	}}
	err := asked.Try(Given{Subject: "in.a.x"})
	if err == nil || err.Error() != "subject in.a.x has no token 9" || IsRetry(err) {
		t.Error(err)
	}
	stops := NewHarness(t, func(h *Handler) {
		h.Manifest = Manifest{Name: "stops", Subjects: []string{"a.>"}}
		h.Handle(func(event *Event, _ *Effects) error {
			event.Token(9)
			found = h.Err()
			return nil
		})
	})
	if err := stops.Try(Given{Subject: "a.b"}); err == nil || err != found {
		t.Errorf("%v and %v", err, found)
	}
}

func TestPartsOfATableHaveItsNameAndTheirOwn(t *testing.T) {
	parts := NewHarness(t, func(p *Projection) {
		p.Manifest = Manifest{Name: "parts", Subjects: []string{"a.*"}}
		one, other := NewPart[string, uint64](p, "of", "one"), NewPart[struct{}, uint64](p, "of", "other")
		p.Apply(func(event *Event) error {
			*one.Edit(event.Token(2))++
			*other.Edit(struct{}{})++
			if text := one.KeyText("x/y"); text != "of/one/x%2Fy" {
				return errors.New(text)
			}
			return nil
		})
	})
	parts.Given(Given{Subject: "a.x"}, Given{Subject: "a.y"})
	same(t, "the entries", parts.Entries(""), map[string]string{"of/one/x": "1", "of/one/y": "1", "of/other": "2"})
	for _, mistake := range []func(*Projection){
		func(p *Projection) { NewPart[string, int](p, "of", "one"); NewPart[string, int](p, "of", "one") },
		func(p *Projection) { NewPart[string, int](p, "of", "one"); NewTable[string, int](p, "of") },
		func(p *Projection) { NewTable[string, int](p, "of"); NewPart[string, int](p, "of", "one") },
		func(p *Projection) { NewPart[string, int](p, "of", "One") },
		func(p *Projection) { NewPart[string, int](p, "", "one") },
		func(p *Projection) { NewPart[float64, int](p, "of", "one") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("nothing was refused")
				}
			}()
			NewHarness(t, mistake)
		}()
	}
}
