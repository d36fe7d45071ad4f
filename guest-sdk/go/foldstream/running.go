package foldstream

import (
	"errors"
	"runtime"
)

// watchesGoroutines says whether goroutines are counted. In a test they may be those of other tests.
var watchesGoroutines = runtime.GOOS == "wasip1"

// turnsMax is how often other goroutines get a turn to end, once nothing waits for them any more.
const turnsMax = 100

// goroutines is how many there are.
func goroutines() int {
	if !watchesGoroutines {
		return 0
	}
	return runtime.NumGoroutine()
}

// refuseRunning refuses goroutines that were started after there were this many: a host waits for
// none, so the rest of their work would be done in another call, or never.
func refuseRunning(before int) error {
	for turn := 0; goroutines() > before; turn++ {
		if turn == turnsMax {
			return errors.New("a goroutine is still running, and nothing here waits for it")
		}
		// One that has sent its last message may not have ended yet.
		runtime.Gosched()
	}
	return nil
}
