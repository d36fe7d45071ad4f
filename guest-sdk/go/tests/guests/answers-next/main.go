// Package main is the next version of the guest answers: it stores something else, and migrates the state
// of version 1, whatever its language.
package main

import (
	"foldstream"
	"foldstream/handler"
	"foldstream/migration"
)

type seen struct {
	Events uint64 `json:"events"`
}

// Next counts what it answers.
func Next(h *foldstream.Handler) {
	h.Manifest = foldstream.Manifest{
		Name:         "answers",
		Subjects:     []string{"in.*.*"},
		Publishes:    []string{"out.>"},
		Replies:      true,
		Timers:       true,
		Key:          foldstream.SubjectTokenKey(2),
		StateVersion: 2,
	}
	events := foldstream.NewTable[string, seen](h, "seen")
	h.Handle(func(event *foldstream.Event, effects *foldstream.Effects) error {
		key := event.Token(2)
		events.Edit(key).Events++
		effects.Publish(foldstream.Message{Subject: "out." + key + ".next"})
		effects.CancelTimer("later/" + key)
		return nil
	})
	h.OnTimer(func(timer *foldstream.Fired, effects *foldstream.Effects) error {
		events.Edit("timers").Events++
		effects.Publish(foldstream.Message{Subject: "out." + timer.Part(2) + ".rang"})
		return nil
	})
	migration.Define(h, func(fromVersion uint32, old *foldstream.OldEntry) error {
		if fromVersion != 1 {
			return foldstream.UnknownVersion(fromVersion)
		}
		if key, count, found := foldstream.FromTable[string, uint64](old, "handled"); found {
			events.Set(key, seen{count})
		} else {
			old.Keep()
		}
		return nil
	})
}

func init() { handler.Export(Next) }

func main() {}
