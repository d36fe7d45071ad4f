package saga

import "foldstream"

// noStep is in place of a step, for instances that have none.
const noStep = "-"

// place is where an instance is listed, so that the longest wait for a step comes first.
type place struct {
	Status Status
	Step   string
	Since  foldstream.Timestamp
	Key    string
}

func placeOf[D any](instance *Instance[D], key string) place {
	step := instance.Step
	if step == "" {
		step = noStep
	}
	return place{instance.Status, step, instance.Since, key}
}

// group is under which it is counted.
func (p *place) group() string { return string(p.Status) + "/" + p.Step }

// counts are how many instances there are, and what was ignored.
type counts struct {
	Format uint32 `json:"format"`
	// Now are instances by status/step.
	Now map[string]uint64 `json:"now"`
	// Ended are instances that ended, by status, kept or not.
	Ended map[string]uint64 `json:"ended"`
	// Ignored are events that changed nothing, by what they were.
	Ignored map[string]uint64 `json:"ignored"`
}

// listing is what hosts list of a saga: an index by status, step and time, and counts. Its form is
// described in docs/sagas.md.
type listing struct {
	// index has keys saga-index/<saga>/<status>/<step>/<since>/<key>.
	index *foldstream.Table[place, struct{}]
	// counts is saga-count/<saga>.
	counts *foldstream.Table[struct{}, counts]
}

func newListing(h *foldstream.Handler, saga string) listing {
	return listing{
		foldstream.NewPart[place, struct{}](h, "saga-index", saga),
		foldstream.NewPart[struct{}, counts](h, "saga-count", saga),
	}
}

// moved says that an instance moves from one place to another, is new, or is removed.
func (l listing) moved(from, to *place) {
	if from != nil && to != nil && *from == *to {
		return
	}
	counts := l.edit()
	if from != nil {
		l.index.Delete(*from)
		if counts.Now[from.group()] > 1 {
			counts.Now[from.group()]--
		} else {
			delete(counts.Now, from.group())
		}
	}
	if to != nil {
		l.index.Set(*to, struct{}{})
		counts.Now[to.group()]++
	}
	had := from != nil && from.Status.HasEnded()
	switch {
	case !had && to != nil && to.Status.HasEnded():
		counts.Ended[string(to.Status)]++
	case had && to != nil && !to.Status.HasEnded() && counts.Ended[string(from.Status)] > 0:
		// An operator must deal with it after all.
		counts.Ended[string(from.Status)]--
	}
}

// ignored says that an event changed nothing.
func (l listing) ignored(why Outcome) { l.edit().Ignored[string(why)]++ }

func (l listing) edit() *counts {
	edited := l.counts.Edit(struct{}{})
	if edited.Format == 0 {
		edited.Format = format
	}
	for _, some := range []*map[string]uint64{&edited.Now, &edited.Ended, &edited.Ignored} {
		if *some == nil {
			*some = map[string]uint64{}
		}
	}
	return edited
}
