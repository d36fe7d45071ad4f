package saga

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"foldstream"
)

// random draws numbers from a seed.
type random uint64

func (r *random) below(limit int) int {
	*r = *r*6_364_136_223_846_793_005 + 1_442_695_040_888_963_407
	return int(uint64(*r>>33) % uint64(limit))
}

func (r *random) oneIn(count int) bool { return r.below(count) == 0 }

type work struct{ isDecided, isRefused, isDone, isUndone bool }

// participant does each piece of work once, by its id, and undoes it if asked.
type participant map[string]*work

// serve is its answer to a command; empty if it is lost.
func (p participant) serve(t *testing.T, subject, id string, random *random) string {
	parts := strings.Split(subject, ".")
	if p[id] == nil {
		p[id] = &work{}
	}
	work, answer := p[id], "busy"
	switch {
	case parts[0] == "undo" && random.oneIn(4):
		answer = "stays"
	case parts[0] == "undo":
		work.isUndone = true
		answer = "undid"
	case work.isDecided || !random.oneIn(5):
		if work.isUndone {
			t.Fatalf("%s is asked for after it was undone", id)
		}
		if !work.isDecided {
			work.isDecided, work.isRefused = true, random.oneIn(8)
		}
		answer = "did"
		if work.isRefused {
			answer = "refused"
		} else {
			work.isDone = true
		}
	}
	if random.oneIn(10) {
		return ""
	}
	return answer + "." + parts[1] + "." + parts[2]
}

// isOpen says whether some instance has not ended.
func (o *orders) isOpen() bool {
	for group := range o.counts().Now {
		if !strings.HasSuffix(group, "/-") {
			return true
		}
	}
	return false
}

func idOf(message foldstream.Published) string {
	command, _ := foldstream.Data[attempted](&foldstream.Event{Data: message.Data})
	return command.ID
}

const keys = 5

// runOverABadNetwork runs sagas over a network that loses, repeats and reorders, until nothing is left
// to do.
func runOverABadNetwork(t *testing.T, seed random) {
	drawn, asked := seed, participant{}
	o := runs(t, tripWith(3, times(Endless), "hotel", "flight", "car"))
	// Commands arrive in their order; answers in any.
	var answers []string
	served := 0
	for key := range keys {
		o.happens("trips." + strconv.Itoa(key) + ".booked")
	}
	for round := 0; ; round++ {
		if round == 5_000 {
			t.Fatalf("seed %d: it never ends", seed)
		}
		published := o.Published()
		if !o.isOpen() && served == len(published) && len(answers) == 0 {
			break
		}
		choice := drawn.below(4)
		switch {
		case choice < 2 && served < len(published):
			message := published[served]
			served++
			if id := idOf(message); id != "" {
				if answer := asked.serve(t, message.Subject, id, &drawn); answer != "" {
					answers = append(answers, answer)
				}
			}
		case choice == 2 && len(answers) > 0:
			var batch []string
			for left := 1 + drawn.below(3); left > 0 && len(answers) > 0; left-- {
				number := drawn.below(len(answers))
				batch = append(batch, answers[number])
				if !drawn.oneIn(4) {
					answers = slices.Delete(answers, number, number+1)
				}
			}
			o.happens(batch...)
		case choice == 3 && drawn.oneIn(3):
			o.After(time.Duration(drawn.below(90)) * time.Second)
		case choice == 3 && drawn.oneIn(20):
			o.happens("trips." + strconv.Itoa(drawn.below(keys)) + ".cancelled")
		case choice == 3 && drawn.oneIn(10):
			o.Restart()
		}
	}
	attempts := map[string]bool{}
	for _, message := range o.Published() {
		if idOf(message) == "" {
			continue
		}
		if attempt := message.Subject + " " + message.Data; attempts[attempt] {
			t.Errorf("seed %d: it was asked twice for %s", seed, attempt)
		} else {
			attempts[attempt] = true
		}
	}
	for key := range keys {
		endedWell(o, seed, asked, strconv.Itoa(key))
	}
	o.SameForAnyBatching()
}

func endedWell(o *orders, seed random, asked participant, key string) {
	t, status := o.t, o.instance(key).Status
	about := func(verb string) []string {
		var steps []string
		for _, subject := range o.subjects() {
			if step, found := strings.CutPrefix(subject, verb+"."+key+"."); found {
				steps = append(steps, step)
			}
		}
		return slices.Compact(steps)
	}
	done, undone := about("do"), about("undo")
	if !status.HasEnded() || status == Completed && len(undone) > 0 {
		t.Errorf("seed %d: %s is %s, and undid %v", seed, key, status, undone)
	}
	reverse := slices.DeleteFunc(slices.Clone(done), func(step string) bool { return !slices.Contains(undone, step) })
	slices.Reverse(reverse)
	if !slices.Equal(undone, reverse) {
		t.Errorf("seed %d: %s did %v and undid %v", seed, key, done, undone)
	}
	ends := 0
	for _, subject := range o.subjects() {
		if subject == "trips."+key+".completed" || subject == "trips."+key+".given-up" {
			ends++
		}
	}
	if ends != 1 {
		t.Errorf("seed %d: %s ended %d times", seed, key, ends)
	}
	for _, step := range []string{"hotel", "flight", "car"} {
		isDone := false
		for id, work := range asked {
			if strings.HasPrefix(id, "trip/"+key+"/") && strings.HasSuffix(id, "/"+step) {
				isDone = work.isDone && !work.isUndone
			}
		}
		if isDone != (status == Completed) {
			t.Errorf("seed %d: %s of %s, which is %s: done is %v", seed, step, key, status, isDone)
		}
	}
}

func TestOverABadNetworkEverythingIsDoneOrUndoneOnce(t *testing.T) {
	for seed := range random(25) {
		runOverABadNetwork(t, seed)
	}
}
