//go:build !wasip1

package foldstream

import "os"

func writeLog(level level, message string) {
	names := [...]string{"debug: ", "info: ", "warn: ", "error: "}
	os.Stderr.WriteString(names[level] + message + "\n")
}
