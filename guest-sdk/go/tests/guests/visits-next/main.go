// Package main is version 2 of the starter: it stores the visits in another shape, and migrates those of
// version 1, whatever its language.
package main

import (
	"errors"

	"foldstream"
	"foldstream/migration"
	"foldstream/projection"
)

type visited struct {
	Page  string `json:"page"`
	Count uint64 `json:"count"`
}

// Visits counts visits per page.
func Visits(p *foldstream.Projection) {
	p.Manifest = foldstream.Manifest{Name: "starter", Subjects: []string{"visits.*"}, StateVersion: 2}
	visits := foldstream.NewTable[string, visited](p, "visits")
	p.Apply(func(event *foldstream.Event) error {
		page := event.Token(2)
		visit := visits.Edit(page)
		visit.Page = page
		visit.Count++
		return nil
	})
	migration.Define(p, func(fromVersion uint32, old *foldstream.OldEntry) error {
		if fromVersion != 1 {
			return foldstream.UnknownVersion(fromVersion)
		}
		page, count, found := foldstream.FromTable[string, uint64](old, "page")
		if !found {
			return nil
		}
		switch page {
		case "odd":
			return errors.New("nobody knows what to do with this page")
		case "late":
			go func() { select {} }()
		}
		visits.Set(page, visited{page, count})
		return nil
	})
}

func init() { projection.Export(Visits) }

func main() {}
