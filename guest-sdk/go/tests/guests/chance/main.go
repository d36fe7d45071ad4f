// Package main stores all that differs from run to run elsewhere, and how the system is out of reach.
package main

import (
	cryptorand "crypto/rand"
	"encoding/hex"
	"fmt"
	"math/rand"
	"net"
	"os"
	"reflect"
	"strings"
	"time"

	"foldstream"
	"foldstream/projection"
)

// Chance folds events under chance.<kind>.
func Chance(p *foldstream.Projection) {
	p.Manifest = foldstream.Manifest{Name: "chance", Subjects: []string{"chance.*"}}
	seen := foldstream.NewTable[uint64, any](p, "seen")
	p.Apply(func(event *foldstream.Event) error {
		if event.Kind == "fail" {
			return fail(event.Data)
		}
		before := time.Now()
		time.Sleep(time.Hour)
		seen.Set(event.Sequence, map[string]any{
			"clocks":      []int64{time.Now().UnixNano(), int64(time.Since(before))},
			"slept":       time.Since(before) >= time.Hour,
			"draws":       []any{rand.Int63(), rand.Perm(9), secret()},
			"map":         mapOrder(),
			"goroutines":  goroutineOrder(),
			"file":        attempt(os.ReadFile("/etc/passwd")),
			"folder":      attempt(os.ReadDir("/")),
			"socket":      attempt(net.DialTimeout("tcp", "127.0.0.1:9", time.Second)),
			"process":     attempt(os.StartProcess("/bin/true", nil, &os.ProcAttr{})),
			"environment": append([]string{}, os.Environ()...),
		})
		fmt.Println("printed", event.Sequence)
		return nil
	})
}

func secret() string {
	bytes := make([]byte, 8)
	cryptorand.Read(bytes)
	return hex.EncodeToString(bytes)
}

func mapOrder() []string {
	order := []string{}
	for name := range map[string]bool{"one": true, "two": true, "three": true, "four": true, "five": true} {
		order = append(order, name)
	}
	return order
}

func goroutineOrder() []int {
	numbers := make(chan int)
	for number := range 5 {
		go func() {
			time.Sleep(time.Duration(rand.Intn(1_000)))
			numbers <- number
		}()
	}
	order := []int{}
	for range 5 {
		order = append(order, <-numbers)
	}
	return order
}

// attempt is the type of an error.
func attempt[V any](found V, err error) string {
	if err == nil {
		return fmt.Sprintf("worked: %v", found)
	}
	return strings.TrimPrefix(reflect.TypeOf(err).String(), "*")
}

// odd is an error that can't be shown.
type odd struct{}

func (odd) Error() string { panic("it has no text") }

func fail(how string) error {
	switch how {
	case "assert":
		panic("it does not hold")
	case "odd":
		panic(odd{})
	case "odd error":
		return odd{}
	case "leave":
		go func() { select {} }()
	case "goroutine":
		done := make(chan bool)
		go func() {
			panic("out of stock")
		}()
		<-done
	case "deadlock":
		<-make(chan bool)
	case "print":
		fmt.Fprint(os.Stderr, "half of ", "a line, and \xff\n")
		panic("printed")
	case "recurse":
		fmt.Println(recurse(1))
	case "allocate":
		fmt.Println(len(make([]byte, 1<<30)))
	}
	return nil
}

func recurse(depth int) int { return recurse(depth+1) + 1 }

func init() { projection.Export(Chance) }

func main() {}
