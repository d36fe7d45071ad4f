package saga

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"foldstream"
)

// transition is one instance that meets one event, or one timer: what an answer, a time-out or an
// operator changes, and which commands and timers follow. It knows no tables.
type transition[D any] struct {
	plan *plan[D]
	key  string
	// timer is the name of its timer.
	timer    string
	now      foldstream.Timestamp
	instance *Instance[D]
	effects  *foldstream.Effects
}

// answer is what an event says about an action.
type answer uint8

const (
	noAnswer answer = iota
	success
	failure
	transient
)

func (a *action[D]) answer(event *foldstream.Event) answer {
	switch {
	case matchesAny(a.succeeds, event):
		return success
	case matchesAny(a.fails, event):
		return failure
	case matchesAny(a.retries, event):
		return transient
	}
	return noAnswer
}

// begin begins the first step.
func (t *transition[D]) begin(event *foldstream.Event) error {
	t.note("started by " + event.Kind)
	return t.proceed()
}

// meet takes an event that concerns the saga.
func (t *transition[D]) meet(event *foldstream.Event) (Outcome, error) {
	instance := t.instance
	ended := instance.Status.HasEnded()
	if action := t.action(); action != nil && !ended {
		if answer := action.answer(event); answer != noAnswer {
			t.free()
			return t.answered(answer, event)
		}
	}
	if instance.Status == Stuck && matchesAny(t.plan.ResumesOn, event) {
		t.free()
		return Changed, t.resume()
	}
	if instance.Status == Stuck && matchesAny(t.plan.SkipsOn, event) {
		t.free()
		return Changed, t.skip()
	}
	hasTurned := slices.ContainsFunc(t.plan.steps, func(step step[D]) bool {
		return step.isPivot && instance.fate(step.name) != ""
	})
	if !instance.Undoing && !ended && !hasTurned && matchesAny(t.plan.CancelsOn, event) {
		t.free()
		return Changed, t.cancel(event)
	}
	return t.other(event)
}

// fire lets its timer fire.
func (t *transition[D]) fire() error {
	t.instance.Due = 0
	action := t.action()
	if action == nil {
		return t.lostStep()
	}
	switch t.instance.Wait {
	case WaitAnswer:
		return t.attemptFailed("no answer within "+shown(action.timeout), true)
	case WaitRetry:
		if t.instance.Attempt < math.MaxUint32 {
			t.instance.Attempt++
		}
		return t.send(action)
	}
	return nil
}

// isKnown says whether the current step is known, or none is current.
func (t *transition[D]) isKnown() bool { return t.instance.Step == "" || t.action() != nil }

// lostStep says that the current step is not in this version of the saga.
func (t *transition[D]) lostStep() error {
	return t.stuck("step " + t.instance.Step + " or its compensation is not in this version of the saga")
}

func (t *transition[D]) answered(answer answer, event *foldstream.Event) (Outcome, error) {
	instance, step := t.instance, t.instance.Step
	switch {
	case answer == success && instance.Undoing:
		t.note(step + ": undone (" + event.Kind + ")")
		instance.setFate(step, Undone)
		return Changed, t.compensate()
	case answer == success:
		if err := t.take(step, event); err != nil {
			return Changed, err
		}
		t.note(step + ": done (" + event.Kind + ")")
		instance.setFate(step, Done)
		return Changed, t.proceed()
	case answer == transient && instance.Wait != WaitAnswer:
		// The next attempt is due already: the same answer again.
		return Duplicate, nil
	case answer == failure && instance.Wait == WaitNothing:
		return Late, nil
	case answer == transient:
		return Changed, t.attemptFailed(event.Kind, false)
	}
	return Changed, t.stepFailed(event.Kind, false)
}

// attemptFailed says that an attempt of the current action failed, or timed out.
func (t *transition[D]) attemptFailed(why string, isInDoubt bool) error {
	instance, step := t.instance, t.instance.Step
	action := t.action()
	if action == nil {
		return t.lostStep()
	}
	verb := "attempt"
	if instance.Undoing {
		verb = "undoing it"
	}
	attempt := strconv.FormatUint(uint64(instance.Attempt), 10)
	t.note(step + ": " + verb + " " + attempt + " failed: " + why)
	if instance.Attempt < action.retry.Attempts {
		instance.Wait = WaitRetry
		t.setTimer(action.retry.pauseAfter(instance.Attempt))
		return nil
	}
	if instance.Undoing {
		return t.stuck(step + " could not be undone: " + why)
	}
	return t.stepFailed(why, isInDoubt)
}

