//go:build !wasip1

package handler

import "foldstream"

func export(func(*foldstream.Handler)) {
	// In a test there is no host.
}
