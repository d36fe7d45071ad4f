// Package main counts visits per page: the smallest useful projection, to begin from.
package main

import (
	"foldstream"
	"foldstream/projection"
)

// Starter folds events under visits.<page>.
func Starter(p *foldstream.Projection) {
	p.Manifest = foldstream.Manifest{
		Name:        "starter",
		Description: "Counts visits per page",
		Subjects:    []string{"visits.*"},
	}

	// Everything it keeps, in tables. Entries of this one have keys such as page/home.
	pages := foldstream.NewTable[string, uint64](p, "page")

	// Applies one event. The page is the second token of the subject, as in visits.home.
	p.Apply(func(event *foldstream.Event) error {
		page := event.Token(2)
		*pages.Edit(page)++
		return nil
	})

	foldstream.Query(p, "visits", `How often a page was visited, by its name: "home"`,
		func(page string) (uint64, error) {
			count, found := pages.Get(page)
			if !found {
				return 0, foldstream.ErrNotFound
			}
			return count, nil
		})
}

func init() { projection.Export(Starter) }

// A host calls what the projection exports; nothing begins here.
func main() {}