// stepFailed gives the current step up.
func (t *transition[D]) stepFailed(why string, isInDoubt bool) error {
	step := t.instance.Step
	t.note(step + ": failed: " + why)
	// An answer may be to an earlier attempt, and say nothing about a later one.
	t.giveUp(step, isInDoubt || t.instance.Attempt > 1)
	t.instance.Reason = shortened(step + ": " + why)
	return t.compensate()
}

// giveUp notes what became of a step that was not answered. Without a command nobody was asked, and
// nothing is in doubt.
func (t *transition[D]) giveUp(step string, isInDoubt bool) {
	known := t.plan.find(step)
	if isInDoubt && (known == nil || known.action.command != nil) {
		t.instance.setFate(step, InDoubt)
	} else {
		t.instance.setFate(step, Failed)
	}
}

func (t *transition[D]) cancel(event *foldstream.Event) error {
	t.note("cancelled (" + event.Kind + ")")
	t.giveUp(t.instance.Step, true)
	t.instance.Reason = shortened("cancelled: " + event.Kind)
	return t.compensate()
}

// resume tries the current action again: an operator wants it.
func (t *transition[D]) resume() error {
	action := t.action()
	if action == nil {
		return t.lostStep()
	}
	t.note("resumed by an operator")
	t.enter(t.instance.Status, t.instance.Step)
	if err := t.send(action); err != nil || action.waits() {
		return err
	}
	return t.skip()
}

// skip counts the current action as carried out.
func (t *transition[D]) skip() error {
	step := t.instance.Step
	t.note(step + ": counts as dealt with")
	if t.instance.Undoing {
		t.instance.setFate(step, Undone)
		return t.compensate()
	}
	t.instance.setFate(step, Done)
	return t.proceed()
}

// other takes an event that is not about the current action.
func (t *transition[D]) other(event *foldstream.Event) (Outcome, error) {
	ended := t.instance.Status.HasEnded()
	for number := range t.plan.steps {
		step := &t.plan.steps[number]
		if answer := step.action.answer(event); answer != noAnswer {
			return t.answerOfOther(step, answer, event)
		}
		if step.undo != nil && step.undo.answer(event) != noAnswer {
			switch {
			case ended:
				return Ended, nil
			case t.instance.fate(step.name) == Undone:
				return Duplicate, nil
			}
			return Early, nil
		}
	}
	switch {
	case ended:
		return Ended, nil
	case matchesAny(t.plan.StartsOn, event):
		return Duplicate, nil
	}
	// An operator's event for an instance that is not stuck, or a second cancellation.
	return Late, nil
}

func (t *transition[D]) answerOfOther(step *step[D], answer answer, event *foldstream.Event) (Outcome, error) {
	instance := t.instance
	isSuccess := answer == success
	ended := instance.Status.HasEnded()
	givesUp := instance.Undoing || instance.Status == Compensated
	fate := instance.fate(step.name)
	nobodyAsked := fate == "" && step.action.command == nil
	countsAsFailed := fate == Failed || nobodyAsked && givesUp
	switch {
	case isSuccess && countsAsFailed && step.undo != nil:
		// It was done although it was given up: what nobody undoes would be lost.
		return Changed, t.doneAfterAll(step, event)
	case isSuccess && fate == InDoubt && !ended:
		// Its compensation may need what the answer says.
		if err := t.take(step.name, event); err != nil {
			return Changed, err
		}
		t.note(step.name + ": done after all (" + event.Kind + ")")
		instance.setFate(step.name, Done)
		return Changed, nil
	case ended:
		return Ended, nil
	case nobodyAsked && !givesUp && answer != transient:
		return t.answeredEarly(step.name, answer, event)
	case fate == "":
		return Early, nil
	case isSuccess && fate == Done, !isSuccess && fate == Failed:
		return Duplicate, nil
	}
	return Late, nil
}

