package saga

import (
	"math"
	"time"

	"foldstream"
)

const (
	// Endless is for ever, as a number of attempts.
	Endless = math.MaxUint32
	// Forever keeps instances after their end for good.
	Forever time.Duration = math.MaxInt64
)

// Pattern says which events are meant: by subject, by type, or by both.
type Pattern struct {
	// Subject is a pattern of subjects, as in [foldstream.Event.IsUnder]: payments.*.charged.
	Subject string
	// Kind is the type of the events.
	Kind string
}

// On is events under these patterns of subjects.
func On(subjects ...string) []Pattern {
	var patterns []Pattern
	for _, subject := range subjects {
		patterns = append(patterns, Pattern{Subject: subject})
	}
	return patterns
}

// Publish makes a message from an instance. Its key is the correlation key unless it has one of its
// own. An error rejects the event.
type Publish[D any] func(call *Call[D]) (foldstream.Message, error)

// Call is what a command or a message of a saga is made from.
type Call[D any] struct {
	// Key is the correlation key of the instance.
	Key string
	// Step is the name of the step; empty in messages about the end of a saga.
	Step string
	// Attempt of this command, counted from 1.
	Attempt uint32
	// ID is the same for all attempts of a step and for its compensation, and different for all others,
	// also of a later instance with the same key: participants recognise by it what they did before.
	ID string
	// Reason why the saga compensates or is stuck; empty while it runs.
	Reason string
	// Time of the event or timer that causes this.
	Time foldstream.Timestamp
	// Data is what the instance keeps.
	Data D
}

// RetryPolicy says how often something is attempted, and the pauses in between.
type RetryPolicy struct {
	// Attempts, the first included, or [Endless]. Zero is once for a step, 10 times for a compensation.
	Attempts uint32
	// First is the pause before the second attempt, which doubles each time; zero is 1 s.
	First time.Duration
	// Longest pause; zero is 5 min.
	Longest time.Duration
}

// Compensation is what undoes a step: a command, and the event that confirms it.
type Compensation[D any] struct {
	// Command to the participant. One that never carried out the step, or undid it before, must confirm
	// all the same.
	Command Publish[D]
	// SucceedsOn is an answer that the step is undone. Without one, it is undone once its command is
	// published.
	SucceedsOn []Pattern
	// FailsOn is an answer that it could not be undone: the retry policy decides.
	FailsOn []Pattern
	// Timeout is how long each attempt waits for its answer; zero is for ever.
	Timeout time.Duration
	// Retry says how often it is attempted before the instance is stuck.
	Retry RetryPolicy
}

// Step is a step of a saga: a command to a participant, its answers, and what undoes it.
//
// Without a command it waits for an event that others cause; without an event to wait for it is done
// once its command is published.
type Step[D any] struct {
	// Name has 1 to 32 lower-case letters, digits and hyphens, a letter first.
	Name string
	// Command to the participant, made for each attempt. It may get several for one step, and must do the
	// work of [Call].ID once.
	Command Publish[D]
	// SucceedsOn is an answer that the step is done.
	SucceedsOn []Pattern
	// FailsOn is an answer that the step was not done and will not be: the saga compensates.
	FailsOn []Pattern
	// RetriesOn is an answer that an attempt failed and another may succeed: the retry policy decides.
	RetriesOn []Pattern
	// OnSuccess keeps something of the answer, such as the number of a payment. An error rejects it.
	OnSuccess func(data *D, event *foldstream.Event) error
	// Timeout is how long each attempt waits for its answer; zero is for ever. An attempt that times out
	// may have been carried out, so the step is undone if the saga gives up.
	Timeout time.Duration
	// Retry says how often the step is attempted.
	Retry RetryPolicy
	// Pivot makes it the point of no return: once it was begun, the saga can't be cancelled any more.
	// Answers still decide: it may fail, and then what was done is undone.
	Pivot bool
	// Compensation is what undoes the step; nil if nothing does.
	Compensation *Compensation[D]
}

// Saga is a process of several steps, each of which can be undone. D is what each instance keeps of its
// own, such as the order. [New] runs its instances in a handler.
type Saga[D any] struct {
	// Name has 1 to 32 lower-case letters, digits and hyphens, a letter first.
	Name string
	// StartsOn is an event that starts an instance, unless there is one with its key.
	StartsOn []Pattern
	// Start is what a new instance keeps; nil is the data of the event.
	Start func(event *foldstream.Event) (D, error)
	// CorrelateBy is how the instance of an event is found: events with one key belong to one instance.
	// Use the same rule as in the manifest. The zero value is the second token of the subject.
	CorrelateBy foldstream.KeyRule
	// CorrelateWith finds the key in place of CorrelateBy. An error rejects the event.
	CorrelateWith func(event *foldstream.Event) (string, error)
	// Steps in the order in which they run, at most 32.
	Steps []Step[D]
	// CancelsOn is an event that cancels a running instance: what was done is undone.
	CancelsOn []Pattern
	// ResumesOn is an event that lets a stuck instance try its step again, with all attempts.
	ResumesOn []Pattern
	// SkipsOn is an event that tells a stuck instance that its step was dealt with by hand, so that it
	// continues with the next.
	SkipsOn []Pattern
	// KeepEnded is how long an instance is kept after its end, so that events that come late are
	// recognised, or [Forever]; zero is a day. An event that starts an instance of a key whose instance
	// is gone starts a new one.
	KeepEnded time.Duration
	// OnCompleted publishes a message when an instance completes; nil for none.
	OnCompleted Publish[D]
	// OnCompensated publishes a message when an instance has undone what it did; [Call].Reason says why.
	OnCompensated Publish[D]
	// OnStuck publishes a message when an instance gets stuck; [Call].Reason says why.
	OnStuck Publish[D]
}

// Subjects are those of all its patterns, each once, for the manifest.
func (s *Saga[D]) Subjects() []string {
	var subjects []string
	known := map[string]bool{"": true}
	for _, pattern := range s.patterns() {
		if !known[pattern.Subject] {
			known[pattern.Subject] = true
			subjects = append(subjects, pattern.Subject)
		}
	}
	return subjects
}

func (s *Saga[D]) patterns() []Pattern {
	var all []Pattern
	add := func(several ...[]Pattern) {
		for _, some := range several {
			all = append(all, some...)
		}
	}
	add(s.StartsOn, s.CancelsOn, s.ResumesOn, s.SkipsOn)
	for _, step := range s.Steps {
		add(step.SucceedsOn, step.FailsOn, step.RetriesOn)
		if undo := step.Compensation; undo != nil {
			add(undo.SucceedsOn, undo.FailsOn)
		}
	}
	return all
}

// matchesAny says whether an event matches one of some patterns.
func matchesAny(patterns []Pattern, event *foldstream.Event) bool {
	for _, pattern := range patterns {
		bySubject := pattern.Subject == "" || event.IsUnder(pattern.Subject)
		if bySubject && (pattern.Kind == "" || event.Kind == pattern.Kind) {
			return true
		}
	}
	return false
}
