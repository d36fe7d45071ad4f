package saga

import (
	"slices"
	"strconv"

	"foldstream"
)

// What is stored of an instance. Its form is described in docs/sagas.md, so that hosts and SDKs of other
// languages agree about it.
const (
	// format is the version of the stored form.
	format = 1
	// notesMax is how many notes the history of an instance has; older ones are dropped and counted.
	notesMax = 32
	// textMax is the longest text of a note or a reason, in characters.
	textMax = 200
)

// Status is how far an instance of a saga is.
type Status string

const (
	// Running: its steps are being carried out.
	Running Status = "running"
	// Compensating: what was done is being undone, the last step first.
	Compensating Status = "compensating"
	// Stuck: it cannot continue without an operator.
	Stuck Status = "stuck"
	// Completed: all steps are done.
	Completed Status = "completed"
	// Compensated: all that was done is undone.
	Compensated Status = "compensated"
)

// HasEnded says whether nothing more happens.
func (s Status) HasEnded() bool { return s == Completed || s == Compensated }

// Wait is what an instance waits for.
type Wait string

const (
	// WaitAnswer: the answer to its command.
	WaitAnswer Wait = "answer"
	// WaitRetry: the next attempt.
	WaitRetry Wait = "retry"
	// WaitNothing: an operator, or its removal.
	WaitNothing Wait = "nothing"
)

// Fate is what became of a step.
type Fate string

const (
	// Waiting: it is the current step.
	Waiting Fate = "waiting"
	// Done: it was done.
	Done Fate = "done"
	// InDoubt: it may have been done, and is undone like one that was.
	InDoubt Fate = "in-doubt"
	// Failed: it was not done.
	Failed Fate = "failed"
	// Undone: it was done, or perhaps, and is undone.
	Undone Fate = "undone"
)

// Record is a step that was begun.
type Record struct {
	Step string `json:"step"`
	Fate Fate   `json:"fate"`
}

// EarlyFailure is a step without a command that failed before its turn.
type EarlyFailure struct {
	Step string `json:"step"`
	Why  string `json:"why"`
}

// Note is a note in the history.
type Note struct {
	At   foldstream.Timestamp `json:"at"`
	What string               `json:"what"`
}

// Instance is an instance of a saga, as it is stored.
type Instance[D any] struct {
	Format uint32 `json:"format"`
	Status Status `json:"status"`
	// Step that it carries out or undoes, or at which it is stuck; empty after its end.
	Step string `json:"step,omitempty"`
	// Since when it has had this status in this step.
	Since   foldstream.Timestamp `json:"since"`
	Started foldstream.Timestamp `json:"started"`
	// Updated is the latest time that it met, because streams may have times that go back.
	Updated foldstream.Timestamp `json:"updated"`
	// Attempt of the current command, counted from 1.
	Attempt uint32 `json:"attempt"`
	Wait    Wait   `json:"wait"`
	// Undoing says whether the current step is being undone.
	Undoing bool `json:"undoing,omitempty"`
	// Due is when its timer fires; zero if it has none.
	Due foldstream.Timestamp `json:"due,omitempty"`
	// Reason why it compensates or is stuck.
	Reason string `json:"reason,omitempty"`
	// ReasonBefore is the reason before it got stuck.
	ReasonBefore string `json:"reason_before,omitempty"`
	// Steps that were begun, in order.
	Steps []Record `json:"steps"`
	// Early are steps without a command whose event came before their turn.
	Early []string `json:"early,omitempty"`
	// EarlyFailures are steps without a command whose failure came before their turn.
	EarlyFailures  []EarlyFailure `json:"early_failures,omitempty"`
	History        []Note         `json:"history"`
	HistoryDropped uint64         `json:"history_dropped,omitempty"`
	// Data is what it keeps.
	Data D `json:"data"`
}

// begun is an instance that has done nothing yet.
func begun[D any](data D, now foldstream.Timestamp) *Instance[D] {
	return &Instance[D]{
		Format: format, Status: Running, Since: now, Started: now, Updated: now, Wait: WaitNothing, Data: data,
	}
}

// unknownWord is a word of its stored form that this version does not know; empty if it knows all.
func (i *Instance[D]) unknownWord() string {
	if !slices.Contains([]Status{Running, Compensating, Stuck, Completed, Compensated}, i.Status) {
		return "status " + strconv.Quote(string(i.Status))
	}
	if !slices.Contains([]Wait{WaitAnswer, WaitRetry, WaitNothing}, i.Wait) {
		return "wait " + strconv.Quote(string(i.Wait))
	}
	for _, record := range i.Steps {
		if !slices.Contains([]Fate{Waiting, Done, InDoubt, Failed, Undone}, record.Fate) {
			return "fate " + strconv.Quote(string(record.Fate))
		}
	}
	return ""
}

// fate is what became of a step; empty if it was not begun.
func (i *Instance[D]) fate(step string) Fate {
	for _, record := range i.Steps {
		if record.Step == step {
			return record.Fate
		}
	}
	return ""
}

func (i *Instance[D]) setFate(step string, fate Fate) {
	for number := range i.Steps {
		if i.Steps[number].Step == step {
			i.Steps[number].Fate = fate
			return
		}
	}
	i.Steps = append(i.Steps, Record{step, fate})
}

// earlyFailure is the place of the early failure of a step; -1 if there is none.
func (i *Instance[D]) earlyFailure(step string) int {
	return slices.IndexFunc(i.EarlyFailures, func(failure EarlyFailure) bool { return failure.Step == step })
}

// note adds to the history.
func (i *Instance[D]) note(now foldstream.Timestamp, what string) {
	if len(i.History) >= notesMax {
		// The first one says how it began, and is worth keeping.
		i.History = slices.Delete(i.History, 1, 2)
		i.HistoryDropped++
	}
	i.History = append(i.History, Note{now, shortened(what)})
}

// shortened is a text of limited length.
func shortened(text string) string {
	count := 0
	for end := range text {
		if count == textMax {
			return text[:end]
		}
		count++
	}
	return text
}