// answeredEarly takes the end of a step without a command that comes before its turn. Nobody says it
// again, so that it is kept until then. A success counts, whatever else was said.
func (t *transition[D]) answeredEarly(name string, answer answer, event *foldstream.Event) (Outcome, error) {
	instance := t.instance
	isDone := slices.Contains(instance.Early, name)
	failed := instance.earlyFailure(name)
	switch {
	case answer == success && isDone:
		return Duplicate, nil
	case answer == success:
		if failed >= 0 {
			instance.EarlyFailures = slices.Delete(instance.EarlyFailures, failed, failed+1)
		}
		if err := t.take(name, event); err != nil {
			return Changed, err
		}
		t.note(name + ": done before its turn (" + event.Kind + ")")
		instance.Early = append(instance.Early, name)
		return Changed, nil
	case isDone:
		return Late, nil
	case failed >= 0:
		return Duplicate, nil
	}
	instance.EarlyFailures = append(instance.EarlyFailures, EarlyFailure{name, shortened(event.Kind)})
	t.note(name + ": failed before its turn (" + event.Kind + ")")
	return Changed, nil
}

// doneAfterAll says that a step that had failed was done: it is undone as well, by an operator if all
// else has ended.
func (t *transition[D]) doneAfterAll(step *step[D], event *foldstream.Event) error {
	if err := t.take(step.name, event); err != nil {
		return err
	}
	t.note(step.name + ": done although it had failed (" + event.Kind + ")")
	t.instance.setFate(step.name, Done)
	if !t.instance.Status.HasEnded() {
		return nil
	}
	t.instance.Undoing = true
	t.instance.Step = step.name
	return t.stuck(step.name + " was done after the saga had ended")
}

// proceed begins the next step, and all after it that wait for nothing.
func (t *transition[D]) proceed() error {
	instance := t.instance
	for step := t.nextStep(); step != nil; step = t.nextStep() {
		instance.setFate(step.name, Waiting)
		t.enter(Running, step.name)
		if early := slices.Index(instance.Early, step.name); early >= 0 {
			instance.Early = slices.Delete(instance.Early, early, early+1)
		} else if failed := instance.earlyFailure(step.name); failed >= 0 {
			why := instance.EarlyFailures[failed].Why
			instance.EarlyFailures = slices.Delete(instance.EarlyFailures, failed, failed+1)
			return t.stepFailed(why, false)
		} else if err := t.send(&step.action); err != nil || step.action.waits() {
			return err
		}
		instance.setFate(step.name, Done)
	}
	return t.end(Completed, t.plan.OnCompleted)
}

// nextStep is the step after the furthest one that was begun; nil if there is none. Steps that a newer
// version inserted before that are left out.
func (t *transition[D]) nextStep() *step[D] {
	next := len(t.plan.steps)
	for ; next > 0 && t.instance.fate(t.plan.steps[next-1].name) == ""; next-- {
	}
	if next == len(t.plan.steps) {
		return nil
	}
	return &t.plan.steps[next]
}

// compensate undoes the last step that is not undone, and all before it that need no answer.
func (t *transition[D]) compensate() error {
	instance := t.instance
	instance.Undoing = true
	for _, step := range instance.Early {
		instance.setFate(step, Done)
	}
	instance.Early = nil
	for _, failure := range instance.EarlyFailures {
		instance.setFate(failure.Step, Failed)
	}
	instance.EarlyFailures = nil
	for name := t.nextToUndo(); name != ""; name = t.nextToUndo() {
		t.enter(Compensating, name)
		step := t.plan.find(name)
		if step == nil || step.undo == nil {
			return t.lostStep()
		}
		if err := t.send(step.undo); err != nil || step.undo.waits() {
			return err
		}
		t.note(name + ": undone")
		instance.setFate(name, Undone)
	}
	return t.end(Compensated, t.plan.OnCompensated)
}

// nextToUndo is the last step to undo; without its definition, nobody knows how. Steps that have no
// compensation are passed over.
func (t *transition[D]) nextToUndo() string {
	for _, record := range slices.Backward(t.instance.Steps) {
		step := t.plan.find(record.Step)
		canStay := step != nil && step.undo == nil
		if (record.Fate == Done || record.Fate == InDoubt) && !canStay {
			return record.Step
		}
	}
	return ""
}

