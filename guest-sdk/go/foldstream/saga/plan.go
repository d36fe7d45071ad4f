package saga

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"foldstream"
)

const (
	nameBytesMax = 32
	stepsMax     = 32
	keepEnded    = 24 * time.Hour
	// doublingsMax is how often a pause doubles, as in all SDKs.
	doublingsMax = 31
)

// plan is a saga, checked, with all defaults.
type plan[D any] struct {
	Saga[D]
	steps    []step[D]
	concerns []Pattern
}

// step is a step of a plan.
type step[D any] struct {
	name    string
	action  action[D]
	take    func(data *D, event *foldstream.Event) error
	isPivot bool
	// undo is nil if nothing undoes the step.
	undo *action[D]
}

// action is a command and its answers: of a step, or of its compensation.
type action[D any] struct {
	command                  Publish[D]
	succeeds, fails, retries []Pattern
	// timeout is zero if an attempt waits for ever.
	timeout time.Duration
	retry   RetryPolicy
}

// planned checks a saga; it panics with the mistake.
func planned[D any](saga Saga[D]) *plan[D] {
	mistake := func(parts ...string) {
		panic("foldstream: saga " + saga.Name + ": " + strings.Join(parts, ""))
	}
	checkName(saga.Name)
	made := &plan[D]{Saga: saga, concerns: saga.patterns()}
	if slices.Contains(made.concerns, Pattern{}) {
		mistake("a pattern without Subject and Kind matches all events")
	}
	if len(saga.Steps) > stepsMax {
		mistake("it has more than ", strconv.Itoa(stepsMax), " steps")
	}
	if saga.KeepEnded < 0 {
		mistake("KeepEnded is negative")
	}
	if saga.KeepEnded == 0 {
		made.KeepEnded = keepEnded
	}
	for _, given := range saga.Steps {
		checkName(given.Name)
		if made.find(given.Name) != nil {
			mistake("two steps are named ", given.Name, "; rename one")
		}
		one := stepOf(given)
		if one.undo != nil && one.undo.command == nil {
			mistake("the compensation of step ", given.Name, " has no Command")
		}
		for _, action := range one.actions() {
			if action.timeout < 0 || action.retry.First < 0 || action.retry.Longest < 0 {
				mistake("step ", given.Name, " or its compensation has a negative time")
			}
			if !action.isSound() {
				mistake("step ", given.Name, " or its compensation has a time-out or a failing answer, and no answer ",
					"that it is done; add SucceedsOn")
			}
		}
		made.steps = append(made.steps, one)
	}
	return made
}

func stepOf[D any](given Step[D]) step[D] {
	made := step[D]{name: given.Name, take: given.OnSuccess, isPivot: given.Pivot}
	made.action = action[D]{
		given.Command, given.SucceedsOn, given.FailsOn, given.RetriesOn, given.Timeout, given.Retry.or(1),
	}
	if undo := given.Compensation; undo != nil {
		// What could not be undone is tried again: no answer gives a compensation up.
		made.undo = &action[D]{undo.Command, undo.SucceedsOn, nil, undo.FailsOn, undo.Timeout, undo.Retry.or(10)}
	}
	return made
}

// or is the policy with its defaults.
func (r RetryPolicy) or(attempts uint32) RetryPolicy {
	if r.Attempts == 0 {
		r.Attempts = attempts
	}
	if r.First == 0 {
		r.First = time.Second
	}
	if r.Longest == 0 {
		r.Longest = 5 * time.Minute
	}
	return r
}

// pauseAfter is the pause after an attempt, counted from 1.
func (r RetryPolicy) pauseAfter(attempt uint32) time.Duration {
	pause := r.First
	for range min(max(attempt, 1)-1, doublingsMax) {
		// Twice as much may be more than a duration can be.
		if pause > r.Longest/2 {
			return r.Longest
		}
		pause *= 2
	}
	return min(pause, r.Longest)
}

func checkName(name string) {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	isSound := name != "" && len(name) <= nameBytesMax && strings.Trim(name[:1], letters) == ""
	if !isSound || strings.Trim(name, letters+"0123456789-") != "" {
		panic("foldstream: name " + strconv.Quote(name) + " of a saga or step: use 1 to " + strconv.Itoa(nameBytesMax) +
			" lower-case letters, digits and hyphens, a letter first")
	}
}

func (p *plan[D]) find(name string) *step[D] {
	for number := range p.steps {
		if p.steps[number].name == name {
			return &p.steps[number]
		}
	}
	return nil
}

// keyOf is the correlation key of an event.
func (p *plan[D]) keyOf(event *foldstream.Event) (string, error) {
	if p.CorrelateWith != nil {
		return p.CorrelateWith(event)
	}
	if p.CorrelateBy == (foldstream.KeyRule{}) {
		return foldstream.SubjectTokenKey(2).Of(event)
	}
	return p.CorrelateBy.Of(event)
}

// start is what a new instance keeps.
func (p *plan[D]) start(event *foldstream.Event) (D, error) {
	if p.Start != nil {
		return p.Start(event)
	}
	return foldstream.Data[D](event)
}

// setsTimers says whether the manifest must declare timers.
func (p *plan[D]) setsTimers() bool {
	if p.KeepEnded != Forever {
		return true
	}
	for number := range p.steps {
		for _, action := range p.steps[number].actions() {
			if action.timeout > 0 || action.retry.Attempts > 1 && len(action.retries) > 0 {
				return true
			}
		}
	}
	return false
}

func (s *step[D]) actions() []*action[D] {
	if s.undo == nil {
		return []*action[D]{&s.action}
	}
	return []*action[D]{&s.action, s.undo}
}

// waits says whether it waits for an answer.
func (a *action[D]) waits() bool { return len(a.succeeds) > 0 }

// isSound says whether something tells that it succeeded, whatever ends it.
func (a *action[D]) isSound() bool {
	canFail := len(a.fails) > 0 || len(a.retries) > 0 || a.timeout > 0
	return a.waits() || !canFail && a.command != nil
}
