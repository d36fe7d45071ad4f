// Package main is the guest answers of tests/guests in Go: it must publish, set and store the same.
package main

import (
	"errors"
	"strconv"
	"time"

	"foldstream"
	"foldstream/handler"
)

// Later than any test lasts.
const tomorrow = 24 * time.Hour

type answer struct {
	Of     uint64 `json:"of"`
	Number int    `json:"number"`
	Text   string `json:"text"`
}

type rang struct {
	Name  string  `json:"name"`
	Part  string  `json:"part"`
	Key   *string `json:"key"`
	IsDue bool    `json:"is_due"`
}

type answers struct {
	// How many events of a key it has handled, and timers.
	handled *foldstream.Table[string, uint64]
}

// Answers answers each event in.<key>.<what> as its subject asks.
func Answers(h *foldstream.Handler) {
	h.Manifest = foldstream.Manifest{
		Name:           "answers",
		Description:    "Answers each event as its subject asks",
		Subjects:       []string{"in.*.*"},
		Publishes:      []string{"out.>"},
		Replies:        true,
		Timers:         true,
		Key:            foldstream.SubjectTokenKey(2),
		Attempts:       2,
		InitialBackoff: 10 * time.Millisecond,
		MaxBackoff:     20 * time.Millisecond,
		Inbox:          &foldstream.Inbox{Window: time.Hour, IDsMax: 1_000},
	}
	a := &answers{foldstream.NewTable[string, uint64](h, "handled")}
	h.Handle(a.handle)
	h.OnTimer(a.rang)
	foldstream.Query(h, "handled", "How many events of a key it has handled", func(key string) (uint64, error) {
		count, found := a.handled.Get(key)
		if !found {
			return 0, foldstream.ErrNotFound
		}
		return count, nil
	})
}

func (a *answers) handle(event *foldstream.Event, effects *foldstream.Effects) error {
	key := event.Token(2)
	*a.handled.Edit(key)++
	said := func(number int, text string) foldstream.Message {
		return foldstream.Message{
			Subject: "out." + key + "." + strconv.FormatUint(event.Sequence, 10),
			Kind:    "answer",
			Headers: map[string]string{"x-number": strconv.Itoa(number)},
			Data:    answer{event.Sequence, number, text},
		}
	}
	switch event.Token(3) {
	case "three":
		for number := range 3 {
			effects.Publish(said(number, "\x00ë🦀\"\\/"))
		}
	case "plain":
		effects.Publish(foldstream.Message{Subject: "out." + key + ".plain"})
	case "text":
		effects.Publish(foldstream.Message{Subject: "out." + key + ".text", Data: "no JSON"})
	case "bytes":
		effects.Publish(foldstream.Message{Subject: "out." + key + ".bytes", Data: []byte{0, 255, 128}})
	case "keyed":
		message := said(0, "")
		message.Key = "another/ë"
		effects.Publish(message)
	case "later":
		message := said(0, "later")
		message.NotBefore = event.Time.Add(tomorrow)
		effects.Publish(message)
	case "past":
		message := said(0, "past")
		message.NotBefore = 1_000
		effects.Publish(message)
	case "brief":
		message := said(0, "brief")
		message.TimeToLive = time.Hour
		effects.Publish(message)
	case "first":
		last := &foldstream.ExpectedLast{}
		effects.Publish(foldstream.Message{Subject: "out." + key + ".first", ExpectedLast: last})
	case "alone":
		last := &foldstream.ExpectedLast{Subject: "out." + key + ".>"}
		effects.Publish(foldstream.Message{Subject: "out." + key + ".alone", ExpectedLast: last})
	case "elsewhere":
		effects.Publish(foldstream.Message{Subject: "elsewhere"})
	case "reply":
		effects.Reply(event, event.Sequence)
	case "fail":
		effects.Publish(said(0, "lost"))
		effects.CancelTimer("later/" + key)
		return errors.New("it was asked to fail")
	case "half":
		// Half of a character, as a slice leaves it, is in the log and in the failure.
		foldstream.Info("half a🦀"[:len("half a")+2])
		return errors.New("a half: a🦀"[:len("a half: a")+2])
	case "retry":
		return foldstream.Retry(errors.New("not yet"))
	default:
		changeTimers(event, effects)
	}
	return nil
}

func changeTimers(event *foldstream.Event, effects *foldstream.Effects) {
	key, later := event.Token(2), event.Time.Add(tomorrow)
	switch event.Token(3) {
	case "timer":
		effects.SetTimer(foldstream.Timer{Name: "now/" + key})
		effects.SetTimer(foldstream.Timer{Name: "later/" + key, At: later})
	case "keyed-timer":
		effects.SetTimer(foldstream.Timer{Name: "keyed/" + key, At: event.Time, Key: "another/ë"})
	case "replace":
		effects.SetTimer(foldstream.Timer{Name: "replaced/" + key, At: later})
		effects.CancelTimer("replaced/" + key)
		effects.SetTimer(foldstream.Timer{Name: "replaced/" + key, At: later, Key: "last"})
	case "cancel":
		effects.CancelTimer("later/" + key)
	}
}

func (a *answers) rang(timer *foldstream.Fired, effects *foldstream.Effects) error {
	*a.handled.Edit("timers")++
	data := rang{Name: timer.Name, Part: timer.Part(2), IsDue: timer.Time >= timer.At}
	if timer.Key != "" {
		data.Key = &timer.Key
	}
	effects.Publish(foldstream.Message{Subject: "out." + timer.Part(2) + ".rang", Data: data})
	return nil
}

func init() { handler.Export(Answers) }

func main() {}