func (t *transition[D]) end(status Status, message Publish[D]) error {
	instance := t.instance
	instance.Status, instance.Step, instance.Since = status, "", t.now
	instance.Undoing, instance.Wait, instance.Attempt = false, WaitNothing, 0
	t.note(string(status))
	if err := t.publish(message); err != nil {
		return err
	}
	if t.plan.KeepEnded == Forever {
		t.clearTimer()
	} else {
		t.setTimer(t.plan.KeepEnded)
	}
	return nil
}

// free says that it is stuck no more, whatever comes next.
func (t *transition[D]) free() {
	instance := t.instance
	if instance.Status != Stuck {
		return
	}
	instance.Reason, instance.ReasonBefore = instance.ReasonBefore, ""
	instance.Status = Running
	if instance.Undoing {
		instance.Status = Compensating
	}
}

func (t *transition[D]) stuck(why string) error {
	instance := t.instance
	if instance.Status != Stuck {
		instance.ReasonBefore = instance.Reason
	}
	instance.Status, instance.Since, instance.Wait = Stuck, t.now, WaitNothing
	instance.Reason = shortened(why)
	t.clearTimer()
	t.note("stuck: " + why)
	return t.publish(t.plan.OnStuck)
}

// enter begins an action, with its first attempt.
func (t *transition[D]) enter(status Status, step string) {
	t.instance.Status, t.instance.Step, t.instance.Since, t.instance.Attempt = status, step, t.now, 1
}

// send publishes the command of the current attempt.
func (t *transition[D]) send(action *action[D]) error {
	if err := t.publish(action.command); err != nil {
		return err
	}
	t.instance.Wait = WaitAnswer
	if action.timeout > 0 && action.waits() {
		t.setTimer(action.timeout)
	} else {
		t.clearTimer()
	}
	return nil
}

func (t *transition[D]) publish(make Publish[D]) error {
	if make == nil {
		return nil
	}
	instance := t.instance
	started := strconv.FormatUint(uint64(instance.Started), 10)
	message, err := make(&Call[D]{
		Key:     t.key,
		Step:    instance.Step,
		Attempt: instance.Attempt,
		ID:      strings.Join([]string{t.plan.Name, t.key, started, instance.Step}, "/"),
		Reason:  instance.Reason,
		Time:    t.now,
		Data:    instance.Data,
	})
	if err != nil {
		return err
	}
	if message.Key == "" {
		// A compensation must not overtake the command that it undoes.
		message.Key = t.key
	}
	t.effects.Publish(message)
	return nil
}

func (t *transition[D]) setTimer(span time.Duration) {
	due := t.now.Add(span)
	if due < t.now {
		// Behind all times.
		due = math.MaxUint64
	}
	t.instance.Due = due
	t.effects.SetTimer(foldstream.Timer{Name: t.timer, At: due, Key: t.key})
}

func (t *transition[D]) clearTimer() {
	if t.instance.Due != 0 {
		t.instance.Due = 0
		t.effects.CancelTimer(t.timer)
	}
}

func (t *transition[D]) take(name string, event *foldstream.Event) error {
	if step := t.plan.find(name); step != nil && step.take != nil {
		return step.take(&t.instance.Data, event)
	}
	return nil
}

// action is the current action; nil if nothing is current, or this version of the saga has no such step.
func (t *transition[D]) action() *action[D] {
	step := t.plan.find(t.instance.Step)
	switch {
	case step == nil:
		return nil
	case t.instance.Undoing:
		return step.undo
	}
	return &step.action
}

func (t *transition[D]) note(what string) { t.instance.note(t.now, what) }

// shown is a span of time for people, as SDKs of all languages note it: 3s, 1.5s, 500ms.
func shown(span time.Duration) string {
	unit, name := time.Nanosecond, "ns"
	switch {
	case span >= time.Second:
		unit, name = time.Second, "s"
	case span >= time.Millisecond:
		unit, name = time.Millisecond, "ms"
	case span >= time.Microsecond:
		unit, name = time.Microsecond, "µs"
	}
	text := strconv.FormatInt(int64(span/unit), 10)
	if rest := span % unit; rest != 0 {
		// The first digit stands for the unit itself.
		text += "." + strings.TrimRight(strconv.FormatInt(int64(unit+rest), 10)[1:], "0")
	}
	return text + name
}
