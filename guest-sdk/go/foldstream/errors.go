package foldstream

import (
	"errors"
	"runtime"
	"strconv"
	"strings"
)

// ErrNotFound is what a query returns if the state has nothing for its arguments.
var ErrNotFound = errors.New("not found")

// retryError marks an error that may pass.
type retryError struct{ error }

func (e retryError) Unwrap() error { return e.error }

// Retry marks an error that may pass: the host tries the event again, as often as the manifest says.
func Retry(err error) error { return retryError{err} }

func isRetry(err error) bool {
	var retry retryError
	return errors.As(err, &retry)
}

// argumentsError marks arguments that do not fit a query.
type argumentsError struct{ message string }

func (e argumentsError) Error() string { return e.message }

// InvalidArguments is what a query returns if its arguments do not fit it; the message says how.
func InvalidArguments(message string) error { return argumentsError{message} }

// MismatchError says that JSON or a key does not match its type, where and how.
type MismatchError struct{ message string }

func (e *MismatchError) Error() string { return e.message }

// UnknownVersion is what a migration returns if it does not know the version of the old state.
func UnknownVersion(version uint32) error {
	return mismatch("state version ", strconv.FormatUint(uint64(version), 10), " is unknown to this version of the module")
}

func mismatch(parts ...string) error { return &MismatchError{strings.Join(parts, "")} }

// within is the same error, inside of a field or an element.
func within(place string, err error) error { return mismatch(place, ": ", err.Error()) }

// inUTF8 is a message that a host takes: U+FFFD stands for what is not UTF-8, such as half of a
// character where a text was cut. It would end the call.
func inUTF8(message string) string { return strings.ToValidUTF8(message, "\uFFFD") }

// panicError is a panic of the module.
type panicError struct {
	message string
	// trace has a line for each function, the innermost first.
	trace string
}

func (e *panicError) Error() string { return e.message }

// recovered describes a panic, with the place in the module; call it from a deferred function.
func recovered(reason any) *panicError {
	message := "panic: " + reasonOf(reason)
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	var trace strings.Builder
	trace.WriteString(message)
	panicked, placed := false, false
	for {
		frame, more := frames.Next()
		if panicked && !strings.HasPrefix(frame.Function, "runtime.") {
			place := frame.File + ":" + strconv.Itoa(frame.Line)
			trace.WriteString("\n    at " + frame.Function + " (" + place + ")")
			// The innermost line of the module itself helps more than one of a library.
			if !placed && !isLibrary(frame) {
				message += " (" + place[strings.LastIndexByte(place, '/')+1:] + ")"
				placed = true
			}
		}
		panicked = panicked || frame.Function == "runtime.gopanic"
		if !more {
			return &panicError{message, trace.String()}
		}
	}
}

// reasonOf describes what a panic was called with. A method of it may panic too, which would end the
// call without a word of the first panic.
func reasonOf(reason any) (message string) {
	defer func() {
		if recover() != nil {
			message = "a value that panics when it is asked for its text"
		}
	}()
	switch reason := reason.(type) {
	case error:
		return reason.Error()
	case string:
		return reason
	case interface{ String() string }:
		return reason.String()
	default:
		return "a value of another type"
	}
}

func isLibrary(frame runtime.Frame) bool {
	// What is inlined has the name of its caller, but its own file, which a build names by the module.
	ours := strings.HasPrefix(frame.Function, "foldstream.") || strings.HasPrefix(frame.Function, "foldstream/")
	ours = ours || strings.HasPrefix(frame.File, "foldstream@")
	// What the compiler adds has no file.
	ours = ours || strings.HasPrefix(frame.File, "<")
	return ours && !strings.HasSuffix(frame.File, "_test.go")
}
